"""Projectors, which map pooled encoder frames to the LLM's width.

`AudioLM` constructs them with `in_width`, the width of a pooled token, and `out_width`, the LLM's width.

Shapes: M audio tokens, G * D width of a pooled token, H the LLM's hidden width.
"""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Linear):
    """A matrix and a bias, as in both released systems."""

    def __init__(self, *, in_width: int, out_width: int) -> None:
        super().__init__(in_width, out_width)


class MLP(nn.Module):
    """Two layers with a GELU between them. The hidden width defaults to the LLM's width."""

    def __init__(self, *, in_width: int, out_width: int, hidden: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(in_width, hidden or out_width)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden or out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled frames (M, G * D) to audio tokens (M, H)."""
        return self.down(self.activation(self.up(x)))
