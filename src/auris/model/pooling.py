"""Pooling: k encoder frames of a clip become one audio token. Windows never cross clips.

A clip's last window is dropped where it is incomplete (c // k tokens). Each class takes the encoder's width as a late
fact and maps (C, D), lengths (A,) to (T, G, D), lengths (A,). G = 1 but for `Stack`, which keeps the k frames of a
window side by side, still of the encoder's width, so that the encoder's final norm applies to each of them: the norm
comes after pooling.

Shapes: A clips, C encoder frames of all clips, T audio tokens of all clips, D width, K frames of a window.
Lengths are host tensors.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from auris.errors import UserError
from auris.model import attention


def _windows(x: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cut each clip into windows of k frames: (C, D) -> (T, K, D), windows of each clip (A,)."""
    tokens = lengths // k
    if int(tokens.sum()) * k < len(x):  # some clip has frames to spare
        x = x[attention.ranges(lengths.cumsum(0) - lengths, tokens * k).to(x.device)]
    return rearrange(x, "(t k) d -> t k d", k=k), tokens


class Mean(nn.Module):
    """The mean of k frames: both released systems, k = 2 (AvgPool1d(2, stride=2))."""

    def __init__(self, *, k: int, width: int) -> None:
        super().__init__()
        self.k, self.groups = k, 1

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        windows, tokens = _windows(x, lengths, self.k)
        return reduce(windows, "t k d -> t 1 d", "mean"), tokens


class Conv(nn.Module):
    """A convolution of stride k over each clip, zero beyond its ends. Token t is centred on frame k * t."""

    def __init__(self, *, k: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.k, self.groups = k, 1
        self.conv = nn.Conv1d(width, width, kernel)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        tokens = lengths // self.k
        kernel = self.conv.kernel_size[0]
        # Frame numbers within the clip that each token's kernel covers; those outside the clip read a row of zeros.
        when = self.k * attention.ranges(torch.zeros_like(tokens), tokens)[:, None] + torch.arange(kernel) - kernel // 2
        start = torch.repeat_interleave(lengths.cumsum(0) - lengths, tokens)[:, None]
        length = torch.repeat_interleave(lengths, tokens)[:, None]
        at = torch.where((when >= 0) & (when < length), start + when, len(x)).to(x.device)
        windows = torch.cat([x, x.new_zeros(1, x.shape[1])])[at]
        return rearrange(self.conv(rearrange(windows, "t k d -> t d k")), "t d 1 -> t 1 d"), tokens


class Attention(nn.Module):
    """A weighted mean of k frames: each head weighs its share of the channels by a learned query's attention.

    The query starts at zero, so that training starts from `Mean`.
    """

    def __init__(self, *, k: int, width: int, n_heads: int) -> None:
        super().__init__()
        if width % n_heads:
            raise UserError(
                f"pooling n_heads={n_heads}: expected a divisor of the encoder's width, {width} "
                "(model.pooling.n_heads=...)"
            )
        self.k, self.groups = k, 1
        self.uses = k  # of each weight for a token: keys are made of every frame
        self.query = nn.Parameter(torch.empty(n_heads, width // n_heads))
        self.key = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.query)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        windows, tokens = _windows(x, lengths, self.k)
        n_heads, head_width = self.query.shape
        keys, values = (rearrange(y, "t k (h d) -> t k h d", h=n_heads) for y in (self.key(windows), windows))
        weights = torch.softmax((keys * self.query).sum(-1, keepdim=True) * head_width**-0.5, dim=1)
        return rearrange((weights * values).sum(1), "t h d -> t 1 (h d)"), tokens


class Stack(nn.Module):
    """No loss at all: the k frames of a window side by side; the projector reads k times the encoder's width.

    With k = 1 there is no pooling: every frame is a token, 50 a second.
    """

    def __init__(self, *, k: int, width: int) -> None:
        super().__init__()
        self.k, self.groups = k, k

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return _windows(x, lengths, self.k)
