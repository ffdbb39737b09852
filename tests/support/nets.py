"""Qwen-Audio and Qwen2-Audio at a size of a few thousand weights."""

from __future__ import annotations

from functools import partial

import torch

from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.boundary import Learned, Tokens
from auris.model.encoder import Encoder

N_MELS, WIDTH, N_HEADS, FFN = 16, 24, 2, 96
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,  # equal to the number of heads: Qwen-Audio has no grouped queries
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}


def build(system: str = "qwen2_audio", *, vocab: int = 41, layers: int = 2, **config: object) -> AudioLM:
    """Return a net whose parameters and buffers are all random, norms and positions included, so that all differ."""
    learned = system == "qwen_audio"
    net = AudioLM(
        encoder=Encoder(
            n_mels=N_MELS,
            width=WIDTH,
            n_layers=layers,
            n_heads=N_HEADS,
            ffn=FFN,
            clip_end="zero" if learned else "silence",
        ),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        boundary=Learned if learned else Tokens,
        llm=partial(llm.build_llm, {**QWEN2, "num_hidden_layers": layers, **config}),
        vocab_size=vocab,
    ).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.normal_()
    return net


def build_meta(*args: object, **kwargs: object) -> AudioLM:
    with torch.device("meta"):
        return build(*args, **kwargs)
