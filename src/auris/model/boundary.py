"""The tokens around a clip's audio tokens in the language model's input.

Each class is completed with the language model's width (by `AudioLM`). It maps the audio tokens of all clips (M, H) and
the number of tokens of each clip (A,) to the embeddings that are inserted into the prompt.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Boundary(Protocol):
    """A module that adds what marks the beginning and the end of each clip.

    Attributes:
        learned: Whether the marks are part of the module's output. Otherwise the prompt contains them as tokens.
    """

    @property
    def learned(self) -> bool: ...  # noqa: D102

    def __call__(self, x: Tensor, lengths: Tensor, /) -> Tensor: ...  # noqa: D102


class Tokens(nn.Module):
    """The begin and end tokens of the vocabulary, which are part of the prompt (Qwen2-Audio)."""

    learned = False

    def __init__(self, *, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the audio tokens as they are."""
        return x


class Learned(nn.Module):
    """Two learned vectors, begin and end, at the positions of the begin and end tokens (Qwen-Audio).

    They are released as `audio_bos_eos_token` inside the audio module. The embeddings of `<audio>` and `</audio>` in
    the vocabulary are never used (QwenLM/Qwen-Audio modeling_qwen.py, audio.py).
    """

    learned = True

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both vectors from N(0, 1), torch's default for embeddings, as the released system does."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map (M, H), (A,) to (M + 2 A, H): for each clip begin, its tokens, end."""
        begin, end = self.weight.to(x.dtype).split(1)
        parts = [piece for clip in x.split(lengths.tolist()) for piece in (begin, clip, end)]
        return torch.cat(parts)
