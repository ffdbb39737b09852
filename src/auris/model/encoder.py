"""The Whisper encoder on packed clips, which are not padded to 30 s.

The released systems encode 30 s for every clip and mask the part after its end. Here only the clip is encoded. The
function is the same (weights of Whisper v2 and v3 fit), because a masked frame never affects an unmasked one. Packed
clips could affect each other only in the stem (the two convolutions), where gap frames separate them.

Shapes: A clips, F mel frames (10 ms) of all clips, C encoder frames (20 ms) of all clips, D width. F includes the
frames that `audio.Geometry.n_frames_with_padding` adds to the valid frames of each clip.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from auris.audio import Geometry, n_encoder_frames
from auris.errors import UserError, shorten
from auris.model import attention

STEM_GAIN = 1.5  # measured on speech: the stem's output then varies over time about as much as the positions
MAX_PERIOD = 10_000  # longest period of the position sinusoids (openai/whisper model.py `sinusoids`)


class Encoder(nn.Module):
    """Whisper's audio encoder (openai/whisper model.py `AudioEncoder`).

    Args:
        n_mels: mel bins (Whisper v2: 80, v3: 128).
        width: D.
        n_layers: number of transformer blocks.
        n_heads: number of attention heads.
        ffn: hidden width of a block's MLP (4 * width if not given).
        max_positions: number of rows of the position table, and so the maximum length of a clip in encoder frames
            (1500 = 30 s).
        clip_end: what the convolutions read after the end of a clip (see `audio.Geometry`): "silence" (Whisper,
            Qwen2-Audio) or "zero" (Qwen-Audio).

    Attributes:
        norm: the encoder's final LayerNorm. `forward` does not apply it, because both released systems pool first.
    """

    positions: Tensor

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
                f"model.encoder.width={width}: expected an even multiple of model.encoder.n_heads={n_heads}"
            )
        if clip_end not in ("silence", "zero"):
            raise UserError(f"model.encoder.clip_end={shorten(clip_end)}: expected silence or zero")
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
        """Return the geometry of the encoder alone, without pooling."""
        return Geometry(n_mels=self.n_mels, pool=1, clip_end=self.clip_end)

    def reset_parameters(self) -> None:
        """Fill the position table (sines of all frequencies, then their cosines, not interleaved) and scale the stem.

        With torch's default initialisation, the output of the stem varies over time 20 times less than the positions
        that are added to it. An encoder trained from scratch then sees little but positions for a long time.
        `STEM_GAIN` makes the stem vary about as much as the positions.
        """
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            with torch.no_grad():
                conv.weight.mul_(STEM_GAIN)
        half = self.width // 2
        rates = torch.exp(-math.log(MAX_PERIOD) / (half - 1) * torch.arange(half))
        angles = torch.arange(self.max_positions)[:, None] * rates
        self.positions.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))

    def forward(self, mel: Tensor, n_frames: Tensor, n_blocks: int | None = None) -> tuple[Tensor, Tensor]:
        """Encode clips. The encoder's final norm is not applied.

        Args:
            mel: (n_mels, F) log-mel features of all clips.
            n_frames: (A,) number of valid mel frames of each clip.
            n_blocks: Number of blocks to apply; None: all.

        Returns:
            The encoder frames (C, D), and the number of encoder frames of each clip (A,). The numbers are on the host,
            because pooling computes its indices from them.
        """
        n_frames = n_frames.cpu()  # the only synchronisation of the forward
        assert n_frames.min() > 0 and n_frames.max() <= 2 * self.max_positions, (n_frames, self.max_positions)
        lengths = n_encoder_frames(n_frames)
        return self.apply_blocks(self._stem(mel, n_frames, lengths), lengths, 0, n_blocks), lengths

    def apply_blocks(self, x: Tensor, lengths: Tensor, start: int, stop: int | None = None) -> Tensor:
        """Apply the blocks from `start` to `stop` (exclusive) to frames (C, D) of clips with `lengths` (A,)."""
        cu, max_length = attention.cumulative_lengths(lengths).to(x.device), int(lengths.max())
        for block in self.blocks[start:stop]:
            x = block(x, cu, max_length)
        return x

    def _stem(self, mel: Tensor, n_frames: Tensor, lengths: Tensor) -> Tensor:
        """Apply both convolutions to all clips in one row and add positions: (n_mels, F) -> (C, D).

        Every clip starts at an even offset, so the convolution with stride 2 is applied at the same frames as in a clip
        alone. At least one gap frame follows every clip, in place of the zero padding of the convolutions.
        """
        n_with_padding = torch.tensor([self.geometry.n_frames_with_padding(n) for n in n_frames.tolist()])
        assert mel.shape == (self.n_mels, n_with_padding.sum()), (mel.shape, self.n_mels, n_with_padding)
        slot_lengths = n_with_padding + 2 - n_with_padding % 2
        starts = slot_lengths.cumsum(0) - slot_lengths
        clip_index = attention.concatenate_ranges(starts, n_with_padding).to(mel.device)
        row = mel.new_zeros(self.n_mels, int(slot_lengths.sum()))
        row = row.index_copy(1, clip_index, mel).to(self.conv1.weight.dtype)
        is_clip = row.new_zeros(row.shape[1]).index_fill(0, clip_index, 1.0)
        x = F.gelu(self.conv1(row[None])) * is_clip  # the second convolution's padding is zero, not gelu(bias)
        x = F.gelu(self.conv2(x))[0]
        x = rearrange(x.index_select(1, attention.concatenate_ranges(starts // 2, lengths).to(x.device)), "d c -> c d")
        position_index = attention.concatenate_ranges(torch.zeros_like(lengths), lengths).to(x.device)
        return x + self.positions[position_index].to(x.dtype)


class Block(nn.Module):
    """Whisper's pre-norm transformer block. Keys have no bias, because it would cancel in the softmax."""

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

    def forward(self, x: Tensor, cu: Tensor, max_length: int) -> Tensor:
        """Map (C, D), cumulative lengths (A + 1,) and the number of frames of the longest clip to (C, D)."""
        h = self.attention_norm(x)
        q, k, v = (
            rearrange(part(h), "t (h d) -> t h d", h=self.n_heads) for part in (self.query, self.key, self.value)
        )
        h = attention.attend_packed(q, k, v, cu, cu, causal=False, max_lengths=(max_length, max_length))
        x = x + self.out(rearrange(h, "t h d -> t (h d)"))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))
