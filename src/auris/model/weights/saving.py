"""Writing weights for others to read: under the names of a released layout, in one safetensors file or in shards.

`huggingface_hub.save_torch_state_dict` writes the same files, but takes the whole state dict at once, drops tied
tensors and gives files their names while they are incomplete. Here one shard is in the host's memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from auris.errors import UserError
from auris.files import write_json
from auris.model.weights.layouts import LAYOUTS


def export_tensors(state: Mapping[str, Tensor], layout: str) -> Iterator[tuple[str, Tensor]]:
    """Yield our tensors under the names of a layout, joined where they are joined there; values and dtypes unchanged.

    Raises:
        UserError: tensors have no counterpart in that layout.
    """
    table = LAYOUTS[layout]
    if unmatched := [name for name in state if table.theirs(name) is None]:
        raise UserError(f"no counterpart in the {layout} layout: {', '.join(unmatched)}")
    for theirs, members in table.group(state).items():
        tensors = [state[name].detach() for name in members]
        yield theirs, tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def write_sharded(tensors: Iterable[tuple[str, Tensor]], out: Path, *, max_shard_bytes: int = 4_000_000_000) -> None:
    """Write model.safetensors, or shards and their index if one file would be larger than `max_shard_bytes`.

    Files get their names when all of them are complete, the index last.

    Raises:
        UserError: the directory holds weights already.
    """
    out.mkdir(parents=True, exist_ok=True)
    if taken := sorted(out.glob("model*.safetensors*")):
        raise UserError(f"{out} holds weights already ({taken[0].name}): choose another directory (out=DIR)")
    written: list[tuple[Path, list[str]]] = []
    size = 0
    for number, shard in enumerate(_cut(tensors, max_shard_bytes)):
        file = out / f"model-{number:05d}.partial"
        save_file(_own_memory(shard), file, metadata={"format": "pt"})
        written.append((file, list(shard)))
        size += sum(tensor.nbytes for tensor in shard.values())
    if len(written) == 1:
        written[0][0].rename(out / "model.safetensors")
        return
    shards: dict[str, str] = {}
    for number, (file, names) in enumerate(written, start=1):
        final = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        file.rename(out / final)
        shards |= dict.fromkeys(names, final)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": shards}, indent=2)


def _cut(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Yield runs of tensors of at most `max_bytes` together; a larger tensor is a run of its own."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _own_memory(shard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors needs them: on the host, contiguous, and no two in the same memory (tied ones)."""
    taken: set[int] = set()
    own = {}
    for name, tensor in shard.items():
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own
