"""Load weights in any supported layout into a net, either all of the requested weights or none.

All names and shapes are checked before the first tensor is copied. Each rank reads only its own slices, so at most one
file is in memory in addition to the model.

As in `layouts`, a tensor's model name is the name in auris and its layout name is the name in a release. Its stored
name is the spelling of the layout name in the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
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

_MAX_SHOWN = 5  # maximum number of faults in an error message
_NOISE = 0.01  # standard deviation of a new row of a vocabulary, relative to that of the old rows
_CHUNK = 1024  # number of rows of a vocabulary that are read at once


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Initial weights of a net or of some of its parts. The attributes are the arguments of `load`."""

    source: TensorSource
    layout: str
    parts: Collection[str] | None
    label: str

    @property
    def is_complete(self) -> bool:
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
    """Load all or some parts of a net from a source. If any tensor does not fit, nothing is loaded.

    The vocabulary can grow. If the source is only a language model and its embedding has fewer rows than the net's, its
    rows are copied exactly. The new rows are the mean of the copied rows plus little noise, identical on every rank, so
    that they hardly take probability from the other tokens (Hewitt, "Initializing new word embeddings for pretrained
    language models", 2021). Rows of the size of the old ones would take a third of it.

    Args:
        net: a net whose tensors are allocated (not on the meta device), plain or sharded. Dtypes and adapters do not
            change.
        source: tensors, in files or in memory.
        layout: layout of the source's names, a key of LAYOUTS.
        parts: parts of the net (`encoder`, ..., `llm`); None: all parts that the layout contains.
        label: name of the source at the beginning of error messages, such as `weights.llm=DIR`.
        seed: seed of the new rows of a grown vocabulary.

    Raises:
        UserError: a tensor is missing or unexpected, a shape or a tied tensor differs, or the source lacks a part.
    """
    match = _match(net, source, layout, parts, label)
    if match.faults:
        raise UserError(describe_misfit(match.faults, label, layout))
    assert not any(tensor.is_meta for tensor in match.targets.values()), "materialise the net first"
    # Tensors are read in the order of the source, so that each file is opened once.
    for layout_name, stored_name in match.stored_names.items():
        first_row = 0
        for model_name in match.model_names.get(layout_name, ()):
            tensor = match.targets[model_name]
            if model_name in match.grown:
                _copy_grown(tensor, source, stored_name, seed=zlib.crc32(f"{seed} {model_name}".encode()))
            else:
                _copy(tensor, source, stored_name, first_row=first_row)
                first_row += tensor.shape[0] if tensor.ndim else 0


def find_mismatches(
    net: AudioLM, source: TensorSource, layout: str, *, parts: Collection[str] | None = None, label: str
) -> list[str]:
    """Return why `load` would refuse a source, one phrase per fault. The net may be on the meta device.

    Raises:
        UserError: the source or the net lacks a part.
    """
    return _match(net, source, layout, parts, label).faults


def describe_misfit(faults: Sequence[str], label: str, layout: str) -> str:
    """Return the message about a source that does not fit a net. Only the first faults are listed."""
    n_not_shown = len(faults) - _MAX_SHOWN
    more = f"; and {n_not_shown} more" if n_not_shown > 0 else ""
    return f"{label} ({layout} layout) does not fit the model: {'; '.join(faults[:_MAX_SHOWN])}{more}"


@dataclass(frozen=True, kw_only=True)
class _Match:
    """The tensors of a net, matched with the tensors of a source.

    Attributes:
        targets: model name -> tensor of the net.
        stored_names: layout name -> stored name, in the order of the source.
        model_names: layout name -> model names; several names if the stored tensor is a concatenation.
        grown: model names of the tensors that have more rows than the stored ones, because the vocabulary grows.
        faults: one phrase for each tensor that does not fit.
    """

    targets: dict[str, Tensor]
    stored_names: dict[str, str]
    model_names: dict[str, list[str]]
    grown: set[str]
    faults: list[str]


def _match(
    net: AudioLM, source: TensorSource, layout_name: str, requested_parts: Collection[str] | None, label: str
) -> _Match:
    layout = LAYOUTS[layout_name]
    parts = _choose_parts(net, requested_parts, layout, f"{label} ({layout_name} layout)")
    named = {adapters.base_name(name): t for name, t in net.state_dict(keep_vars=True).items()}
    targets = {name: t for name, t in named.items() if name is not None and _part(name) in parts}
    stored_names = {layout.spell(name): name for name in filter(layout.is_used, source.keys())}
    model_names = layout.group(targets)
    faults = [f"{name} has no counterpart in the layout" for name in targets if layout.layout_name(name) is None]
    faults += _drop_tied_names(model_names, targets, stored_names, source)
    faults += [f"{layout_name} is missing" for layout_name in model_names if layout_name not in stored_names]
    faults += [
        f"{stored_name} is unexpected"
        for layout_name, stored_name in stored_names.items()
        if layout_name not in model_names and all(_part(name) in parts for name in layout.model_names(layout_name))
    ]
    source_has_only_llm = all(
        _part(name) == "llm" for layout_name in stored_names for name in layout.model_names(layout_name)
    )
    vocabulary_names, grown = _vocabulary_names(net), set()
    for layout_name in filter(stored_names.__contains__, model_names):
        first_name = model_names[layout_name][0]
        shape = source.shape(stored_names[layout_name])
        expected = _concatenated_shape([targets[name] for name in model_names[layout_name]])
        differs_in_rows = first_name in vocabulary_names and shape[1:] == expected[1:] and shape[0] != expected[0]
        if differs_in_rows and source_has_only_llm and shape[0] < expected[0]:
            grown.add(first_name)
        elif shape != expected:
            hint = f" (set model.vocab_rows={shape[0]} to match its vocabulary)" if differs_in_rows else ""
            faults.append(f"{stored_names[layout_name]} has shape {shape}, expected {expected}{hint}")
    return _Match(targets=targets, stored_names=stored_names, model_names=model_names, grown=grown, faults=faults)


