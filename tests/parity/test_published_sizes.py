"""Parameter counts of the published systems, part by part. The models stay on the meta device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from auris import config

TOKENIZER = SimpleNamespace(size=5_000)  # smaller than the released tables
# In this order: conv1 and conv2, blocks, final norm, projector, boundary (learned embeddings of the begin and end of
# a clip), embedding or head (which are equally large), LLM layers, LLM norm
SIZES = {
    "qwen_audio": (308_480 + 4_916_480, 629_637_120, 2_560, 5_246_976, 8_192, 638_758_912, 6_476_660_736, 4_096),
    "qwen2_audio": (492_800 + 4_916_480, 629_637_120, 2_560, 5_246_976, 0, 639_107_072, 6_476_660_736, 4_096),
}
TOTALS = {"qwen_audio": 8_394_302_464, "qwen2_audio": 8_397_094_912}
# Size of the encoder's position table: a buffer in auris and Qwen-Audio, a frozen parameter in Qwen2-Audio.
POSITIONS = 1_920_000


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build_net(*overrides: str) -> nn.Module:
    return config.build_net(config.resolve(config.compose(overrides)), TOKENIZER)


@pytest.mark.parametrize("system", SIZES)
def test_the_published_systems_have_the_released_number_of_parameters(system: str):
    net = build_net(f"experiment={system}_pretrain", "scale=full")
    parts = (
        count_parameters(net.encoder.conv1) + count_parameters(net.encoder.conv2),
        count_parameters(net.encoder.blocks),
        count_parameters(net.encoder.norm),
        count_parameters(net.projector),
        count_parameters(net.boundary),
        count_parameters(net.llm.model.embed_tokens),
        count_parameters(net.llm.model.layers),
        count_parameters(net.llm.model.norm),
    )
    assert parts == SIZES[system]
    assert count_parameters(net.llm.lm_head) == parts[5] and net.encoder.positions.numel() == POSITIONS
    assert count_parameters(net) + (POSITIONS if system == "qwen2_audio" else 0) == TOTALS[system]


def test_the_small_scale_has_the_sizes_of_whisper_small_and_qwen2_0_5b():
    net = build_net("experiment=qwen2_audio_pretrain", "scale=small")
    assert (net.encoder.width, len(net.encoder.blocks)) == (768, 12)
    assert count_parameters(net.llm.model.layers) == 24 * 14_912_384  # Qwen2-0.5B without its embedding
    assert net.llm.lm_head.weight is net.llm.model.embed_tokens.weight


def test_an_embedding_table_with_fewer_rows_than_the_tokenizer_needs_is_refused():
    with pytest.raises(ValueError, match="model.vocab_rows=4999: expected at least 5000"):
        build_net("model.vocab_rows=4999")
