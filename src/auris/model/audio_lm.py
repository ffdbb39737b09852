"""AudioLM: the whole model over a packed batch, and the order of its parts that weights depend on.

Shapes: T tokens of all rows, S rows, M audio tokens, H the LLM's hidden width, V vocabulary rows, R any positions.
A batch is the plain dict that auris.data.packing makes; it may lack `mel` where no row has audio at all (text-only
training).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from auris.audio import Geometry
from auris.model import attention
from auris.model import llm as lm


class AudioLM(nn.Module):
    """Audio encoder, pooling, projector and LLM.

    Args:
        encoder: the audio encoder.
        pooling: completed here with `width`, the encoder's.
        projector: completed here with `in_width` and `out_width`.
        llm: completed here with `vocab_size`.
        vocab_size: V, rows of the LLM's embedding and head.

    `geometry` is what the data side must know of the model.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        pooling: Callable[..., nn.Module],
        projector: Callable[..., nn.Module],
        llm: Callable[..., PreTrainedModel],
        vocab_size: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling(width=encoder.width)
        self.llm = llm(vocab_size=vocab_size)
        width = self.llm.get_input_embeddings().embedding_dim
        self.projector = projector(in_width=self.pooling.groups * encoder.width, out_width=width)
        self.geometry = Geometry(n_mels=encoder.n_mels, pool=self.pooling.k)

    def encode(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Stored mel frames (n_mels, F) of clips with `frames` (A,) valid ones -> audio tokens (M, H)."""
        pooled, _ = self.pooling(*self.encoder(mel, frames))
        # Pooling stands before the encoder's final norm in both released systems; their weights depend on it.
        return self.projector(rearrange(self.encoder.norm(pooled), "t g d -> t (g d)"))

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """The batch's token embeddings with its audio tokens in their places: (T, H)."""
        x = lm.embed(self.llm, batch["ids"])
        if "mel" not in batch:
            return x
        audio, index = self.encode(batch["mel"], batch["frames"]), batch["audio_index"]
        # A pack without audio has a dummy clip: in the graph, so that every rank runs the encoder, but without effect.
        assert len(index) in (0, len(audio)), (audio.shape, index.shape)
        return x.index_copy(0, index, audio[: len(index)].to(x.dtype))

    def hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """The LLM's hidden states behind its final norm: (T, H)."""
        return lm.hidden(self.llm, self.embed(batch), batch["positions"], batch["cu_seqlens"])

    def head(self, h: Tensor) -> Tensor:
        """Hidden states (R, H) -> logits (R, V). Gather the positions that are scored first."""
        return lm.head(self.llm)(h)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits at every position: (T, V). For tests and small batches."""
        return self.head(self.hidden(batch))

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.hidden(batch)

    @torch.no_grad()
    def generate(
        self, batch: Mapping[str, Any], *, max_new_tokens: int, stop: Collection[int], min_new_tokens: int = 0
    ) -> list[list[int]]:
        """Continue every row greedily until a token of `stop`, which is not returned.

        The rows are prefilled as one pack; then each step computes one token of every row that has not stopped yet.
        No token of `stop` is chosen among a row's first `min_new_tokens`.
        """
        cu = batch["cu_seqlens"]
        new = torch.tensor(attention.lengths(cu))
        rows = torch.arange(len(new))
        cache = lm.RaggedCache(new + max_new_tokens, device=cu.device)
        answers: list[list[int]] = [[] for _ in rows]
        cu_k = cache.extend(rows, new)
        h = lm.hidden(self.llm, self.embed(batch), batch["positions"], cu, cache, cu_k)[cu[1:].long() - 1]
        for step in range(max_new_tokens):
            logits = self.head(h)
            if step < min_new_tokens:
                logits[:, list(stop)] = -torch.inf
            ids = logits.argmax(-1).cpu()
            going = [i for i, token in enumerate(ids.tolist()) if token not in stop]
            rows, ids = rows[going], ids[going]
            for row, token in zip(rows.tolist(), ids.tolist(), strict=True):
                answers[row].append(token)
            if not going or step + 1 == max_new_tokens:
                break
            positions = cache.lengths[rows].to(cu.device)
            one = torch.ones_like(rows)
            cu_k = cache.extend(rows, one)
            cu = attention.cumulate(one).to(cu_k.device)
            h = lm.hidden(self.llm, lm.embed(self.llm, ids.to(cu.device)), positions, cu, cache, cu_k)
        return answers
