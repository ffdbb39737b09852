"""Access to a language model's embedding and output layer, whose weights have one row per token of the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedModel


def input_table(llm: PreTrainedModel) -> nn.Embedding:
    """Return the embedding of input tokens."""
    return cast("nn.Embedding", llm.get_input_embeddings())  # transformers declares a plain module


def output_layer(llm: PreTrainedModel) -> nn.Linear:
    """Return the linear layer that computes logits."""
    return cast("nn.Linear", llm.get_output_embeddings())  # transformers declares an optional module
