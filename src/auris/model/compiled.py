"""torch.compile over blocks of the encoder and of the LLM, in place: names, weights and checkpoints stay as they are.

Each kind of block is compiled once for all of its layers and all lengths of packs. On a GPU in half precision that is
one graph; elsewhere attention, a call for each sequence, cuts a block in two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from auris import compat
from auris.errors import UserError


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable = "inductor") -> None:
    """Have every block compiled when it is first called. Two settings of torch change for the whole process.

    Raises ValueError for a backend that torch does not have.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in known:
        raise UserError(f"compile={backend}: expected null or one of {', '.join(known)}")
    compat.compile_around_graph_breaks()
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
