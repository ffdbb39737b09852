"""LLMs by config: run packed, refused where they cannot be, initialised on the meta device, cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from auris.model import attention
from auris.model import llm as lm

pytestmark = pytest.mark.usefixtures("float64")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, **SMALL},
    "tied": {"model_type": "qwen2", "num_key_value_heads": 4, "tie_word_embeddings": True, **SMALL},
    "llama": {"model_type": "llama", "num_key_value_heads": 1, "rope_parameters": LLAMA3, **SMALL},
    "gpt_neox": {"model_type": "gpt_neox", **SMALL},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0},
}
VOCAB = 61
LENGTHS = [7, 1, 12, 4]


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict:
    return CONFIGS[request.param]


def rows() -> list[torch.Tensor]:
    return list(torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0)).split(LENGTHS))


def positions(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


@torch.no_grad()
def test_a_packed_row_equals_transformers_own_run_of_it(config: dict) -> None:
    torch.manual_seed(0)
    llm = lm.build_llm(config, VOCAB).eval()
    twin = AutoModelForCausalLM.from_config(llm.config, attn_implementation="sdpa").eval()
    twin.load_state_dict(llm.state_dict())
    cu = attention.cumulate(torch.tensor(LENGTHS))
    hidden = lm.hidden_states(llm, lm.embed(llm, torch.cat(rows())), positions(LENGTHS), cu)
    logits = llm.get_output_embeddings()(hidden)
    assert logits.shape == (sum(LENGTHS), VOCAB)
    for row, got in zip(rows(), logits.split(LENGTHS), strict=True):
        torch.testing.assert_close(got, twin(input_ids=row[None]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", [[0, 6, 7, 11, 23], [23, 3], [], list(range(24))], ids=str)
def test_selected_tokens_equal_those_of_the_full_pass(config: dict, where: list[int]) -> None:
    torch.manual_seed(0)
    llm = lm.build_llm(config, VOCAB).eval()  # GPT-2 has dropout
    at = torch.tensor(where, dtype=torch.long)
    embeds = lm.embed(llm, torch.cat(rows())).detach().requires_grad_()
    cu, weights = attention.cumulate(torch.tensor(LENGTHS)), torch.randn(len(at), 32)

    def run(**options: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        h = lm.hidden_states(llm, embeds, positions(LENGTHS), cu, **options)
        h = h if options else h[at]
        gradients = torch.autograd.grad((h * weights).sum(), [embeds, *llm.parameters()], allow_unused=True)
        return h, list(gradients)  # None: of the tables

    (found, gradients), (expected, others) = run(indices=at), run()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for mine, other in zip(gradients, others, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.last_tokenwise(llm))


def test_tokens_without_a_label_skip_the_last_layer() -> None:
    llm = lm.build_llm(CONFIGS["qwen2"], VOCAB)
    embeds, cu = lm.embed(llm, torch.cat(rows())), attention.cumulate(torch.tensor(LENGTHS))

    def operations(**options: torch.Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            lm.hidden_states(llm, embeds, positions(LENGTHS), cu, **options)
        return counter.get_total_flops()

    matrices = sum(p.numel() for part in lm.last_tokenwise(llm) for p in part.parameters() if p.ndim == 2)
    assert matrices == 2 * 32 * 32 + 3 * 32 * 48  # queries, output, MLP: all but keys and values
    assert operations() - operations(indices=torch.tensor([2, 9])) == 2 * (sum(LENGTHS) - 2) * matrices


@torch.no_grad()
def test_decoding_with_the_cache_equals_running_the_row_whole(config: dict) -> None:
    """Rows end at any place and others take theirs, longer ones than there were too."""
    torch.manual_seed(0)
    llm = lm.build_llm(config, VOCAB).eval()
    cu = attention.cumulate(torch.tensor(LENGTHS))
    whole = lm.hidden_states(llm, lm.embed(llm, torch.cat(rows())), positions(LENGTHS), cu).split(LENGTHS)
    close = {"atol": 1e-5, "rtol": 1e-5}
    cache = lm.SlotCache(room=7, device=cu.device)
    alive: list[int] = []  # the row in each slot
    moved = 0

    def begin(first: list[int], prompts: list[int]) -> None:
        cache.begin(torch.tensor(prompts))
        ids = torch.cat([rows()[row][:n] for row, n in zip(first, prompts, strict=True)])
        got = lm.hidden_states(
            llm, lm.embed(llm, ids), positions(prompts), attention.cumulate(torch.tensor(prompts)), cache
        )
        expected = [whole[row][:n] for row, n in zip(first, prompts, strict=True)]
        torch.testing.assert_close(got, torch.cat(expected), **close)
        alive.extend(first)

    def extend(going: set[int]) -> None:
        nonlocal moved
        slots = [slot for slot, row in enumerate(alive) if row in going]
        order = cache.keep(slots)
        assert sorted(order) == slots
        moved += order != [*range(len(slots))]
        alive[:] = [alive[slot] for slot in order]
        at = cache.lengths.clone()
        cache.extend()
        new = torch.stack([rows()[row][n] for row, n in zip(alive, at.tolist(), strict=True)])
        got = lm.hidden_states(llm, lm.embed(llm, new), at, torch.arange(len(alive) + 1, dtype=torch.int32), cache)
        expected = torch.stack([whole[row][n] for row, n in zip(alive, at.tolist(), strict=True)])
        torch.testing.assert_close(got, expected, **close)

    begin([0, 3], [2, 1])
    for going in ({0, 3}, {3}):
        extend(going)
    begin([2, 1], [5, 1])
    for going in ({2, 3}, {2}):
        extend(going)
    begin([0], [4])
    for going in ({0, 2}, {0}):
        extend(going)
    assert moved == 3 and cache.lengths.tolist() == [6]
    begin([2], [11])  # longer than all before, while slots are free
    extend({0, 2})
    assert cache.lengths.tolist() == [7, 12]
    assert all(len(held) == 3 for held in cache.keys.values())  # slots are used again


def test_a_model_from_the_meta_device_equals_one_built_at_once(config: dict) -> None:
    eager = lm.build_llm(config, VOCAB)
    with torch.device("meta"):
        llm = lm.build_llm(config, VOCAB)
    llm.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*llm.parameters(), *llm.buffers()]:
            tensor.fill_(7)  # memory that was never initialised may happen to look right
    lm.reset_parameters(llm)
    buffers = dict(eager.named_buffers())
    assert [name for name, _ in llm.named_buffers()] == list(buffers)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in llm.named_buffers())
    for name, parameter in llm.named_parameters():
        twin = eager.get_parameter(name)
        torch.testing.assert_close(parameter.mean(), twin.mean(), atol=0.01, rtol=0, msg=name)
        torch.testing.assert_close(parameter.std(), twin.std(), atol=0.005, rtol=0.15, msg=name)
    tied = llm.config.tie_word_embeddings
    assert (llm.get_input_embeddings().weight is llm.get_output_embeddings().weight) == tied


def test_a_model_that_was_initialised_once_can_be_again() -> None:
    llm = lm.build_llm(CONFIGS["llama"], VOCAB)
    llm.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*llm.parameters(), *llm.buffers()]:
            tensor.fill_(torch.nan)
    lm.reset_parameters(llm)
    assert all(tensor.isfinite().all() for tensor in [*llm.parameters(), *llm.buffers()])


def test_initialisation_follows_the_seed(config: dict) -> None:
    states = []
    for seed in (1, 1, 2):
        with torch.device("meta"):
            llm = lm.build_llm(config, VOCAB)
        llm.to_empty(device="cpu")
        torch.manual_seed(seed)
        lm.reset_parameters(llm)
        states.append(torch.cat([p.detach().flatten() for p in llm.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_directory_gives_the_config_and_the_tokenizer_gives_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["qwen2"], "vocab_size": 9, "dtype": "bfloat16"}))
    llm = lm.build_llm({"path": str(tmp_path)}, VOCAB)
    assert llm.get_input_embeddings().weight.shape == (VOCAB, 32)
    assert llm.config.num_hidden_layers == 2 and llm.dtype == torch.get_default_dtype()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lm.build_llm({"path": str(tmp_path / "nowhere")}, VOCAB)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "bloom"}, "attention interface"),
        ({"model_type": "mamba"}, "attention interface"),
        ({"model_type": "gemma2"}, "final_logit_softcapping"),
        ({"model_type": "whisper_encoder_of_my_own"}, "whisper_encoder_of_my_own"),
        ({"model_type": "qwen2_audio_encoder"}, "not a causal language model"),
        ({"hidden_size": 32}, "model_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_that_cannot_run_packed_are_refused(config: dict, reason: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=reason):
        lm.build_llm(config, VOCAB)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding_window"),
    ],
    ids=["dropout", "window"],
)
def test_attention_that_packed_does_not_have_is_refused(extra: dict, reason: str) -> None:
    llm = lm.build_llm({**CONFIGS["llama"], "rope_parameters": None, **extra}, VOCAB).train()
    cu = attention.cumulate(torch.tensor(LENGTHS))
    with pytest.raises(ValueError, match=reason):
        lm.hidden_states(llm, lm.embed(llm, torch.cat(rows())), positions(LENGTHS), cu)
