"""The name map between ours and Qwen2-Audio's (values: tests/parity)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from auris.model import llm, pooling, projector, weights
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder


def qwen2(vocab: int) -> dict:
    return {
        "model_type": "qwen2",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
        "vocab_size": vocab,
    }


@pytest.fixture(scope="module")
def net() -> AudioLM:
    with torch.device("meta"):
        return AudioLM(
            encoder=Encoder(n_mels=8, width=12, n_layers=11, n_heads=2),
            pooling=partial(pooling.Mean, k=2),
            projector=projector.Linear,
            llm=partial(llm.build_llm, qwen2(32)),
            vocab_size=32,
        )


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    audio = {
        "num_mel_bins": 8,
        "d_model": 12,
        "encoder_layers": 11,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
    }
    with torch.device("meta"):
        config = Qwen2AudioConfig(audio_config={"model_type": "qwen2_audio_encoder", **audio}, text_config=qwen2(32))
        return Qwen2AudioForConditionalGeneration(config).state_dict()


def test_names_of_a_model_in_memory_are_ours(net: AudioLM, theirs: dict) -> None:
    assert {weights.from_qwen2_audio(name) for name in theirs} == set(net.state_dict())


def test_the_map_is_two_way_and_yields_the_released_names(net: AudioLM) -> None:
    names = {name: weights.to_qwen2_audio(name) for name in net.state_dict()}
    assert [weights.from_qwen2_audio(name) for name in names.values()] == list(names)
    released = {  # from the index of the released files
        "encoder.conv1.weight": "audio_tower.conv1.weight",
        "encoder.positions": "audio_tower.embed_positions.weight",
        "encoder.blocks.10.key.weight": "audio_tower.layers.10.self_attn.k_proj.weight",
        "encoder.blocks.1.attention_norm.bias": "audio_tower.layers.1.self_attn_layer_norm.bias",
        "encoder.blocks.1.mlp_norm.bias": "audio_tower.layers.1.final_layer_norm.bias",
        "encoder.norm.weight": "audio_tower.layer_norm.weight",
        "projector.bias": "multi_modal_projector.linear.bias",
        "llm.model.layers.11.mlp.gate_proj.weight": "language_model.model.layers.11.mlp.gate_proj.weight",
        "llm.lm_head.weight": "language_model.lm_head.weight",
    }
    assert released.items() <= names.items()


def test_what_does_not_fit_is_named(net: AudioLM, theirs: dict) -> None:
    broken = dict(theirs)
    broken["model.audio_tower.conv3.weight"] = broken.pop("model.audio_tower.conv1.weight")
    broken["lm_head.weight"] = torch.empty(33, 16, device="meta")
    with pytest.raises(ValueError) as error:
        weights.load_qwen2_audio(net, broken)
    for words in ("missing encoder.conv1.weight", "unexpected encoder.conv3.weight", "llm.lm_head.weight: (33, 16)"):
        assert words in str(error.value)
