"""Cache of the output of the encoder's frozen blocks for all rows of a run (`data.encoder_frames=cached`).

These are the blocks below the first trained one: all blocks of a frozen encoder, or the lower blocks if for example
`trainable=[encoder.blocks.4,encoder.blocks.5,encoder.norm,...]` trains the others.

The frames of a clip are one float16 file `CACHE_DIR/encoder-frames-<digest>/<digest of the clip>.npy`. The digest in
the folder's name covers the weights of these blocks and the settings, so an outdated cache is never used. A file is
written atomically: an interrupted computation resumes, and several runs may use the same cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import nn

from auris import files
from auris.config import Config
from auris.data.batches import build_pack, pack_by_length
from auris.data.lengths import Lengths
from auris.data.rows import Row
from auris.data.samples import Samples
from auris.errors import UserError
from auris.model import adapters
from auris.model.audio_lm import AudioLM
from auris.model.distributed import gather, world_and_rank
from auris.model.pack import to_device
from auris.model.weights.tensors import weights_digest
from auris.text.console import track
from auris.training import optim, sharding
from auris.training.lightning_types import datamodule
from auris.training.references import clip_digests

VALUES = ("live", "cached")


def check_config(net: AudioLM, samples: Samples, config: Config) -> None:
    """Check that the encoder's frozen blocks compute the same frames in every step, if their output is cached.

    Raises:
        UserError: `data.encoder_frames` has another value, the convolutions are trained, the audio of training rows is
            altered at random, long clips are split into windows, or there is no audio.
    """
    value = config["data"]["encoder_frames"]
    if value not in VALUES:
        raise UserError(f"data.encoder_frames={value}: expected {' or '.join(VALUES)}")
    if value == "live":
        return
    if not samples.has_audio:
        raise UserError(
            f"data.encoder_frames=cached has no effect with data.view={config['data']['view']}: set it to live"
        )
    if samples.long_audio == "window":
        raise UserError(
            "data.long_audio=window splits a clip into several, but data.encoder_frames=cached needs one clip per row: "
            "set data.long_audio=error, skip or first (or data.encoder_frames=live)"
        )
    # Adapters belong to the LLM, and are attached later.
    names = [name for name in config["trainable"] if name not in (adapters.NEW_TOKENS, adapters.LORA)]
    trained = {id(parameter) for part in optim.find_parts(net, names) for parameter in _parameters(part)}
    if any(
        id(parameter) in trained for conv in (net.encoder.conv1, net.encoder.conv2) for parameter in conv.parameters()
    ):
        raise UserError(
            f"trainable={config['trainable']}: data.encoder_frames=cached computes the encoder's convolutions once, "
            "expected them to be frozen (or data.encoder_frames=live)"
        )
    keys = ["data.augment"] if samples.augment is not None else []
    keys += [distortion.key for distortion in samples.distortions]
    if keys:
        raise UserError(
            f"{' and '.join(keys)} would change the audio in every epoch, but data.encoder_frames=cached computes the "
            f"encoder once: set {' '.join(f'{key}=null' for key in keys)} (or data.encoder_frames=live)"
        )


def attach(net: AudioLM, trainer: L.Trainer, *, config: Config, tensor_parallel: int) -> None:
    """Give the training and validation rows their cached frames, and compute those that are missing.

    Args:
        net: The net with its initial weights; it is moved to the trainer's device if frames have to be computed.
        trainer: The trainer, whose data module is set up.
        config: Resolved config of the run.
        tensor_parallel: Number of consecutive ranks that compute the same packs together.

    Raises:
        UserError: A row has several clips.
    """
    data = datamodule(trainer)
    rows, n_tokens = [*data.rows, *data.valid_rows], np.concatenate([data.lengths.tokens, data.valid_lengths.tokens])
    samples = data.valid_samples
    for row in rows:
        if len(row.clips) > 1:
            raise UserError(
                f"row {row.id} has {len(row.clips)} clips: cached frames need one, set data.encoder_frames=live"
            )
    is_frozen = [not any(parameter.requires_grad for parameter in block.parameters()) for block in net.encoder.blocks]
    net.n_cached_blocks = is_frozen.index(False) if False in is_frozen else len(is_frozen)
    folder = data.cache_dir / f"encoder-frames-{cache_digest(net, samples, config, str(trainer.precision))}"
    with torch.device("cpu"), trainer.precision_plugin.forward_context():
        table = compute_frames(
            net,
            rows,
            n_tokens,
            samples,
            folder=folder,
            token_budget=data.token_budget,
            device=trainer.strategy.root_device,
            tensor_parallel=tensor_parallel,
        )
    sharding.reshard(net)
    for each in (data.samples, samples):
        each.encoder_frames, each.cached_width = table, net.encoder.width


def _parameters(part: nn.Module | nn.Parameter) -> Iterable[nn.Parameter]:
    return part.parameters() if isinstance(part, nn.Module) else [part]


@torch.no_grad()
def compute_frames(
    net: AudioLM,
    rows: Sequence[Row],
    n_tokens: np.ndarray,
    samples: Samples,
    *,
    folder: Path,
    token_budget: int,
    device: torch.device | str = "cpu",
    tensor_parallel: int = 1,
) -> Mapping[str, Path]:
    """Return the file with the frames of each row, by row id. Frames that have no file yet are computed.

    A row whose audio cannot be used has no file.

    Args:
        net: The net.
        rows: The rows.
        n_tokens: (rows,) number of tokens of each row, 0 for a row that cannot be used.
        samples: Turns rows into samples, without augmentation.
        folder: Folder of the files.
        token_budget: Largest number of tokens in a pack.
        device: Device of the computation.
        tensor_parallel: Number of consecutive ranks that compute the same packs together.
    """
    numbers = [n for n, row in enumerate(rows) if row.clips and n_tokens[n] and not row.problem]
    paths = {number: folder / f"{files.digest(clip_digests(rows[number]))}.npy" for number in numbers}
    # Clips with the same content are computed once. The ranks may not see the same files, but must agree on the packs.
    absent = {path: number for number, path in paths.items() if not path.is_file()}
    missing = sorted({number for absent_here in gather(list(absent.values())) for number in absent_here})
    rank_zero_info(f"encoder frames: {len(numbers) - len(missing)} of {len(numbers)} rows are in {folder}")
    missing_tokens = np.where(np.isin(np.arange(len(rows)), missing), n_tokens, 0)
    world, rank = world_and_rank()
    n_groups, group_number = world // tensor_parallel, rank // tensor_parallel
    packs = pack_by_length(Lengths(missing_tokens, {}, {}), token_budget, n_groups)[group_number::n_groups]
    if packs:
        net.to(device)
    modules_in_training = [module for module in net.modules() if module.training]
    net.eval()
    for pack_numbers in track(packs, "encoder frames", console=Console(), disable=rank > 0 or not packs):
        pack = to_device(build_pack(rows, [(number, None) for number in pack_numbers], samples), device)
        frames, lengths = net.encoder_output(pack, net.n_cached_blocks)
        clips = frames.to(torch.float16).cpu().split(lengths.tolist()) if pack["rows"] else ()  # without the dummy clip
        for number, clip_frames in zip(pack["rows"], clips, strict=True):
            if not torch.isfinite(clip_frames).all():
                raise UserError(f"row {rows[number].id}: encoder frames exceed float16; set data.encoder_frames=live")
            with files.open_atomic(paths[number], "wb") as file:
                np.save(file, clip_frames.numpy())
    for module in modules_in_training:
        module.training = True
    gather(None)  # wait until all ranks have written their files
    return {rows[number].id: path for number, path in paths.items() if path.is_file()}


def cache_digest(net: AudioLM, samples: Samples, config: Config, precision: str) -> str:
    """Return a digest of everything that frames depend on, except for the clip: the frozen blocks and the settings."""
    encoder = net.encoder
    frozen = nn.ModuleList([encoder.conv1, encoder.conv2, *encoder.blocks[: net.n_cached_blocks]])
    frozen.register_buffer("positions", encoder.positions)
    geometry = [encoder.geometry, samples.long_audio, samples.silent_audio]
    settings = {name: value for name, value in config["model"]["encoder"].items() if name != "n_layers"}
    return files.digest([weights_digest(frozen), net.n_cached_blocks, settings, repr(geometry), precision])
