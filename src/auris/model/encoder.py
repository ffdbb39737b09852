"""The Whisper encoder on clips of their true length, packed.

The released systems encode 30 s for every clip and mask what lies beyond its end. Here only the clip is encoded: the
same function (Whisper v2 and v3 weights fit), since masked frames never reach an unmasked one. The stem is the only
place where neighbours could touch; gap frames keep clips apart there.

Shapes: A clips; F stored mel frames (10 ms) of all clips together; C encoder frames (20 ms) of all clips together;
D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from auris.audio import Geometry, encoder_frames
from auris.errors import UserError
from auris.model import attention

STEM_GAIN = 1.5  # measured on log-mel of speech: the stem's deviation over time becomes about that of the positions
MAX_PERIOD = 10_000  # of the sinusoids that mark time: openai/whisper model.py `sinusoids`


class Encoder(nn.Module):
    """Whisper's audio encoder (openai/whisper model.py `AudioEncoder`), stopping before its final norm.

    Args:
        n_mels: mel bins (Whisper v2: 80, v3: 128).
        width: D.
        n_layers: transformer blocks.
        n_heads: attention heads.
        ffn: hidden width of a block's MLP (4 * width if not given).
        max_positions: rows of the position table: the longest clip in encoder frames (1500 = 30 s).
        clip_end: what follows a clip (`audio.Geometry`): "silence" (Whisper, Qwen2-Audio) or "zero" (Qwen-Audio).

    `norm` is the encoder's final LayerNorm. `forward` does not apply it: in both released systems pooling comes first.
    """

    def __init__(
        self,
        *,
        n_mels: int,
        width: int,
        n_layers: int,
        n_heads: int,
        ffn: int | None = None,
        max_positions: int = 1500,
        clip_end: str = "silence",
    ) -> None:
        super().__init__()
        if width % n_heads or width % 2:
            raise UserError(
                f"encoder width {width}: expected an even multiple of n_heads={n_heads} (model.encoder.width=...)"
            )
        if clip_end not in ("silence", "zero"):
            raise UserError(f"model.encoder.clip_end={clip_end!r}: expected silence or zero")
        ffn = ffn or 4 * width
        self.n_mels, self.width, self.n_layers, self.n_heads, self.ffn = n_mels, width, n_layers, n_heads, ffn
        self.max_positions, self.clip_end = max_positions, clip_end
        self.conv1 = nn.Conv1d(n_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positions", torch.empty(max_positions, width))
        self.blocks = nn.ModuleList(Block(width, n_heads, ffn) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    @property
    def geometry(self) -> Geometry:
        """Of the encoder alone, before pooling."""
        return Geometry(n_mels=self.n_mels, pool=1, clip_end=self.clip_end)

    def reset_parameters(self) -> None:
        """Fill the position table (sines of all frequencies, then their cosines, not interleaved); scale up the stem.

        With torch's initial convolutions the stem varies over time 20 times less than the positions added to it, and an
        encoder trained from scratch long sees little but positions. With this gain the two are of one size.
        """
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            with torch.no_grad():
                conv.weight.mul_(STEM_GAIN)
        half = self.width // 2
        rates = torch.exp(-math.log(MAX_PERIOD) / (half - 1) * torch.arange(half))
        angles = torch.arange(self.max_positions)[:, None] * rates
        self.positions.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))

    def forward(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips: stored mel frames (n_mels, F), valid frames of each clip (A,) -> (C, D), lengths (A,).

        Lengths, in encoder frames, stay on the host: what follows plans its indices with them.
        """
        frames = frames.cpu()  # the forward's one synchronisation
        assert frames.min() > 0 and frames.max() <= 2 * self.max_positions, (frames, self.max_positions)
        lengths = encoder_frames(frames)
        x = self._stem(mel, frames, lengths)
        cu, longest = attention.cumulate(lengths).to(x.device), int(lengths.max())
        for block in self.blocks:
            x = block(x, cu, longest)
        return x, lengths

    def _stem(self, mel: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
        """Both convolutions over all clips laid in one row, and positions: (n_mels, F) -> (C, D).

        Every clip starts at an even offset, so that the stride of two meets it as if it were alone, and is followed by
        at least one gap frame, which stands for the zero padding of the convolutions.
        """
        n_stored = torch.tensor([self.geometry.stored(n) for n in frames.tolist()])
        assert mel.shape == (self.n_mels, n_stored.sum()), (mel.shape, self.n_mels, n_stored)
        slots = n_stored + 2 - n_stored % 2
        starts = slots.cumsum(0) - slots
        at = attention.ranges(starts, n_stored).to(mel.device)
        row = mel.new_zeros(self.n_mels, int(slots.sum())).index_copy(1, at, mel).to(self.conv1.weight.dtype)
        is_clip = row.new_zeros(row.shape[1]).index_fill(0, at, 1.0)
        x = F.gelu(self.conv1(row[None])) * is_clip  # the second convolution's padding is zero, not gelu(bias)
        x = F.gelu(self.conv2(x))[0]
        x = rearrange(x.index_select(1, attention.ranges(starts // 2, lengths).to(x.device)), "d c -> c d")
        when = attention.ranges(torch.zeros_like(lengths), lengths).to(x.device)
        return x + self.positions[when].to(x.dtype)


class Block(nn.Module):
    """Whisper's pre-norm transformer block. Keys have no bias: a constant there cancels in the softmax."""

    def __init__(self, width: int, n_heads: int, ffn: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)

    def forward(self, x: Tensor, cu: Tensor, longest: int) -> Tensor:
        """(C, D), cumulative lengths (A + 1,), frames of the longest clip -> (C, D)."""
        h = self.attention_norm(x)
        q, k, v = (
            rearrange(part(h), "t (h d) -> t h d", h=self.n_heads) for part in (self.query, self.key, self.value)
        )
        h = attention.packed(q, k, v, cu, cu, causal=False, longest=(longest, longest))
        x = x + self.out(rearrange(h, "t h d -> t (h d)"))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))
