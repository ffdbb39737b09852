"""The reference of preference training: the net as it is before the first step.

Its log-probabilities of all pairs are computed once and cached in `CACHE_DIR/references-<digest>-<rank>.jsonl`. The
digest covers everything that they depend on besides a row, and every line has the digest of its row, so that an
outdated cache is never read. A killed computation resumes where it was.
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
from auris.data.batches import pack, pack_by_length
from auris.data.datamodule import AudioDataModule
from auris.data.lengths import Lengths
from auris.data.rows import Row
from auris.data.samples import Samples
from auris.errors import UserError
from auris.model.audio_lm import AudioLM
from auris.model.distributed import gather, world_and_rank
from auris.model.pack import to_device
from auris.model.weights.tensors import weights_digest
from auris.text.chat import map_audios
from auris.training import sharding
from auris.training.objectives.dpo import DPO, answer_logps

Table = dict[str, tuple[float, float]]
"""Digest of a row's content -> log-probabilities of its chosen and its rejected answer."""

# A dialogue with every piece that a template writes in its own way. Its rendering is part of the cache's digest.
_PROBE = (
    {"role": "user", "content": [{"type": "audio", "audio": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": [{"type": "audio", "audio": "d"}]},
    {"role": "assistant", "content": "e"},
)


def check(objective: nn.Module, samples: Samples) -> None:
    """Check that a cached reference hears what the policy hears in every epoch.

    Raises:
        UserError: training rows are augmented, and the reference's log-probabilities are cached.
    """
    changed = ["data.augment"] if samples.augment is not None else []
    changed += [distortion.key for distortion in samples.distortions]
    if isinstance(objective, DPO) and objective.reference == "cached" and changed:
        off = " ".join(f"{key}=null" for key in changed)
        change = "changes" if len(changed) == 1 else "change"
        raise UserError(
            f"{' and '.join(changed)} {change} what is heard from epoch to epoch, and objective.reference=cached is "
            f"computed once: set {off}, or objective.reference=live (a frozen copy of the model, asked in every step)"
        )


def twin(objective: nn.Module, net: AudioLM) -> AudioLM | None:
    """Return the net of a live reference, a copy of a net on the meta device; None if the reference is not live."""
    return copy.deepcopy(net) if isinstance(objective, DPO) and objective.reference == "live" else None


def start_live(
    objective: DPO, net: AudioLM, twin: AudioLM, *, device: torch.device, meshes: sharding.Meshes | None
) -> None:
    """Give an objective its live reference: a frozen copy of the net's present weights.

    Args:
        objective: asks the reference in every step.
        net: with its initial weights.
        twin: from `twin`, on the meta device.
        device: of the copy.
        meshes: how the net is sharded, if it is.
    """
    twin.requires_grad_(False)
    if meshes is not None:
        sharding.shard(twin, meshes)
    sharding.materialise(twin, device, draw=False)
    sharding.copy(net, twin)
    objective.freeze(twin)


def attach_cached(net: AudioLM, trainer: L.Trainer, *, recipe: Config, tensor_parallel: int) -> None:
    """Give the pairs of a trainer's data their log-probabilities under the net's present weights, cached on disk.

    Args:
        net: with its initial weights, before a checkpoint is restored; it is moved to the trainer's device.
        trainer: its data module is set up.
        recipe: the resolved config of the run.
        tensor_parallel: neighbouring processes that compute the same packs together.
    """
    data: AudioDataModule = trainer.datamodule
    net.to(trainer.strategy.root_device)
    key = cache_digest(net, data.valid_samples, recipe, trainer.precision)
    if data.predict_entries:  # the rows of one step, for `auris replay`
        numbers = sorted({number for number, _ in data.predict_entries})
        train, valid, tokens = [data.rows[number] for number in numbers], [], data.lengths.tokens[numbers]
    else:
        train, valid = data.rows, data.valid_rows
        tokens = np.concatenate([data.lengths.tokens, data.valid_lengths.tokens])
    # Lightning builds models where new tensors go to the device; samples are built on the host.
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
    data.samples.references = by_id(table, train)
    data.valid_samples.references = by_id(table, valid)


@torch.no_grad()
def compute(
    net: nn.Module,
    rows: Sequence[Row],
    tokens: np.ndarray,
    samples: Samples,
    *,
    file: Path,
    token_budget: int,
    tensor_parallel: int = 1,
) -> Table:
    """Return the log-probabilities of both answers of every row under the net. Cached ones are not computed again.

    Args:
        net: the reference.
        rows: the pairs.
        tokens: (rows,) length of each row, 0 for one that cannot be used.
        samples: how rows are seen; not augmented.
        file: the cache without its ending: process r appends to `<file>-r.jsonl`, and all processes read all of them.
        token_budget: most tokens in a pack.
        tensor_parallel: neighbouring processes that compute the same packs together.
    """
    cached = _merge(_read(file))
    wanted = {row_digest(row): number for number, row in enumerate(rows) if tokens[number]}  # equal rows once
    missing = {number: key for key, number in wanted.items() if key not in cached}
    rank_zero_info(
        f"reference log-probabilities: {len(wanted) - len(missing)} of {len(wanted)} pairs are in {file}-*.jsonl"
    )
    todo = np.where(np.isin(np.arange(len(rows)), list(missing)), tokens, 0)
    # The same number of packs on every process: a sharded net needs all of them in each forward. Empty packs yield
    # nothing.
    world, rank = world_and_rank()
    groups, group = world // tensor_parallel, rank // tensor_parallel
    packs = pack_by_length(Lengths(todo, {}, {}), token_budget, groups)[group::groups]
    device = next(net.parameters()).device
    training = [module for module in net.modules() if module.training]
    net.eval()
    new: Table = {}
    for numbers in track(packs, description="reference log-probabilities", disable=rank > 0 or not packs):
        batch = to_device(pack(rows, [(number, None) for number in numbers], samples), device)
        logps = answer_logps(net, batch)[0].tolist()
        pairs = {
            missing[number]: (chosen, rejected) for number, (chosen, rejected) in zip(batch["rows"], logps, strict=True)
        }
        lines = [{"row": key, "chosen": chosen, "rejected": rejected} for key, (chosen, rejected) in pairs.items()]
        files.append_jsonl(file.with_name(f"{file.name}-{rank}.jsonl"), lines)
        new |= pairs
    for module in training:
        module.training = True
    return cached | _merge(new)


def by_id(table: Table, rows: Iterable[Row]) -> Table:
    """Return the part of a table that is about these rows, by the rows' ids."""
    keys = {row.id: row_digest(row) for row in rows if not row.problem}
    return {name: table[key] for name, key in keys.items() if key in table}


def row_digest(row: Row) -> str:
    """Return a digest of everything in a row that its log-probabilities depend on: its sound, not where that lies."""
    messages = map_audios(lambda path: None, row.labels.get("messages", ()))
    clips = [[clip.offset, clip.duration, _sound_digest(clip.path)] for clip in row.clips]
    return files.digest([row.labels.get("chosen"), row.labels.get("rejected"), messages, clips])


def cache_digest(net: nn.Module, samples: Samples, recipe: Config, precision: str) -> str:
    """Return a digest of everything but the row that log-probabilities depend on."""
    return files.digest(
        [
            weights_digest(net, with_adapters=False),  # adapters begin without effect
            recipe.get("model"),
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
        return "absent"  # its row turns out to be unusable elsewhere


@cache
def _file_digest(path: Path, changed_ns: int) -> str:
    return files.file_digest(path)


def _read(file: Path) -> Table:
    """Read what all processes of earlier runs have computed."""
    lines = chain.from_iterable(map(files.read_jsonl, sorted(file.parent.glob(f"{file.name}-*.jsonl"))))
    return {line["row"]: (line["chosen"], line["rejected"]) for line in lines}


def _merge(table: Table) -> Table:
    """Return the tables of all processes as one."""
    return {key: pair for one in gather(table) for key, pair in one.items()}
