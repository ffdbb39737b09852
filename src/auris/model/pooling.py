"""Pooling: a window of k encoder frames becomes one audio token. A window never contains frames of two clips.

The last window of a clip is dropped if it is incomplete, so a clip of c frames has c // k tokens. `AudioLM` constructs
these modules with the encoder's `width`. A module maps frames (C, D) and lengths (A,) to tokens (T, G, D) and lengths
(A,). G is 1, except for `Stack`, where it is k because all frames of a window are kept. The encoder's final norm comes
after pooling, and is applied to each of the G vectors of width D.

Shapes: A clips, C encoder frames of all clips, T audio tokens of all clips, D width, K frames of a window, G vectors
per token. Lengths are on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from auris.errors import UserError
from auris.model import attention


class Pooling(Protocol):
    """A module that turns the frames of each window into one audio token.

    Attributes:
        k: Number of frames in a window.
        vectors_per_token: Number of vectors per token (G), each of the encoder's width.
    """

    k: int
    vectors_per_token: int

    def __call__(self, x: Tensor, lengths: Tensor, /) -> tuple[Tensor, Tensor]: ...  # noqa: D102

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102


def _windows(x: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cut each clip into windows of k frames.

    Returns:
        The windows of all clips (T, K, D), and the number of windows of each clip (A,).
    """
    n_tokens = lengths // k
    if int(n_tokens.sum()) * k < len(x):  # some clip ends with an incomplete window
        x = x[attention.concatenate_ranges(lengths.cumsum(0) - lengths, n_tokens * k).to(x.device)]
    return rearrange(x, "(t k) d -> t k d", k=k), n_tokens


class Mean(nn.Module):
    """The mean of k frames, as in both released systems with k = 2 (AvgPool1d(2, stride=2))."""

    def __init__(self, *, k: int, width: int) -> None:
        super().__init__()
        self.k, self.vectors_per_token = k, 1

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Average each window: (C, D), (A,) -> (T, 1, D), (A,)."""
        windows, n_tokens = _windows(x, lengths, self.k)
        return reduce(windows, "t k d -> t 1 d", "mean"), n_tokens


class Conv(nn.Module):
    """A convolution with stride k over each clip, padded with zeros. Token t is centred on frame k * t."""

    def __init__(self, *, k: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.k, self.vectors_per_token = k, 1
        self.conv = nn.Conv1d(width, width, kernel)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve each clip: (C, D), (A,) -> (T, 1, D), (A,)."""
        n_tokens = lengths // self.k
        kernel = self.conv.kernel_size[0]
        # Positions in the clip that each token's kernel covers. Positions outside the clip refer to the row of zeros
        # that is appended to x.
        centres = self.k * attention.concatenate_ranges(torch.zeros_like(n_tokens), n_tokens)[:, None]
        positions = centres + torch.arange(kernel) - kernel // 2
        start = torch.repeat_interleave(lengths.cumsum(0) - lengths, n_tokens)[:, None]
        length = torch.repeat_interleave(lengths, n_tokens)[:, None]
        is_inside = (positions >= 0) & (positions < length)
        index = torch.where(is_inside, start + positions, len(x)).to(x.device)
        windows = torch.cat([x, x.new_zeros(1, x.shape[1])])[index]
        return rearrange(self.conv(rearrange(windows, "t k d -> t d k")), "t d 1 -> t 1 d"), n_tokens


class Attention(nn.Module):
    """A weighted mean of k frames. Each head has a learned query, whose attention gives the weights of its channels.

    The query is initialised to zero, so before training the weights are equal, as in `Mean`.
    """

    def __init__(self, *, k: int, width: int, n_heads: int) -> None:
        super().__init__()
        if width % n_heads:
            raise UserError(f"model.pooling.n_heads={n_heads}: expected a divisor of the encoder's width, {width}")
        self.k, self.vectors_per_token = k, 1
        self.weight_uses = k  # the matrix of the keys is used k times per token, once per frame
        self.query = nn.Parameter(torch.empty(n_heads, width // n_heads))
        self.key = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the query to zero."""
        nn.init.zeros_(self.query)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Average each window with learned weights: (C, D), (A,) -> (T, 1, D), (A,)."""
        windows, n_tokens = _windows(x, lengths, self.k)
        n_heads, head_width = self.query.shape
        keys, values = (rearrange(y, "t k (h d) -> t k h d", h=n_heads) for y in (self.key(windows), windows))
        weights = torch.softmax((keys * self.query).sum(-1, keepdim=True) * head_width**-0.5, dim=1)
        return rearrange((weights * values).sum(1), "t h d -> t 1 (h d)"), n_tokens


class Stack(nn.Module):
    """The k frames of a window, concatenated. The projector's input is k times as wide as the encoder.

    With k = 1 there is no pooling: every frame is a token, which makes 50 tokens per second.
    """

    def __init__(self, *, k: int, width: int) -> None:
        super().__init__()
        self.k, self.vectors_per_token = k, k

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Cut each clip into windows: (C, D), (A,) -> (T, k, D), (A,)."""
        return _windows(x, lengths, self.k)
