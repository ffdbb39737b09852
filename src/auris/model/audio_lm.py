"""AudioLM, the complete model, which runs on packed batches.

Shapes: T tokens of all rows, S rows, A clips, C encoder frames (20 ms) of all clips, D the encoder's width, M audio
tokens, H the LLM's hidden width, V rows of the LLM's embedding and head, R selected positions.
A batch is a `model.pack.Pack`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from auris.audio import Geometry, n_encoder_frames
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
        pooling: builds the pooling. It is called with the encoder's `width`.
        projector: builds the projector. It is called with `in_width` and `out_width`.
        boundary: builds the boundary, which marks the begin and end of each clip's audio tokens (see
            `model.boundary`). It is called with the LLM's `width`. By default, the begin and end tokens of the prompt
            mark the clips.
        llm: builds the LLM. It is called with `vocab_size`, the number of rows V.
        vocab_size: number of tokens in the tokenizer.
        vocab_rows: V; None: `vocab_size`. Released models have more rows than tokens.

    Attributes:
        geometry: determines the numbers of frames and tokens of a clip, for the data pipeline.
        n_cached_blocks: number of the encoder's blocks that were applied to cached frames (`training.encoder_frames`).

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
        self.projector = projector(in_width=self.pooling.vectors_per_token * encoder.width, out_width=width)
        self.boundary = boundary(width=width)
        self.n_cached_blocks = len(encoder.blocks)
        self.geometry = replace(encoder.geometry, pool=self.pooling.k, boundary=self.boundary.inserts_vectors)

    def encode_frames(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the frames (C, D) of a pack after the encoder's final norm, and their number (A,) for each clip."""
        frames, lengths = self._encoder_output(pack)
        return self.encoder.norm(frames), lengths

    def encoder_output(self, pack: Pack, n_blocks: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the frames (C, D) of a pack before the encoder's final norm, and their number (A,) for each clip.

        Args:
            pack: Clips, as `mel` or as cached `encoder_frames`.
            n_blocks: Number of the encoder's blocks to apply to `mel`; None: all.
        """
        return self._encoder_output(pack, n_blocks)

    def _encoder_output(self, pack: Pack, n_blocks: int | None = None) -> tuple[Tensor, Tensor]:
        # The other methods call this one: FSDP frees the parameters of the net at the end of `encoder_output`.
        if "encoder_frames" not in pack:
            return self.encoder(pack["mel"], pack["frames"], n_blocks)
        lengths = n_encoder_frames(pack["frames"].cpu())
        frames = pack["encoder_frames"].to(self.encoder.norm.weight.dtype)
        return self.encoder.apply_blocks(frames, lengths, self.n_cached_blocks), lengths

    def encode(self, pack: Pack) -> Tensor:
        """Return the audio tokens (M, H) of a pack, with the boundary's vectors."""
        return self.boundary(*self._project(*self._encoder_output(pack)))

    def _project(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map the encoder's frames (C, D) of clips to their audio tokens (M, H) and the number of tokens (A,)."""
        pooled, lengths = self.pooling(frames, lengths)
        # In both released systems pooling precedes the encoder's final norm, and their weights depend on this order.
        return self.projector(rearrange(self.encoder.norm(pooled), "t g d -> t (g d)")), lengths

    def encode_with_embeddings(self, pack: Pack, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the audio tokens (M, H) of a pack without boundary vectors, and embeddings to compare them with.

        This is one method so that FSDP gathers the parameters of projector and embedding together.

        Args:
            pack: clips, as `mel` or as cached `encoder_frames`.
            ids: (N,) token ids.

        Returns:
            The audio tokens (M, H), the number of audio tokens (A,) of each clip, and the embeddings (N, H) of `ids`.
        """
        return *self._project(*self._encoder_output(pack)), lm.embed(self.llm, ids)

    def embed(self, batch: Pack) -> Tensor:
        """Return the token embeddings of a batch, audio tokens included: (T, H)."""
        x = lm.embed(self.llm, batch["ids"])
        if "mel" not in batch and "encoder_frames" not in batch:
            return x
        audio, index = self.encode(batch), batch["audio_index"]
        # A pack without audio contains a dummy clip. It has no effect, but makes every rank run the encoder in this
        # forward.
        assert len(index) in (0, len(audio)), (audio.shape, index.shape)
        return x.index_copy(0, index, audio[: len(index)].to(x.dtype))

    def hidden_states(self, batch: Pack, indices: Tensor | None = None) -> Tensor:
        """Return the LLM's hidden states after its final norm: (T, H), or (R, H) if `indices` are given.

        In a pack of preference pairs, both responses attend to one copy of the prompt (see `Pack`).

        Args:
            batch: the pack.
            indices: (R,) positions of the tokens whose hidden states are needed, without duplicates. The last layer
                skips work that only other tokens need.
        """
        cu = batch["cu_seqlens"]
        shared_keys: dict[str, Any] = (
            {"cu_k": batch["cu_keys"], "key_index": batch["key_index"]} if "key_index" in batch else {}
        )
        # `prompt_lengths` lets the LLM extend its context, which it must do only at inference, that is without
        # gradients. Pairs always count as training, because the reference model, which has no gradients, must compute
        # the same function as the trained one.
        is_training = bool(shared_keys) or torch.is_grad_enabled()
        prompt_lengths = None if is_training else torch.tensor(attention.sequence_lengths(cu))
        embeds = self.embed(batch)
        return lm.hidden_states(
            self.llm, embeds, batch["positions"], cu, prompt_lengths=prompt_lengths, indices=indices, **shared_keys
        )

    def head(self, h: Tensor) -> Tensor:
        """Return the logits (R, V) of hidden states (R, H). Logits are large, so pass only the positions needed."""
        return output_layer(self.llm)(h)

    def logits(self, batch: Pack) -> Tensor:
        """Return the logits of every position: (T, V). For tests and small batches."""
        return self.head(self.hidden_states(batch))

    def forward(self, batch: Pack) -> Tensor:
        """Return the hidden states of every position: (T, H)."""
        return self.hidden_states(batch)

    def generate(self, batch: Pack, settings: GenerationSettings, **options: Any) -> list[list[int]]:
        """Return the token ids that continue each row of a batch of prompts; options as in `generation.generate`.

        This is a method so that FSDP can gather the parameters of a sharded net around it (`training.sharding`).
        """
        return generate(self, batch, settings, **options)
