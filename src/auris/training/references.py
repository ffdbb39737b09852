"""The reference of preference training: the net as it is before the first step.

Its log-probabilities of every pair are computed once and kept on disk, under a key that everything they follow from is
part of: a cache that does not belong to a run is never read. What a killed run has computed is not computed again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch import nn

from auris.audio import Sound
from auris.data.batches import by_length, pack
from auris.data.lengths import Lengths
from auris.data.rows import Row
from auris.data.samples import Samples
from auris.errors import UserError
from auris.model import adapters, dtensor
from auris.model.audio_lm import AudioLM
from auris.model.pack import to_device
from auris.text.chat import map_audios
from auris.training import sharding
from auris.training.objectives.dpo import DPO, answer_logps

if TYPE_CHECKING:
    from auris.training.module import AudioLMModule

Table = dict[str, tuple[float, float]]
"""Hash of a row's content -> log-probabilities of its chosen and its rejected answer."""

# Every piece of a dialogue that a template writes in its own way: what it makes of this is part of the key.
_PROBE = (
    {"role": "user", "content": [{"type": "audio", "audio": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": [{"type": "audio", "audio": "d"}]},
    {"role": "assistant", "content": "e"},
)


def check(objective: nn.Module, samples: Samples) -> None:
    """That the reference, asked once, hears what the policy hears in every epoch.

    Raises ValueError where training rows are augmented and the reference's answers are cached.
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
    """What a live reference will be, of a net on the meta device; None where there will be none."""
    return copy.deepcopy(net) if isinstance(objective, DPO) and objective.reference == "live" else None


def provide(module: AudioLMModule, twin: AudioLM | None) -> None:
    """Give a module that trains on pairs its reference: the net with its initial weights, cached or as a copy.

    To be called when the net has them, before a checkpoint is restored, and with the data set up. Other objectives have
    no reference.
    """
    objective, net = module.objective, module.net
    if not isinstance(objective, DPO):
        return
    if twin is not None:
        twin.requires_grad_(False)
        if module.meshes is not None:
            sharding.shard(twin, module.meshes)
        sharding.materialise(twin, module.trainer.strategy.root_device, draw=False)
        sharding.copy(net, twin)
        objective.freeze(twin)
        return
    trainer = module.trainer
    data = trainer.datamodule
    check(objective, data.samples)
    net.to(trainer.strategy.root_device)
    key = _key(net, data.valid_samples, module.hparams["recipe"], trainer.precision)
    if data.examined:  # of a step that is taken apart, nothing else is looked at
        numbers = sorted({number for number, _ in data.examined})
        train, valid, tokens = [data.rows[number] for number in numbers], [], data.lengths.tokens[numbers]
    else:
        train, valid = data.rows, data.valid_rows
        tokens = np.concatenate([data.lengths.tokens, data.valid_lengths.tokens])
    # Lightning builds models where new tensors go to the device; samples are made on the host.
    with torch.device("cpu"), trainer.precision_plugin.forward_context():
        table = compute(
            net,
            [*train, *valid],
            tokens,
            data.valid_samples,
            file=data.cache_dir / f"references-{key}",
            token_budget=data.token_budget,
            world=trainer.world_size,
            rank=trainer.global_rank,
            together=module.meshes.tensor.size() if module.meshes and module.meshes.tensor else 1,
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
    world: int = 1,
    rank: int = 0,
    together: int = 1,
) -> Table:
    """Log-probabilities of both answers of every row under the net; what the cache has is not computed again.

    Args:
        tokens: (rows,) length of each row, 0 for one that cannot be used.
        samples: how rows are seen; not augmented.
        file: the cache without its ending: process r of `world` adds to `<file>-r.jsonl`, and reads all of them.
        token_budget: most tokens in a pack.
        together: of so many neighbouring processes each computes the same packs (tensor parallelism).
    """
    known = _share(_read(file), world)
    wanted = {content(row): number for number, row in enumerate(rows) if tokens[number]}  # equal rows once
    missing = {number: key for key, number in wanted.items() if key not in known}
    rank_zero_info(
        f"reference log-probabilities: {len(wanted) - len(missing)} of {len(wanted)} pairs are in {file}-*.jsonl"
    )
    todo = np.where(np.isin(np.arange(len(rows)), list(missing)), tokens, 0)
    # As many packs on every process: a sharded net needs all of them in each forward. Empty ones yield nothing.
    packs = by_length(Lengths(todo, {}, {}), token_budget, world // together)[rank // together :: world // together]
    device = next(net.parameters()).device
    learning = [module for module in net.modules() if module.training]
    net.eval()
    own = file.with_name(f"{file.name}-{rank}.jsonl")
    _prepare(own)
    found: Table = {}
    for numbers in track(packs, description="reference log-probabilities", disable=rank > 0 or not packs):
        batch = to_device(pack(rows, [(number, None) for number in numbers], samples), device)
        logps = answer_logps(net, batch)[0].tolist()
        new = {missing[number]: tuple(pair) for number, pair in zip(batch["rows"], logps, strict=True)}
        _append(own, new)
        found |= new
    for module in learning:
        module.training = True
    return known | _share(found, world)


def by_id(table: Table, rows: Iterable[Row]) -> Table:
    """A table by the ids of these rows, of those that it has."""
    keys = {row.id: content(row) for row in rows if not row.problem}
    return {name: table[key] for name, key in keys.items() if key in table}


def content(row: Row) -> str:
    """A hash of all that a row's log-probabilities follow from: its sound too, but not where that lies."""
    said = {key: row.labels.get(key) for key in ("chosen", "rejected")}
    said["messages"] = map_audios(lambda path: None, row.labels.get("messages", ()))
    heard = [f"{clip.offset} {clip.duration} {_sound(clip.path)}" for clip in row.clips]
    return _hash(fact.encode() for fact in (json.dumps(said, sort_keys=True), *heard))


def digest(net: nn.Module) -> str:
    """A hash of all of a net's weights, wherever they came from; not of adapters, which begin without effect."""
    named = {adapters.base_name(name): tensor for name, tensor in net.state_dict().items()}
    return _hash(
        piece
        for name in sorted(named.keys() - {None})
        for piece in (
            f"{name} {named[name].dtype} {tuple(named[name].shape)}".encode(),
            dtensor.whole(named[name].detach()).cpu().contiguous().flatten().view(torch.uint8).numpy(),
        )
    )


def _key(net: nn.Module, samples: Samples, recipe: Mapping[str, Any], precision: str) -> str:
    """What log-probabilities follow from beside a row: weights, architecture, vocabulary, template, precision."""
    facts = [
        digest(net),
        json.dumps(recipe.get("model"), sort_keys=True),
        samples.tokenizer.fast.backend_tokenizer.to_str(),
        repr(samples.prompt.turns(_PROBE, supervise=True)),
        repr(samples.geometry),
        samples.long_audio,
        str(precision),
    ]
    return _hash(fact.encode() for fact in facts)


def _sound(source: Path | Sound) -> str:
    try:
        return _hash_file(source, source.stat().st_mtime_ns) if isinstance(source, Path) else _hash([source.read()])
    except (OSError, ValueError):
        return "absent"  # which makes its row unusable elsewhere


@cache
def _hash_file(path: Path, changed_ns: int) -> str:
    return _hash([path.read_bytes()])


def _hash(pieces: Iterable[Any]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        total.update(piece)
        total.update(b"\0")
    return total.hexdigest()


# --- the cache ----------------------------------------------------------------------------------------------------


def _read(file: Path) -> Table:
    """What all processes of earlier runs have written. Raises ValueError for a line that none of them has."""
    table: Table = {}
    for path in sorted(file.parent.glob(f"{file.name}-*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # half a line of a run that was killed: its row is computed again
            pair = tuple(entry.get(which) for which in ("chosen", "rejected")) if isinstance(entry, dict) else ()
            if not pair or not all(isinstance(logp, float) and math.isfinite(logp) for logp in pair):
                raise UserError(
                    f"{path}, line {number}: {line[:80]!r} is no pair of log-probabilities; delete the file"
                )
            table[entry["row"]] = pair
    return table


def _prepare(path: Path) -> None:
    """Make a cache file ready to be added to, also one that ends in half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        _append_text(path, "\n")


def _append(path: Path, new: Table) -> None:
    lines = (
        json.dumps({"row": key, "chosen": chosen, "rejected": rejected}) for key, (chosen, rejected) in new.items()
    )
    _append_text(path, "".join(f"{line}\n" for line in lines))


def _append_text(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as out:
        out.write(text)


def _share(table: Table, world: int) -> Table:
    """The tables of all processes as one."""
    if world == 1:
        return table
    tables: list[Any] = [None] * world
    torch.distributed.all_gather_object(tables, table)
    return {key: pair for one in tables for key, pair in one.items()}
