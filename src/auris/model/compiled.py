"""torch.compile for the blocks of the encoder and of the LLM, in place: names, weights and checkpoints do not change.

All layers of a kind and all lengths of packs share one compilation. On a GPU in half precision a block is one graph.
Elsewhere, attention splits it in two, because there attention is one call per sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from auris import compat
from auris.errors import UserError


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable = "inductor") -> None:
    """Compile every block when it is first called. Two settings of torch change for the whole process.

    Raises:
        UserError: Torch does not have this backend.
    """
    available = torch.compiler.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in available:
        raise UserError(f"compile={backend}: expected null or one of {', '.join(available)}")
    compat.compile_around_graph_breaks()
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
