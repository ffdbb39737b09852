"""AudioLM: the whole model over a packed batch, and the order of its parts that weights depend on.

Shapes: T tokens of all rows, S rows, A clips, C encoder frames (20 ms) of all of them, D the encoder's width, M audio
tokens, H the LLM's hidden width, V vocabulary rows, R any positions.
A batch is a `model.pack.Pack`; it may lack `mel` where no row has audio at all (text-only training).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from auris.errors import UserError
from auris.model import attention
from auris.model import llm as lm
from auris.model.boundary import Tokens
from auris.model.generation import GenerationSettings, generate
from auris.model.pack import Pack


class AudioLM(nn.Module):
    """Audio encoder, pooling, projector, boundary and LLM.

    Args:
        encoder: the audio encoder.
        pooling: completed here with `width`, the encoder's.
        projector: completed here with `in_width` and `out_width`.
        boundary: what stands around a clip's tokens; completed here with `width`, the LLM's.
        llm: completed here with `vocab_size`.
        vocab_size: tokens that the tokenizer has.
        vocab_rows: V, rows of the LLM's embedding and head; None: `vocab_size`. Released tables have spare rows.

    Raises ValueError if `vocab_rows` are too few. `geometry` is what the data side must know of the model.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        pooling: Callable[..., nn.Module],
        projector: Callable[..., nn.Module],
        boundary: Callable[..., nn.Module] = Tokens,
        llm: Callable[..., PreTrainedModel],
        vocab_size: int,
        vocab_rows: int | None = None,
    ) -> None:
        super().__init__()
        if vocab_rows is not None and vocab_rows < vocab_size:
            raise UserError(f"model.vocab_rows={vocab_rows}: the tokenizer needs {vocab_size} rows (null: just these)")
        self.encoder = encoder
        self.pooling = pooling(width=encoder.width)
        self.llm = llm(vocab_size=vocab_rows or vocab_size)
        width = self.llm.get_input_embeddings().embedding_dim
        self.projector = projector(in_width=self.pooling.groups * encoder.width, out_width=width)
        self.boundary = boundary(width=width)
        self.geometry = replace(encoder.geometry, pool=self.pooling.k, boundary=self.boundary.learned)

    def encode_frames(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder alone, with its final norm: stored mel frames (n_mels, F) of clips -> (C, D), lengths (A,)."""
        x, lengths = self.encoder(mel, frames)
        return self.encoder.norm(x), lengths

    def encode(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Stored mel frames (n_mels, F) of clips with `frames` (A,) valid ones -> audio tokens (M, H)."""
        pooled, lengths = self.pooling(*self.encoder(mel, frames))
        # Pooling stands before the encoder's final norm in both released systems; their weights depend on it.
        tokens = self.projector(rearrange(self.encoder.norm(pooled), "t g d -> t (g d)"))
        return self.boundary(tokens, lengths)

    def embed(self, batch: Pack) -> Tensor:
        """The batch's token embeddings with its audio tokens in their places: (T, H)."""
        x = lm.embed(self.llm, batch["ids"])
        if "mel" not in batch:
            return x
        audio, index = self.encode(batch["mel"], batch["frames"]), batch["audio_index"]
        # A pack without audio has a dummy clip: in the graph, so that every rank runs the encoder, but without effect.
        assert len(index) in (0, len(audio)), (audio.shape, index.shape)
        return x.index_copy(0, index, audio[: len(index)].to(x.dtype))

    def hidden_states(self, batch: Pack, indices: Tensor | None = None) -> Tensor:
        """Return the LLM's hidden states after its final norm: (T, H), or (R, H) if `indices` are given.

        Packs of pairs are computed as trees (`Pack`).

        Args:
            batch: the pack.
            indices: (R,) the tokens whose hidden states are needed, without duplicates. The last layer skips work that
                only the others would need.
        """
        cu = batch["cu_seqlens"]
        tree = {"cu_k": batch["cu_keys"], "key_index": batch["key_index"]} if "key_index" in batch else {}
        # What an LLM does beyond its training length it does at inference only: where no gradient is wanted. Not for
        # pairs: the reference, which never wants one, is compared with what is trained.
        is_training = bool(tree) or torch.is_grad_enabled()
        lengths = None if is_training else torch.tensor(attention.lengths(cu))
        embeds = self.embed(batch)
        return lm.hidden_states(
            self.llm, embeds, batch["positions"], cu, prompt_lengths=lengths, indices=indices, **tree
        )

    def head(self, h: Tensor) -> Tensor:
        """Hidden states (R, H) -> logits (R, V). Gather the positions that are scored first."""
        return self.llm.get_output_embeddings()(h)

    def logits(self, batch: Pack) -> Tensor:
        """Logits at every position: (T, V). For tests and small batches."""
        return self.head(self.hidden_states(batch))

    def forward(self, batch: Pack) -> Tensor:
        return self.hidden_states(batch)

    def generate(self, batch: Pack, settings: GenerationSettings, **options: Any) -> list[list[int]]:
        """Return token ids that continue each row of a batch of prompts; options as in `generation.generate`.

        A method, so that sharding can gather parameters around it.
        """
        return generate(self, batch, settings, **options)
