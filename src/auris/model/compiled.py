"""torch.compile over blocks of the encoder and of the LLM, in place: names, weights and checkpoints stay as they are.

Each kind of block is compiled once for all of its layers and all lengths of packs. On a GPU in half precision that is
one graph; elsewhere attention, a call for each sequence, cuts a block in two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch._dynamo
import torch.fx.experimental._config
from torch import nn

from auris.errors import UserError


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable = "inductor") -> None:
    """Have every block compiled when it is first called.

    Two settings of torch are changed, for the whole process. Without the first, a cut within attention would also cut
    every function around it; without the second, lengths that happen to be equal in the first pack would be taken to
    be equal in all.

    Raises ValueError for a backend that torch does not have.
    """
    known = torch._dynamo.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in known:
        raise UserError(f"compile={backend}: expected null or one of {', '.join(known)}")
    torch._dynamo.config.nested_graph_breaks = True
    torch.fx.experimental._config.use_duck_shape = False
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
