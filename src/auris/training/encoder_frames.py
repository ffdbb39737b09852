"""Cache of the frozen encoder's output for all training and validation rows, which `objective.frames=cached` reads.

The frames of a clip, before pooling and the encoder's final norm, are one float16 file
`CACHE_DIR/encoder-frames-<digest>/<digest of the clip>.npy`. The digest in the folder's name covers the weights of the
encoder and the settings, so an outdated cache is never used. A file is written atomically: an interrupted computation
resumes, and several runs may use the same cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from auris.data.samples import Samples, TranscriptSamples
from auris.errors import UserError
from auris.model.audio_lm import AudioLM
from auris.model.distributed import gather, world_and_rank
from auris.model.pack import to_device
from auris.model.weights.tensors import weights_digest
from auris.text.console import track
from auris.training import sharding
from auris.training.lightning_types import datamodule
from auris.training.objectives.align import Align
from auris.training.references import clip_digests


def check_config(objective: nn.Module, samples: Samples, config: Config) -> None:
    """Check that the encoder computes the same frames in every step, if they are cached.

    Raises:
        UserError: The encoder is trained, or the audio of training rows is altered at random.
    """
    if not isinstance(objective, Align):
        return
    if any(name.partition(".")[0] == "llm" for name in config["trainable"]):
        raise UserError(
            f"trainable={config['trainable']}: the objective Align compares with the embeddings of a frozen language "
            "model, expected trainable=[pooling,projector]"
        )
    if objective.frames != "cached":
        return
    if any(name.partition(".")[0] == "encoder" for name in config["trainable"]):
        raise UserError(
            f"trainable={config['trainable']}: objective.frames=cached computes the encoder once, expected a frozen "
            "encoder (or objective.frames=live)"
        )
    keys = ["data.augment"] if samples.augment is not None else []
    keys += [distortion.key for distortion in samples.distortions]
    if keys:
        raise UserError(
            f"{' and '.join(keys)} would change the audio in every epoch, but objective.frames=cached computes the "
            f"encoder once: set {' '.join(f'{key}=null' for key in keys)} (or objective.frames=live)"
        )


def attach(objective: Align, net: AudioLM, trainer: L.Trainer, *, config: Config, tensor_parallel: int) -> None:
    """Prepare an alignment: give the objective the tokens of all transcripts, and the rows their cached frames.

    Args:
        objective: The objective.
        net: The net with its initial weights; it is moved to the trainer's device if frames have to be computed.
        trainer: The trainer, whose data module is set up.
        config: Resolved config of the run.
        tensor_parallel: Number of consecutive ranks that compute the same packs together.
    """
    data = datamodule(trainer)
    rows, n_tokens = [*data.rows, *data.valid_rows], np.concatenate([data.lengths.tokens, data.valid_lengths.tokens])
    samples = data.valid_samples
    assert isinstance(data.samples, TranscriptSamples) and isinstance(samples, TranscriptSamples)  # `Align.views`
    usable = [row for row, n in zip(rows, n_tokens, strict=True) if n and not row.problem]
    objective.set_tokens({int(token) for row in usable for token in samples.encode(row, (), None).ids})
    if objective.frames != "cached":
        return
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
    data.samples.encoder_frames = samples.encoder_frames = table


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
    numbers = [number for number in range(len(rows)) if n_tokens[number] and not rows[number].problem]
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
        frames, lengths = net.encoder_output(pack)
        clips = frames.to(torch.float16).cpu().split(lengths.tolist())
        for number, clip_frames in zip(pack["rows"], clips, strict=False):  # an empty pack has a dummy clip
            if not torch.isfinite(clip_frames).all():
                raise UserError(f"row {rows[number].id}: encoder frames exceed float16; set objective.frames=live")
            with files.open_atomic(paths[number], "wb") as file:
                np.save(file, clip_frames.numpy())
    for module in modules_in_training:
        module.training = True
    gather(None)  # wait until all ranks have written their files
    return {rows[number].id: path for number, path in paths.items() if path.is_file()}


def cache_digest(net: AudioLM, samples: Samples, config: Config, precision: str) -> str:
    """Return a digest of everything that frames depend on, except for the clip: the encoder and the settings."""
    geometry = [net.encoder.geometry, samples.long_audio, samples.silent_audio]
    return files.digest([weights_digest(net.encoder), config["model"]["encoder"], repr(geometry), precision])