def _part(model_name: str) -> str:
    return model_name.partition(".")[0]


def _choose_parts(net: AudioLM, parts: Collection[str] | None, layout: Layout, label: str) -> list[str]:
    """Return the parts to load. Raise UserError if the net or the layout lacks one of them."""
    available = [name for name, _ in net.named_children() if not layout.parts or name in layout.parts]
    for part in parts or ():
        if part not in available:
            raise UserError(f"{label} has no {part}: expected {' or '.join(available)}")
    return available if parts is None else list(parts)


def _drop_tied_names(
    model_names: dict[str, list[str]],
    targets: Mapping[str, Tensor],
    stored_names: Mapping[str, str],
    source: TensorSource,
) -> list[str]:
    """Remove names of tied tensors from `model_names` if the source stores the tensor only under its other name.

    Returns:
        A fault for each pair of stored tensors that the model ties but whose values differ.
    """
    layout_names: dict[int, list[str]] = {}  # by the identity of the net's tensor
    for layout_name, names in model_names.items():
        layout_names.setdefault(id(targets[names[0]]), []).append(layout_name)
    faults: list[str] = []
    for tied in layout_names.values():
        stored = [layout_name for layout_name in tied if layout_name in stored_names]
        for layout_name in set(tied) - set(stored or tied[:1]):
            del model_names[layout_name]
        first, *others = [stored_names[layout_name] for layout_name in stored] or [""]
        faults.extend(
            f"{other} differs from {first}, but the model ties them"
            for other in others
            if not torch.equal(source.read(first), source.read(other))
        )
    return faults


def _vocabulary_names(net: AudioLM) -> set[str]:
    """Return the model names of the tensors that have one row per token of the vocabulary."""
    modules = (input_table(net.llm), output_layer(net.llm))
    parameter_ids = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) in parameter_ids}


def _concatenated_shape(tensors: list[Tensor]) -> tuple[int, ...]:
    if len(tensors) == 1:
        return tuple(tensors[0].shape)
    return (sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:])


def _copy(tensor: Tensor, source: TensorSource, name: str, *, first_row: int) -> None:
    """Fill a tensor from a stored tensor. If that is a concatenation, its rows from `first_row` on are copied."""
    local, index = local_part(tensor)
    if not local.numel():  # there are more processes than rows, and files do not support empty slices
        return
    if first_row:
        index = (slice(index[0].start + first_row, index[0].stop + first_row), *index[1:])
    local.copy_(source.read(name, index))


def _copy_grown(tensor: Tensor, source: TensorSource, name: str, *, seed: int) -> None:
    """Fill a tensor from a stored tensor with fewer rows, and draw the remaining rows."""
    local, (rows, *columns) = local_part(tensor)
    n_old = source.shape(name)[0]
    old_rows = slice(min(rows.start, n_old), min(rows.stop, n_old))
    n_copied = old_rows.stop - old_rows.start
    local[:n_copied].copy_(source.read(name, (old_rows, *columns)))
    if n_copied < len(local):
        new_rows = slice(max(rows.start, n_old) - n_old, rows.stop - n_old)
        local[n_copied:].copy_(_draw_rows(source, name, len(tensor) - n_old, seed)[(new_rows, *columns)])


def _draw_rows(source: TensorSource, name: str, n_rows: int, seed: int) -> Tensor:
    """Draw rows (n_rows, ...) from N(mean, `_NOISE` x standard deviation) of each channel of a stored tensor."""
    n_old, *width = source.shape(name)
    sums, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for start in range(0, n_old, _CHUNK):
        rows = source.read(name, (slice(start, min(start + _CHUNK, n_old)),)).double()
        sums += rows.sum(0)
        squares += rows.square().sum(0)
    mean = sums / n_old
    deviation = (squares / n_old - mean.square()).clamp(min=0).sqrt()
    noise = torch.randn(n_rows, *width, generator=torch.Generator().manual_seed(seed))
    return mean.float() + _NOISE * deviation.float() * noise
