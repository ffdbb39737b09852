"""The begin and end of a clip in the language model's input, before and after its audio tokens.

`AudioLM` constructs these modules with the language model's `width`. A module maps the audio tokens of all clips (M, H)
and the number of tokens of each clip (A,) to the embeddings that are inserted into the prompt.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Boundary(Protocol):
    """A module that may insert a begin and an end vector around the audio tokens of each clip.

    Attributes:
        inserts_vectors: Whether the module inserts them. Otherwise the begin and end tokens in the prompt are embedded.
    """

    @property
    def inserts_vectors(self) -> bool: ...  # noqa: D102

    def __call__(self, x: Tensor, lengths: Tensor, /) -> Tensor: ...  # noqa: D102


class Tokens(nn.Module):
    """No vectors: the prompt already contains the begin and end tokens of the vocabulary (Qwen2-Audio)."""

    inserts_vectors = False

    def __init__(self, *, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the audio tokens as they are."""
        return x


class Learned(nn.Module):
    """Two learned vectors, begin and end, at the positions of the begin and end tokens (Qwen-Audio).

    In the released weights, the vectors are `audio_bos_eos_token` in the audio module. The embeddings of `<audio>` and
    `</audio>` in the vocabulary are never used (QwenLM/Qwen-Audio modeling_qwen.py, audio.py).
    """

    inserts_vectors = True

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both vectors from N(0, 1), torch's default for embeddings, as in the released code."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map (M, H), (A,) to (M + 2 A, H): the begin vector, the tokens and the end vector of each clip."""
        begin, end = self.weight.to(x.dtype).split(1)
        parts = [part for clip in x.split(lengths.tolist()) for part in (begin, clip, end)]
        return torch.cat(parts)
