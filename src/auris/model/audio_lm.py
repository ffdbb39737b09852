"""AudioLM, the complete model, which runs on packed batches.

Shapes: T tokens of all rows, S rows, A clips, C encoder frames (20 ms) of all clips, D the encoder's width, M audio
tokens, H the LLM's hidden width, V vocabulary rows, R selected positions.
A batch is a `model.pack.Pack`. It lacks `mel` in text-only training, where no row has audio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from auris.audio import Geometry
from auris.errors import UserError
from auris.model import attention
from auris.model import llm as lm
from auris.model.boundary import Boundary, Tokens
from auris.model.encoder import Encoder
from auris.model.generation import GenerationSettings, generate
from auris.model.pack import Pack
from auris.model.pooling import Pooling
from auris.model.vocabulary import input_table, output_layer


class AudioLM(nn.Module):
    """Audio encoder, pooling, projector, boundary and LLM.

    Args:
        encoder: the audio encoder.
        pooling: called with `width`, that of the encoder.
        projector: called with `in_width` and `out_width`.
        boundary: called with `width`, that of the LLM.
        llm: called with `vocab_size`.
        vocab_size: number of tokens in the tokenizer.
        vocab_rows: V, rows of the LLM's embedding and head; None: `vocab_size`. Released tables have spare rows.

    Attributes:
        geometry: the properties of the model that the data pipeline needs.

    Raises:
        UserError: `vocab_rows` is smaller than `vocab_size`.
    """

    pooling: Pooling
    boundary: Boundary
    geometry: Geometry

    def __init__(
        self,
        *,
        encoder: Encoder,
        pooling: Callable[..., Pooling],
        projector: Callable[..., nn.Module],
        boundary: Callable[..., Boundary] = Tokens,
        llm: Callable[..., PreTrainedModel],
        vocab_size: int,
        vocab_rows: int | None = None,
    ) -> None:
        super().__init__()
        if vocab_rows is not None and vocab_rows < vocab_size:
            raise UserError(f"model.vocab_rows={vocab_rows}: expected at least {vocab_size}, one per token (or null)")
        self.encoder = encoder
        self.pooling = pooling(width=encoder.width)
        self.llm = llm(vocab_size=vocab_rows or vocab_size)
        width = input_table(self.llm).embedding_dim
        self.projector = projector(in_width=self.pooling.groups * encoder.width, out_width=width)
        self.boundary = boundary(width=width)
        self.geometry = replace(encoder.geometry, pool=self.pooling.k, boundary=self.boundary.learned)

    def encode_frames(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's frames after its final norm: mel (n_mels, F), frames (A,) -> (C, D), lengths (A,)."""
        x, lengths = self.encoder(mel, frames)
        return self.encoder.norm(x), lengths

    def encode(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return audio tokens: stored mel frames (n_mels, F), valid frames of each clip (A,) -> (M, H)."""
        pooled, lengths = self.pooling(*self.encoder(mel, frames))
        # In both released systems pooling precedes the encoder's final norm, and their weights depend on this order.
        tokens = self.projector(rearrange(self.encoder.norm(pooled), "t g d -> t (g d)"))
        return self.boundary(tokens, lengths)

    def embed(self, batch: Pack) -> Tensor:
        """Return the token embeddings of a batch, audio tokens included: (T, H)."""
        x = lm.embed(self.llm, batch["ids"])
        if "mel" not in batch:
            return x
        audio, index = self.encode(batch["mel"], batch["frames"]), batch["audio_index"]
        # A pack without audio has a dummy clip, which has no effect but lets every rank run the encoder in this
        # forward.
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
        tree: dict[str, Any] = (
            {"cu_k": batch["cu_keys"], "key_index": batch["key_index"]} if "key_index" in batch else {}
        )
        # An LLM extends its training length at inference only, that is, without gradients. Pairs are an exception: the
        # reference model never has gradients, but must compute the same function as the model in training.
        is_training = bool(tree) or torch.is_grad_enabled()
        lengths = None if is_training else torch.tensor(attention.lengths(cu))
        embeds = self.embed(batch)
        return lm.hidden_states(
            self.llm, embeds, batch["positions"], cu, prompt_lengths=lengths, indices=indices, **tree
        )

    def head(self, h: Tensor) -> Tensor:
        """Return logits (R, V) of hidden states (R, H). Select the positions that are needed first."""
        return output_layer(self.llm)(h)

    def logits(self, batch: Pack) -> Tensor:
        """Return the logits of every position: (T, V). For tests and small batches."""
        return self.head(self.hidden_states(batch))

    def forward(self, batch: Pack) -> Tensor:
        """Return the hidden states of every position: (T, H)."""
        return self.hidden_states(batch)

    def generate(self, batch: Pack, settings: GenerationSettings, **options: Any) -> list[list[int]]:
        """Return the token ids that continue each row of a batch of prompts; options as in `generation.generate`.

        This is a method so that sharding can gather parameters around it.
        """
        return generate(self, batch, settings, **options)
