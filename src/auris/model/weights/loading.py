"""Loading of weights into a net from any supported layout: all of them or none.

All names and shapes are checked before the first tensor is copied. Each rank reads only its own slices, so at most one
file is in memory in addition to the model.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auris.errors import UserError
from auris.model import adapters
from auris.model.dtensor import local_part
from auris.model.vocabulary import input_table, output_layer
from auris.model.weights.layouts import LAYOUTS, Layout
from auris.model.weights.tensors import TensorSource

if TYPE_CHECKING:  # importing transformers takes seconds
    from auris.model.audio_lm import AudioLM

_SHOWN = 5  # faults in an error message
_CHUNK = 1024  # rows of a vocabulary that are read at once


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Initial weights of a net or of some of its parts. The attributes are arguments of `load`."""

    source: TensorSource
    layout: str
    parts: Collection[str] | None
    label: str

    @property
    def is_whole(self) -> bool:
        """Return whether loading replaces every tensor of a net."""
        return self.parts is None and not LAYOUTS[self.layout].parts

    def load(self, net: AudioLM, *, seed: int) -> None:
        """Load the weights into a net."""
        load(net, self.source, layout=self.layout, parts=self.parts, label=self.label, seed=seed)


@torch.no_grad()
def load(
    net: AudioLM,
    source: TensorSource,
    *,
    layout: str,
    parts: Collection[str] | None = None,
    label: str,
    seed: int = 0,
) -> None:
    """Fill parts of a net from a source: all of them or none.

    The vocabulary can grow. If the source is only a language model and has fewer rows than the net, the old rows are
    copied exactly, and the new ones are drawn from N(mean, standard deviation) of each channel over the old rows,
    identically on every rank.

    Args:
        net: a net with memory, plain or sharded. Dtypes and adapters do not change.
        source: tensors, in files or in memory.
        layout: layout of the source's names, a key of LAYOUTS.
        parts: parts of the net (`encoder`, ..., `llm`); None: all that the layout contains.
        label: name of the source at the beginning of error messages, such as `weights.llm=DIR`.
        seed: seed of the new rows of a grown vocabulary.

    Raises:
        UserError: a tensor is missing, unexpected or has another shape (both are shown), or the source lacks a part.
    """
    label = f"{label} ({layout} layout)"
    match = _match(net, source, LAYOUTS[layout], _choose(net, parts, LAYOUTS[layout], label))
    if match.faults:
        rest = f"; and {len(match.faults) - _SHOWN} more" if len(match.faults) > _SHOWN else ""
        raise UserError(f"{label} does not fit the model: {'; '.join(match.faults[:_SHOWN])}{rest}")
    assert not any(tensor.is_meta for tensor in match.targets.values()), "materialise the net first"
    for layout_name, name in match.stored.items():  # in the order of the source, so that each file is opened once
        row = 0
        for member in match.wanted.get(layout_name, ()):
            tensor = match.targets[member]
            if member in match.grown:
                _copy_grown(tensor, source, name, seed=zlib.crc32(f"{seed} {member}".encode()))
            else:
                _copy(tensor, source, name, first_row=row)
                row += tensor.shape[0] if tensor.ndim else 0


def find_mismatches(net: AudioLM, source: TensorSource, layout: str) -> list[str]:
    """Return why the parts of a layout cannot be loaded, one phrase per fault. The net may be on the meta device."""
    return _match(net, source, LAYOUTS[layout], _choose(net, None, LAYOUTS[layout], layout)).faults


@dataclass(frozen=True, kw_only=True)
class _Match:
    """Tensors of a net matched with those of a source.

    Attributes:
        targets: model name -> tensor of the net.
        stored: layout name -> its spelling in the source, in the order of the source.
        wanted: layout name -> model names, several if they are concatenated.
        grown: model names of the tables that grow.
        faults: one phrase for each tensor that does not fit.
    """

    targets: dict[str, Tensor]
    stored: dict[str, str]
    wanted: dict[str, list[str]]
    grown: set[str]
    faults: list[str]


