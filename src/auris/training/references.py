"""Reference model of preference training: the net before the first step.

With objective.reference=cached, the log-probabilities of all pairs under the reference are computed once and cached in
`CACHE_DIR/references-<digest>-<rank>.jsonl`. Log-probabilities depend on their row and on settings that all rows share.
The digest in the file name covers the settings, and every line contains the digest of its row, so an outdated cache is
never used. An interrupted computation resumes from the cache. With objective.reference=live, a frozen copy of the net
computes the log-probabilities in every step.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import nn

from auris import files
from auris.audio import Sound
from auris.config import Config
from auris.data.batches import build_pack, pack_by_length
from auris.data.lengths import Lengths
from auris.data.pairs import PairSamples
from auris.data.rows import Row
from auris.data.samples import Samples
from auris.errors import UserError
from auris.model.audio_lm import AudioLM
from auris.model.distributed import gather, world_and_rank
from auris.model.pack import to_device
from auris.model.weights.tensors import weights_digest
from auris.text.chat import Chat, map_audios
from auris.text.console import track
from auris.training import sharding
from auris.training.lightning_types import datamodule
from auris.training.objectives.dpo import DPO, answer_logps

LogpTable = dict[str, tuple[float, float]]
"""Log-probabilities of the chosen and the rejected answer of rows, by digest of the row's content or by row id."""

