"""Reference model of preference training: the net before the first step.

Its log-probabilities of all pairs are computed once and cached in `CACHE_DIR/references-<digest>-<rank>.jsonl`. The
digest covers everything but the row that they depend on, and every line contains the digest of its row, so an outdated
cache is never used. An interrupted computation resumes from the cache.
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
from rich.progress import track
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
from auris.training import sharding
from auris.training.lightning_types import datamodule
from auris.training.objectives.dpo import DPO, answer_logps

Table = dict[str, tuple[float, float]]
"""Maps the digest of a row's content to the log-probabilities of its chosen and its rejected answer."""

# A dialogue with every element that chat templates render differently. Its rendering is part of the cache's digest.
_PROBE = (
    {"role": "user", "content": [{"type": "audio", "audio": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": [{"type": "audio", "audio": "d"}]},
    {"role": "assistant", "content": "e"},
)


def check(objective: nn.Module, samples: Samples) -> None:
    """Check that a cached reference gets the same audio as the policy in every epoch.

    Raises:
        UserError: Training rows are augmented, but the log-probabilities of the reference are cached.
    """
    changed = ["data.augment"] if samples.augment is not None else []
    changed += [distortion.key for distortion in samples.distortions]
    if isinstance(objective, DPO) and objective.reference == "cached" and changed:
        off = " ".join(f"{key}=null" for key in changed)
        change = "changes" if len(changed) == 1 else "change"
        raise UserError(
            f"{' and '.join(changed)} {change} the audio in every epoch, but objective.reference=cached is computed "
            f"once: set {off}, or objective.reference=live (a frozen copy of the model, computed in every step)"
        )


def copy_for_live(objective: nn.Module, net: AudioLM) -> AudioLM | None:
    """Return a copy of a net on the meta device for a live reference; None if the reference is not live."""
    return copy.deepcopy(net) if isinstance(objective, DPO) and objective.reference == "live" else None


def start_live(
    objective: DPO, net: AudioLM, reference: AudioLM, *, device: torch.device, meshes: sharding.Meshes | None
) -> None:
    """Give an objective its live reference: a frozen copy of the net with its current weights.

    Args:
        objective: The objective, which computes the reference in every step.
        net: The net with its initial weights.
        reference: The copy from `copy_for_live`, on the meta device.
        device: Device of the copy.
        meshes: How the net is sharded; None if it is not.
    """
    reference.requires_grad_(False)
    if meshes is not None:
        sharding.shard(reference, meshes)
    sharding.materialise(reference, device, draw=False)
    sharding.copy_weights(net, reference)
    objective.freeze(reference)


def attach_cached(net: AudioLM, trainer: L.Trainer, *, config: Config, tensor_parallel: int) -> None:
    """Give the pairs of a trainer's data their log-probabilities under the net's current weights, using the cache.

    Args:
        net: The net with its initial weights, before a checkpoint is restored; it is moved to the trainer's device.
        trainer: The trainer, whose data module is set up.
        config: Resolved config of the run.
        tensor_parallel: Number of neighbouring processes that compute the same packs together.
    """
    data = datamodule(trainer)
    net.to(trainer.strategy.root_device)
    key = cache_digest(net, data.valid_samples, config, str(trainer.precision))
    if data.predict_entries:  # `auris replay` needs the rows of a single step
        numbers = sorted({number for number, _ in data.predict_entries})
        train, valid, tokens = [data.rows[number] for number in numbers], [], data.lengths.tokens[numbers]
    else:
        train, valid = data.rows, data.valid_rows
        tokens = np.concatenate([data.lengths.tokens, data.valid_lengths.tokens])
    # Lightning makes the trainer's device the default while it builds a model, but samples are built on the CPU.
    with torch.device("cpu"), trainer.precision_plugin.forward_context():
        table = compute(
            net,
            [*train, *valid],
            tokens,
            data.valid_samples,
            file=data.cache_dir / f"references-{key}",
            token_budget=data.token_budget,
            tensor_parallel=tensor_parallel,
        )
    sharding.reshard(net)
    assert isinstance(data.samples, PairSamples) and isinstance(data.valid_samples, PairSamples)  # DPO has no others
    data.samples.references = by_id(table, train)
    data.valid_samples.references = by_id(table, valid)


@torch.no_grad()
def compute(
    net: AudioLM,
    rows: Sequence[Row],
    tokens: np.ndarray,
    samples: Samples,
    *,
    file: Path,
    token_budget: int,
    tensor_parallel: int = 1,
) -> Table:
    """Return the log-probabilities of both answers of every row under the net, reusing cached ones.

    Args:
        net: The reference.
        rows: The pairs.
        tokens: (rows,) length of each row, 0 for a row that cannot be used.
        samples: Turns rows into samples, without augmentation.
        file: Path of the cache without its suffix. Process r appends to `<file>-r.jsonl`; every process reads all
            files.
        token_budget: Largest number of tokens in a pack.
        tensor_parallel: Number of neighbouring processes that compute the same packs together.
    """
    cached = _gather(_read(file))
    numbers_by_key = {row_digest(row): number for number, row in enumerate(rows) if tokens[number]}  # no duplicates
    missing = {number: key for key, number in numbers_by_key.items() if key not in cached}
    total = len(numbers_by_key)
    rank_zero_info(f"reference log-probabilities: {total - len(missing)} of {total} pairs are in {file}-*.jsonl")
    missing_tokens = np.where(np.isin(np.arange(len(rows)), list(missing)), tokens, 0)
    # Every process gets the same number of packs, as a sharded net needs all processes in each forward. Some packs may
    # be empty.
    world, rank = world_and_rank()
    groups, group = world // tensor_parallel, rank // tensor_parallel
    packs = pack_by_length(Lengths(missing_tokens, {}, {}), token_budget, groups)[group::groups]
    device = next(net.parameters()).device
    training = [module for module in net.modules() if module.training]
    net.eval()
    new: Table = {}
    for numbers in track(packs, description="reference log-probabilities", disable=rank > 0 or not packs):
        batch = to_device(build_pack(rows, [(number, None) for number in numbers], samples), device)
        logps = answer_logps(net, batch)[0].tolist()
        pairs = {
            missing[number]: (chosen, rejected) for number, (chosen, rejected) in zip(batch["rows"], logps, strict=True)
        }
        lines = [{"row": key, "chosen": chosen, "rejected": rejected} for key, (chosen, rejected) in pairs.items()]
        files.append_jsonl(file.with_name(f"{file.name}-{rank}.jsonl"), lines)
        new |= pairs
    for module in training:
        module.training = True
    return cached | _gather(new)


def by_id(table: Table, rows: Iterable[Row]) -> Table:
    """Return the log-probabilities of the given rows by row id. Rows that are not in the table are left out."""
    keys = {row.id: row_digest(row) for row in rows if not row.problem}
    return {row_id: table[key] for row_id, key in keys.items() if key in table}


def row_digest(row: Row) -> str:
    """Return a digest of everything in a row that its log-probabilities depend on: the audio, but not its path."""
    messages = map_audios(lambda path: None, row.labels.get("messages", ()))
    clips = [[clip.offset, clip.duration, _sound_digest(clip.path)] for clip in row.clips]
    return files.digest([row.labels.get("chosen"), row.labels.get("rejected"), messages, clips])


def cache_digest(net: nn.Module, samples: Samples, config: Config, precision: str) -> str:
    """Return a digest of everything but the row that log-probabilities depend on."""
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
        return "absent"  # the row is reported as unusable when it is read


@cache
def _file_digest(path: Path, changed_ns: int) -> str:
    return files.file_digest(path)


def _read(file: Path) -> Table:
    """Read the cache files of all processes."""
    lines = chain.from_iterable(map(files.read_jsonl, sorted(file.parent.glob(f"{file.name}-*.jsonl"))))
    return {line["row"]: (line["chosen"], line["rejected"]) for line in lines}


def _gather(table: Table) -> Table:
    """Merge the tables of all processes."""
    return {key: pair for part in gather(table) for key, pair in part.items()}
