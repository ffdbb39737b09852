"""Export weights to one safetensors file or to shards.

The tensors get the names of a released model (its layout, see `layouts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from auris.errors import UserError
from auris.model.weights.layouts import LAYOUTS


def export_tensors(state: Mapping[str, Tensor], layout: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the layout name and the value of each tensor. Tensors with the same layout name are concatenated.

    Values and dtypes do not change.

    Args:
        state: the tensors of a net by name.
        layout: a key of LAYOUTS.

    Raises:
        UserError: the layout has no counterpart for some tensors.
    """
    if unmatched := [name for name in state if LAYOUTS[layout].layout_name(name) is None]:
        raise UserError(f"no counterpart in the {layout} layout: {', '.join(unmatched)}")
    for layout_name, names in LAYOUTS[layout].group(state).items():
        tensors = [state[name].detach() for name in names]
        yield layout_name, tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def write_sharded(tensors: Iterable[tuple[str, Tensor]], out: Path, *, max_shard_bytes: int = 4_000_000_000) -> None:
    """Write model.safetensors, or shards and their index if one file would be larger than `max_shard_bytes`.

    Raises:
        UserError: the directory already contains weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    if existing := sorted(out.glob("model*.safetensors*")):
        raise UserError(f"{out} already contains weights ({existing[0].name}): choose another directory (out=DIR)")
    save_torch_state_dict(_separate_memory(dict(tensors)), out, max_shard_size=max_shard_bytes)


def _separate_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the host that share no memory.

    If tied tensors shared their memory, `save_torch_state_dict` would save only one of them.
    """
    addresses: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in addresses:
            tensor = tensor.clone()
        addresses.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate
