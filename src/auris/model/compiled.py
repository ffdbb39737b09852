"""torch.compile for the blocks of the encoder and of the LLM, in place: names, weights and checkpoints do not change.

All layers of a kind share one compilation for packs of any length. On a GPU in half precision, a block is one graph.
On other devices and in other precisions, attention makes one call per sequence. The number of calls then depends on the
data, so attention splits the block in two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from auris import compat
from auris.errors import UserError


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable = "inductor") -> None:
    """Compile every block when it is first called. This also changes two settings of torch for the whole process.

    Raises:
        UserError: torch does not have this backend.
    """
    available = torch.compiler.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in available:
        raise UserError(f"compile={backend}: expected null or one of {', '.join(available)}")
    compat.set_compile_options()
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
