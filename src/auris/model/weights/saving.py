"""Export of weights under the names of a released layout, in one safetensors file or in shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from auris.errors import UserError
from auris.model.weights.layouts import LAYOUTS


def export_tensors(state: Mapping[str, Tensor], layout: str) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors under the names of a layout, concatenated where it requires that. Values and dtypes do not change.

    Raises:
        UserError: the layout has no counterpart for some tensors.
    """
    table = LAYOUTS[layout]
    if unmatched := [name for name in state if table.layout_name(name) is None]:
        raise UserError(f"no counterpart in the {layout} layout: {', '.join(unmatched)}")
    for layout_name, members in table.group(state).items():
        tensors = [state[name].detach() for name in members]
        yield layout_name, tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def write_sharded(tensors: Iterable[tuple[str, Tensor]], out: Path, *, max_shard_bytes: int = 4_000_000_000) -> None:
    """Write model.safetensors, or shards and their index if one file would be larger than `max_shard_bytes`.

    Raises:
        UserError: the directory already contains weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    if taken := sorted(out.glob("model*.safetensors*")):
        raise UserError(f"{out} already contains weights ({taken[0].name}): choose another directory (out=DIR)")
    save_torch_state_dict(_own_memory(dict(tensors)), out, max_shard_size=max_shard_bytes)


def _own_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the host that share no memory. Otherwise only one of several tied ones is saved."""
    taken: set[int] = set()
    own = {}
    for name, tensor in state.items():
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own