def _match(net: AudioLM, source: TensorSource, table: Layout, parts: Collection[str]) -> _Match:
    named = {adapters.base_name(name): t for name, t in net.state_dict(keep_vars=True).items()}
    targets = {name: t for name, t in named.items() if name is not None and _part(name) in parts}
    stored = {table.spell(name): name for name in filter(table.uses, source.keys())}
    wanted = table.group(targets)
    faults = [f"{name} has no counterpart in the layout" for name in targets if table.layout_name(name) is None]
    faults += _untie(wanted, targets, stored, source)
    faults += [f"{layout_name} is missing" for layout_name in wanted if layout_name not in stored]
    faults += [
        f"{name} is unexpected"
        for layout_name, name in stored.items()
        if layout_name not in wanted and all(_part(member) in parts for member in table.model_names(layout_name))
    ]
    is_llm = all(_part(member) == "llm" for layout_name in stored for member in table.model_names(layout_name))
    vocabulary, grown = _vocabulary(net), set()
    for layout_name in filter(stored.__contains__, wanted):
        first, members = wanted[layout_name][0], [targets[name] for name in wanted[layout_name]]
        shape, expected = source.shape(stored[layout_name]), _joined_shape(members)
        other_rows = first in vocabulary and shape[1:] == expected[1:] and shape[0] != expected[0]
        if other_rows and is_llm and shape[0] < expected[0]:
            grown.add(first)
        elif shape != expected:
            hint = f" (set model.vocab_rows={shape[0]} to match its vocabulary)" if other_rows else ""
            faults.append(f"{stored[layout_name]} has shape {shape}, expected {expected}{hint}")
    return _Match(targets=targets, stored=stored, wanted=wanted, grown=grown, faults=faults)


def _part(name: str) -> str:
    return name.partition(".")[0]


def _choose(net: AudioLM, parts: Collection[str] | None, table: Layout, label: str) -> list[str]:
    """Return the parts to load. Raise UserError if the net or the layout lacks one of them."""
    available = [name for name, _ in net.named_children() if not table.parts or name in table.parts]
    for part in parts or ():
        if part not in available:
            raise UserError(f"{label} has no {part}: expected {' or '.join(available)}")
    return available if parts is None else list(parts)


def _untie(
    wanted: dict[str, list[str]], targets: Mapping[str, Tensor], stored: Mapping[str, str], source: TensorSource
) -> list[str]:
    """Remove names that tied tensors do not need from `wanted`; return a phrase for each stored tensor that differs."""
    names: dict[int, list[str]] = {}
    for layout_name, members in wanted.items():
        names.setdefault(id(targets[members[0]]), []).append(layout_name)
    faults: list[str] = []
    for tied in names.values():
        present = [layout_name for layout_name in tied if layout_name in stored]
        for layout_name in set(tied) - set(present or tied[:1]):
            del wanted[layout_name]
        faults.extend(
            f"{stored[layout_name]} differs from {stored[present[0]]}, but the model ties them"
            for layout_name in present[1:]
            if not torch.equal(source.read(stored[present[0]]), source.read(stored[layout_name]))
        )
    return faults


def _vocabulary(net: AudioLM) -> set[str]:
    """Return the model names of the tensors that have one row per token."""
    ends = (input_table(net.llm), output_layer(net.llm))
    rows = {id(parameter) for end in ends for parameter in end.parameters()}
    return {name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) in rows}


def _joined_shape(tensors: list[Tensor]) -> tuple[int, ...]:
    if len(tensors) == 1:
        return tuple(tensors[0].shape)
    return (sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:])


def _copy(tensor: Tensor, source: TensorSource, name: str, *, first_row: int) -> None:
    """Copy a stored tensor, or those rows of a concatenated one that begin at `first_row`."""
    local, index = local_part(tensor)
    if not local.numel():  # more processes than rows; files do not support empty slices
        return
    if first_row:
        index = (slice(index[0].start + first_row, index[0].stop + first_row), *index[1:])
    local.copy_(source.read(name, index))


def _copy_grown(tensor: Tensor, source: TensorSource, name: str, *, seed: int) -> None:
    """Copy a stored table that has fewer rows, and draw the remaining rows."""
    local, (rows, *columns) = local_part(tensor)
    old = source.shape(name)[0]
    stored = slice(min(rows.start, old), min(rows.stop, old))
    n_stored = stored.stop - stored.start
    local[:n_stored].copy_(source.read(name, (stored, *columns)))
    if n_stored < len(local):
        new = slice(max(rows.start, old) - old, rows.stop - old)
        local[n_stored:].copy_(_draw_rows(source, name, len(tensor) - old, seed)[(new, *columns)])


def _draw_rows(source: TensorSource, name: str, n_rows: int, seed: int) -> Tensor:
    """Draw rows (n_rows, ...) from N(mean, standard deviation) of each channel of a stored table."""
    old, *width = source.shape(name)
    sums, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for start in range(0, old, _CHUNK):
        rows = source.read(name, (slice(start, min(start + _CHUNK, old)),)).double()
        sums += rows.sum(0)
        squares += rows.square().sum(0)
    mean = sums / old
    deviation = (squares / old - mean.square()).clamp(min=0).sqrt()
    noise = torch.randn(n_rows, *width, generator=torch.Generator().manual_seed(seed))
    return mean.float() + deviation.float() * noise
