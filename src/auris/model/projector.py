"""The projector: pooled encoder frames to the LLM's width. Widths are late facts, completed by AudioLM."""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Linear):
    """One matrix and a bias: both released systems."""

    def __init__(self, *, in_width: int, out_width: int) -> None:
        super().__init__(in_width, out_width)


class MLP(nn.Module):
    """Two layers with a GELU between; the hidden width is the LLM's if not given."""

    def __init__(self, *, in_width: int, out_width: int, hidden: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(in_width, hidden or out_width)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden or out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))
