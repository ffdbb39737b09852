"""Loading weights into a net, whatever the names they are stored under: all of them or nothing.

Every name and shape is checked before the first tensor is copied. Tensors are read slice by slice, by each rank its own
part only, so at most one file is in memory in addition to the model.
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
from auris.model.weights.layouts import LAYOUTS, Layout
from auris.model.weights.tensors import TensorSource

if TYPE_CHECKING:  # it brings transformers, which takes seconds
    from auris.model.audio_lm import AudioLM

_SHOWN = 5  # faults in a message
_CHUNK = 1024  # rows of a vocabulary that are read at a time


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights that a net, or some of its parts, starts from: the arguments of `load`."""

    source: TensorSource
    layout: str
    parts: Collection[str] | None
    label: str

    @property
    def is_whole(self) -> bool:
        """Whether loading leaves no tensor of a net as it was."""
        return self.parts is None and not LAYOUTS[self.layout].parts

    def load(self, net: AudioLM, *, seed: int) -> None:
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
    """Fill a net's parts from a source: all of them or nothing.

    A vocabulary can grow: if the source is a language model alone and has fewer rows than the net, the old rows are
    copied exactly and the new ones drawn from N(mean, standard deviation) of each channel over the old rows, the same
    on every rank.

    Args:
        net: a net with memory, its tensors plain or sharded (each rank reads its own slices only). Dtypes stay as they
            are, and so do adapters.
        source: tensors, in files or in memory.
        layout: the layout of the source's names, a key of LAYOUTS.
        parts: parts of the net (`encoder`, ..., `llm`); all that the layout holds if not given.
        label: what the user calls the source, the beginning of every message: `weights.llm=DIR`.
        seed: seed of a grown vocabulary's new rows.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape (with both shapes), or the source lacks a part.
    """
    label = f"{label} ({layout} layout)"
    match = _match(net, source, LAYOUTS[layout], _choose(net, parts, LAYOUTS[layout], label))
    if match.faults:
        rest = f"; and {len(match.faults) - _SHOWN} more" if len(match.faults) > _SHOWN else ""
        raise UserError(f"{label} does not fit the model: {'; '.join(match.faults[:_SHOWN])}{rest}")
    assert not any(tensor.is_meta for tensor in match.targets.values()), "materialise the net first"
    for theirs, name in match.stored.items():  # in the source's order, so that each file is opened once
        row = 0
        for member in match.wanted.get(theirs, ()):
            tensor = match.targets[member]
            if member in match.grown:
                _copy_grown(tensor, source, name, seed=zlib.crc32(f"{seed} {member}".encode()))
            else:
                _copy(tensor, source, name, first_row=row)
                row += tensor.shape[0] if tensor.ndim else 0


def find_mismatches(net: AudioLM, source: TensorSource, layout: str) -> list[str]:
    """Return why the parts that a layout holds cannot be loaded, a phrase each. The net may be on the meta device."""
    return _match(net, source, LAYOUTS[layout], _choose(net, None, LAYOUTS[layout], layout)).faults


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A net's tensors matched with a source's.

    Attributes:
        targets: our name -> the net's tensor.
        stored: their name -> the source's own spelling of it, in the source's order.
        wanted: their name -> ours, several where they are joined.
        grown: our names of the tables that grow.
        faults: what does not fit, a phrase each.
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
    faults = [f"{name} has no counterpart there" for name in targets if table.layout_name(name) is None]
    faults += _untie(wanted, targets, stored, source)
    faults += [f"{theirs} is missing" for theirs in wanted if theirs not in stored]
    faults += [
        f"{name} is unexpected"
        for theirs, name in stored.items()
        if theirs not in wanted and all(_part(known) in parts for known in table.model_names(theirs))
    ]
    llm_alone = all(_part(known) == "llm" for theirs in stored for known in table.model_names(theirs))
    vocabulary, grown = _vocabulary(net), set()
    for theirs in filter(stored.__contains__, wanted):
        first, members = wanted[theirs][0], [targets[name] for name in wanted[theirs]]
        found, expected = source.shape(stored[theirs]), _joined_shape(members)
        other_rows = first in vocabulary and found[1:] == expected[1:] and found[0] != expected[0]
        if other_rows and llm_alone and found[0] < expected[0]:
            grown.add(first)
        elif found != expected:
            hint = f" (set model.vocab_rows={found[0]} for its vocabulary)" if other_rows else ""
            faults.append(f"{stored[theirs]} has shape {found}, expected {expected}{hint}")
    return _Match(targets=targets, stored=stored, wanted=wanted, grown=grown, faults=faults)


def _part(name: str) -> str:
    return name.partition(".")[0]


def _choose(net: AudioLM, parts: Collection[str] | None, table: Layout, label: str) -> list[str]:
    """Return the parts to load. Raises UserError for one that the net or the layout lacks."""
    held = [name for name, _ in net.named_children() if not table.parts or name in table.parts]
    for part in parts or ():
        if part not in held:
            raise UserError(f"{label} has no {part}: expected {' or '.join(held)}")
    return held if parts is None else list(parts)


def _untie(
    wanted: dict[str, list[str]], targets: Mapping[str, Tensor], stored: Mapping[str, str], source: TensorSource
) -> list[str]:
    """Remove the names that a tied tensor does not need from `wanted`; return which tied tensors differ."""
    names: dict[int, list[str]] = {}
    for theirs, members in wanted.items():
        names.setdefault(id(targets[members[0]]), []).append(theirs)
    faults = []
    for tied in names.values():
        present = [theirs for theirs in tied if theirs in stored]
        for theirs in set(tied) - set(present or tied[:1]):
            del wanted[theirs]
        for theirs in present[1:]:
            if not torch.equal(source.read(stored[present[0]]), source.read(stored[theirs])):
                faults.append(f"{stored[theirs]} differs from {stored[present[0]]}, to which the model ties it")
    return faults


def _vocabulary(net: AudioLM) -> set[str]:
    """Return our names of the tensors that have a row per token."""
    ends = (net.llm.get_input_embeddings(), net.llm.get_output_embeddings())
    rows = {id(parameter) for end in ends for parameter in end.parameters()}
    return {name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) in rows}


def _joined_shape(tensors: list[Tensor]) -> tuple[int, ...]:
    if len(tensors) == 1:
        return tuple(tensors[0].shape)
    return (sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:])


def _copy(tensor: Tensor, source: TensorSource, name: str, *, first_row: int) -> None:
    """Copy a stored tensor, or the rows of a joined one from `first_row` on."""
    local, index = local_part(tensor)
    if not local.numel():  # more processes than rows; files know no empty slices
        return
    if first_row:
        index = (slice(index[0].start + first_row, index[0].stop + first_row), *index[1:])
    local.copy_(source.read(name, index))


def _copy_grown(tensor: Tensor, source: TensorSource, name: str, *, seed: int) -> None:
    """Copy a stored table that has fewer rows, and draw the remaining ones."""
    local, (rows, *columns) = local_part(tensor)
    old = source.shape(name)[0]
    known = slice(min(rows.start, old), min(rows.stop, old))
    n_known = known.stop - known.start
    local[:n_known].copy_(source.read(name, (known, *columns)))
    if n_known < len(local):
        new = slice(max(rows.start, old) - old, rows.stop - old)
        local[n_known:].copy_(_draw_rows(source, name, len(tensor) - old, seed)[(new, *columns)])


def _draw_rows(source: TensorSource, name: str, n_rows: int, seed: int) -> Tensor:
    """Draw new rows (n_rows, ...) from N(mean, standard deviation) of each channel of a stored table."""
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