# A dialogue with every element that chat templates render differently. Its rendering is part of the cache's digest.
_PROBE = (
    {"role": "user", "content": [{"type": "audio", "audio": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": [{"type": "audio", "audio": "d"}]},
    {"role": "assistant", "content": "e"},
)


def check_augmentation(objective: nn.Module, samples: Samples) -> None:
    """Check that a cached reference gets the same audio as the policy in every epoch.

    Raises:
        UserError: The audio of training rows is altered at random, but the log-probabilities of the reference are
            cached.
    """
    keys = ["data.augment"] if samples.augment is not None else []
    keys += [distortion.key for distortion in samples.distortions]
    if isinstance(objective, DPO) and objective.reference == "cached" and keys:
        off = " ".join(f"{key}=null" for key in keys)
        verb = "changes" if len(keys) == 1 else "change"
        raise UserError(
            f"{' and '.join(keys)} {verb} the audio in every epoch, but objective.reference=cached is computed once: "
            f"set {off} to leave the audio unchanged, or objective.reference=live to compute a frozen copy of the "
            "model in every step"
        )


def copy_for_live_reference(objective: nn.Module, net: AudioLM) -> AudioLM | None:
    """Return a copy of a net on the meta device, for a reference that is computed in every step; otherwise None."""
    return copy.deepcopy(net) if isinstance(objective, DPO) and objective.reference == "live" else None


def start_live_reference(
    objective: DPO, net: AudioLM, reference: AudioLM, *, device: torch.device, meshes: sharding.Meshes | None
) -> None:
    """Give an objective its live reference: a frozen copy of the net with its current weights.

    Args:
        objective: The objective, which computes the reference in every step.
        net: The net with its initial weights.
        reference: The copy from `copy_for_live_reference`, on the meta device.
        device: Device to which the copy is moved.
        meshes: Device meshes over which the net is sharded; None if it is not sharded.
    """
    reference.requires_grad_(False)
    if meshes is not None:
        sharding.shard(reference, meshes)
    sharding.materialise(reference, device, draw=False)
    sharding.copy_weights(net, reference)
    objective.set_live_reference(reference)


def attach_cached_logps(net: AudioLM, trainer: L.Trainer, *, config: Config, tensor_parallel: int) -> None:
    """Attach log-probabilities under the net's current weights to the pairs of a trainer's data, using the cache.

    Args:
        net: The net with its initial weights, before a checkpoint is restored; it is moved to the trainer's device.
        trainer: The trainer, whose data module is set up.
        config: Resolved config of the run.
        tensor_parallel: Number of consecutive ranks that compute the same packs together.
    """
    data = datamodule(trainer)
    net.to(trainer.strategy.root_device)
    digest = cache_digest(net, data.valid_samples, config, str(trainer.precision))
    if data.predict_entries:  # set by `auris replay`, which needs the rows of a single step
        row_numbers = sorted({row_number for row_number, _ in data.predict_entries})
        train_rows, valid_rows = [data.rows[number] for number in row_numbers], []
        n_tokens = data.lengths.tokens[row_numbers]
    else:
        train_rows, valid_rows = data.rows, data.valid_rows
        n_tokens = np.concatenate([data.lengths.tokens, data.valid_lengths.tokens])
    # Lightning makes the trainer's device the default while it builds a model, but samples are built on the CPU.
    with torch.device("cpu"), trainer.precision_plugin.forward_context():
        table = compute_logps(
            net,
            [*train_rows, *valid_rows],
            n_tokens,
            data.valid_samples,
            file=data.cache_dir / f"references-{digest}",
            token_budget=data.token_budget,
            tensor_parallel=tensor_parallel,
        )
    sharding.reshard(net)
    # DPO only trains on pairs.
    assert isinstance(data.samples, PairSamples) and isinstance(data.valid_samples, PairSamples)
    data.samples.references = logps_by_id(table, train_rows)
    data.valid_samples.references = logps_by_id(table, valid_rows)


@torch.no_grad()
def compute_logps(
    net: AudioLM,
    rows: Sequence[Row],
    n_tokens: np.ndarray,
    samples: Samples,
    *,
    file: Path,
    token_budget: int,
    tensor_parallel: int = 1,
) -> LogpTable:
    """Return, by digest of the row, the log-probabilities of both answers under the net. Cached ones are reused.

    Args:
        net: The reference.
        rows: The pairs.
        n_tokens: (rows,) number of tokens of each row, 0 for a row that cannot be used.
        samples: Turns rows into samples, without augmentation.
        file: Path of the cache without its suffix. Rank r appends to `<file>-r.jsonl`; every rank reads all files.
        token_budget: Largest number of tokens in a pack.
        tensor_parallel: Number of consecutive ranks that compute the same packs together.
    """
    cached = _merge_ranks(_read_cache(file))
    # Rows with the same content are computed once.
    numbers_by_digest = {row_digest(row): number for number, row in enumerate(rows) if n_tokens[number]}
    missing = {number: digest for digest, number in numbers_by_digest.items() if digest not in cached}
    n_pairs = len(numbers_by_digest)
    rank_zero_info(f"reference log-probabilities: {n_pairs - len(missing)} of {n_pairs} pairs are in {file}-*.jsonl")
    missing_tokens = np.where(np.isin(np.arange(len(rows)), list(missing)), n_tokens, 0)
    # Every rank gets the same number of packs, because a sharded net needs all ranks in each forward. Some packs may be
    # empty.
    world, rank = world_and_rank()
    n_groups, group_number = world // tensor_parallel, rank // tensor_parallel
    packs = pack_by_length(Lengths(missing_tokens, {}, {}), token_budget, n_groups)[group_number::n_groups]
    device = next(net.parameters()).device
    modules_in_training = [module for module in net.modules() if module.training]
    net.eval()
    new: LogpTable = {}
    for numbers in track(packs, "reference log-probabilities", console=Console(), disable=rank > 0 or not packs):
        batch = to_device(build_pack(rows, [(number, None) for number in numbers], samples), device)
        logps = answer_logps(net, batch)[0].tolist()
        logps_by_digest = {
            missing[number]: (chosen, rejected) for number, (chosen, rejected) in zip(batch["rows"], logps, strict=True)
        }
        lines = [
            {"row": digest, "chosen": chosen, "rejected": rejected}
            for digest, (chosen, rejected) in logps_by_digest.items()
        ]
        files.append_jsonl(file.with_name(f"{file.name}-{rank}.jsonl"), lines)
        new |= logps_by_digest
    for module in modules_in_training:
        module.training = True
    return cached | _merge_ranks(new)


def logps_by_id(table: LogpTable, rows: Iterable[Row]) -> LogpTable:
    """Return the log-probabilities of the given rows by row id. Rows that are not in the table are left out."""
    digests = {row.id: row_digest(row) for row in rows if not row.problem}
    return {row_id: table[digest] for row_id, digest in digests.items() if digest in table}


def row_digest(row: Row) -> str:
    """Return a digest of everything in a row that its log-probabilities depend on.

    The digest covers the content of the audio files, but not their paths.
    """
    messages = map_audios(lambda path: None, row.labels.get("messages", ()))
    return files.digest([row.labels.get("chosen"), row.labels.get("rejected"), messages, clip_digests(row)])


def clip_digests(row: Row) -> list[list[object]]:
    """Return offset, duration and digest of the file's content for each clip of a row."""
    return [[clip.offset, clip.duration, _sound_digest(clip.path)] for clip in row.clips]


def cache_digest(net: nn.Module, samples: Samples, config: Config, precision: str) -> str:
    """Return a digest of everything that log-probabilities depend on, except for the row: the net and the settings."""
    assert isinstance(samples.prompt, Chat)  # pairs are dialogues
    return files.digest(
        [
            weights_digest(net, with_adapters=False),  # untrained adapters have no effect
            config.get("model"),
            samples.tokenizer.fast.backend_tokenizer.to_str(),
            repr(samples.prompt.turns(_PROBE, supervise=True)),
            repr(samples.geometry),
            samples.long_audio,
            precision,
        ]
    )


def _sound_digest(source: Path | Sound) -> str:
    try:
        if isinstance(source, Path):
            return _file_digest(source, source.stat().st_mtime_ns)
        return hashlib.sha256(source.read()).hexdigest()
    except (OSError, ValueError):
        return "absent"  # the row is reported as unusable when its audio is read


@cache
def _file_digest(path: Path, modified_ns: int) -> str:
    """Return the digest of a file. A file with another modification time is read again."""
    return files.file_digest(path)


def _read_cache(file: Path) -> LogpTable:
    """Read the cache files of all ranks."""
    lines = chain.from_iterable(map(files.read_jsonl, sorted(file.parent.glob(f"{file.name}-*.jsonl"))))
    return {line["row"]: (line["chosen"], line["rejected"]) for line in lines}


def _merge_ranks(table: LogpTable) -> LogpTable:
    """Merge the tables of all ranks."""
    return {digest: logps for part in gather(table) for digest, logps in part.items()}
