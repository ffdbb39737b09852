"""Overrides that make a recipe small enough for a test."""

from __future__ import annotations

SMALLEST_MODEL = [
    "model.encoder.width=16",
    "model.encoder.n_layers=1",
    "model.encoder.n_heads=2",
    "model.llm.config.hidden_size=16",
    "model.llm.config.intermediate_size=32",
    "model.llm.config.num_hidden_layers=1",
    "model.llm.config.num_attention_heads=2",
    "model.llm.config.num_key_value_heads=2",
]
