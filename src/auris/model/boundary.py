"""What stands around a clip's audio tokens in the language model's input.

Each class takes the language model's width as a late fact and maps the audio tokens of all clips (M, H) and the number
of each clip's (A,) to what is spliced in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """The vocabulary's own begin and end tokens, which are part of the prompt: Qwen2-Audio."""

    learned = False

    def __init__(self, *, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x


class Learned(nn.Module):
    """Two learned vectors, begin and end, in the places of the begin and end tokens: Qwen-Audio.

    Released as `audio_bos_eos_token` inside the audio module; the embeddings of its `<audio>` and `</audio>` are never
    used (QwenLM/Qwen-Audio modeling_qwen.py, audio.py).
    """

    learned = True

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As an embedding: released from torch's default, N(0, 1)."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(M, H), (A,) -> (M + 2 A, H): begin, the clip's tokens, end, clip by clip."""
        begin, end = self.weight.to(x.dtype).split(1)
        parts = [piece for clip in x.split(lengths.tolist()) for piece in (begin, clip, end)]
        return torch.cat(parts)
