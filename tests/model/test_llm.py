"""LLMs built from a config: packed forward pass, cache, initialisation on the meta device, refused architectures."""

from __future__ import annotations

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


def test_key_value_heads_must_divide_the_heads() -> None:
    config = {**CONFIGS["qwen2"], "num_attention_heads": 4, "num_key_value_heads": 3}
    with pytest.raises(ValueError, match="num_key_value_heads=3: expected a divisor of .*num_attention_heads=4"):
        lm.build_llm(config, VOCAB)


@torch.no_grad()
def test_the_logits_of_a_packed_row_equal_those_of_transformers(config: dict) -> None:
    torch.manual_seed(0)
    llm = lm.build_llm(config, VOCAB).eval()
    reference = AutoModelForCausalLM.from_config(llm.config, attn_implementation="sdpa").eval()
    reference.load_state_dict(llm.state_dict())
    cu = attention.cumulative_lengths(torch.tensor(LENGTHS))
    hidden = lm.hidden_states(llm, lm.embed(llm, torch.cat(rows())), positions(LENGTHS), cu)
    logits = llm.get_output_embeddings()(hidden)
    assert logits.shape == (sum(LENGTHS), VOCAB)
    for row, actual in zip(rows(), logits.split(LENGTHS), strict=True):
        torch.testing.assert_close(actual, reference(input_ids=row[None]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("selection", [[0, 6, 7, 11, 23], [23, 3], [], list(range(24))], ids=str)
def test_hidden_states_of_selected_tokens_equal_those_of_a_full_pass(config: dict, selection: list[int]) -> None:
    torch.manual_seed(0)
    llm = lm.build_llm(config, VOCAB).eval()  # `eval`, because GPT-2 has dropout
    indices = torch.tensor(selection, dtype=torch.long)
    embeds = lm.embed(llm, torch.cat(rows())).detach().requires_grad_()
    cu, weights = attention.cumulative_lengths(torch.tensor(LENGTHS)), torch.randn(len(indices), 32)

    def run(**options: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        h = lm.hidden_states(llm, embeds, positions(LENGTHS), cu, **options)
        h = h if options else h[indices]
        gradients = torch.autograd.grad((h * weights).sum(), [embeds, *llm.parameters()], allow_unused=True)
        return h, list(gradients)  # None for embedding and head, which are not used here

    (actual, gradients), (expected, expected_gradients) = run(indices=indices), run()
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (expected_gradient is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-4)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in lm.tokenwise_parts_of_last_layer(llm)
    )


def test_tokens_without_a_label_skip_the_last_layer_except_its_keys_and_values() -> None:
    llm = lm.build_llm(CONFIGS["qwen2"], VOCAB)
    embeds, cu = lm.embed(llm, torch.cat(rows())), attention.cumulative_lengths(torch.tensor(LENGTHS))

    def operations(**options: torch.Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            lm.hidden_states(llm, embeds, positions(LENGTHS), cu, **options)
        return counter.get_total_flops()

    matrices = sum(
        p.numel() for part in lm.tokenwise_parts_of_last_layer(llm) for p in part.parameters() if p.ndim == 2
    )
    assert matrices == 2 * 32 * 32 + 3 * 32 * 48  # queries, output, MLP: all but keys and values
    assert operations() - operations(indices=torch.tensor([2, 9])) == 2 * (sum(LENGTHS) - 2) * matrices


@torch.no_grad()
def test_decoding_with_the_cache_equals_a_full_forward_pass(config: dict) -> None:
    """Rows end at different lengths, and other rows, some longer than all earlier ones, take their slots."""
    torch.manual_seed(0)
    llm = lm.build_llm(config, VOCAB).eval()
    cu = attention.cumulative_lengths(torch.tensor(LENGTHS))
    full = lm.hidden_states(llm, lm.embed(llm, torch.cat(rows())), positions(LENGTHS), cu).split(LENGTHS)
    tolerance = {"atol": 1e-5, "rtol": 1e-5}
    cache = lm.SlotCache(max_new_tokens=7, device=cu.device)
    slot_rows: list[int] = []  # the number of the row in each slot
    n_reordered = 0

    def begin(new_rows: list[int], prompt_lengths: list[int]) -> None:
        cache.begin_prompts(torch.tensor(prompt_lengths))
        ids = torch.cat([rows()[row][:n] for row, n in zip(new_rows, prompt_lengths, strict=True)])
        actual = lm.hidden_states(
            llm,
            lm.embed(llm, ids),
            positions(prompt_lengths),
            attention.cumulative_lengths(torch.tensor(prompt_lengths)),
            cache,
        )
        expected = [full[row][:n] for row, n in zip(new_rows, prompt_lengths, strict=True)]
        torch.testing.assert_close(actual, torch.cat(expected), **tolerance)
        slot_rows.extend(new_rows)

    def extend(running: set[int]) -> None:
        nonlocal n_reordered
        slots = [slot for slot, row in enumerate(slot_rows) if row in running]
        order = cache.keep(slots)
        assert sorted(order) == slots
        n_reordered += order != [*range(len(slots))]
        slot_rows[:] = [slot_rows[slot] for slot in order]
        lengths = cache.lengths.clone()
        cache.extend()
        token_ids = torch.stack([rows()[row][n] for row, n in zip(slot_rows, lengths.tolist(), strict=True)])
        actual = lm.hidden_states(
            llm, lm.embed(llm, token_ids), lengths, torch.arange(len(slot_rows) + 1, dtype=torch.int32), cache
        )
        expected = torch.stack([full[row][n] for row, n in zip(slot_rows, lengths.tolist(), strict=True)])
        torch.testing.assert_close(actual, expected, **tolerance)

    begin([0, 3], [2, 1])
    for running in ({0, 3}, {3}):
        extend(running)
    begin([2, 1], [5, 1])
    for running in ({2, 3}, {2}):
        extend(running)
    begin([0], [4])
    for running in ({0, 2}, {0}):
        extend(running)
    assert n_reordered == 3 and cache.lengths.tolist() == [6]
    begin([2], [11])  # longer than all earlier rows, while slots are free
    extend({0, 2})
    assert cache.lengths.tolist() == [7, 12]
    assert all(len(keys) == 3 for keys in cache.keys.values())  # 3 slots for 6 prompts, because free slots are reused


def test_a_model_built_on_the_meta_device_is_initialised_like_one_built_in_memory(config: dict) -> None:
    eager = lm.build_llm(config, VOCAB)
    with torch.device("meta"):
        llm = lm.build_llm(config, VOCAB)
    llm.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*llm.parameters(), *llm.buffers()]:
            tensor.fill_(7)  # uninitialised memory may look right by chance
    lm.reset_parameters(llm)
    buffers = dict(eager.named_buffers())
    assert [name for name, _ in llm.named_buffers()] == list(buffers)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in llm.named_buffers())
    for name, parameter in llm.named_parameters():
        expected = eager.get_parameter(name)
        torch.testing.assert_close(parameter.mean(), expected.mean(), atol=0.01, rtol=0, msg=name)
        torch.testing.assert_close(parameter.std(), expected.std(), atol=0.005, rtol=0.15, msg=name)
    tied = llm.config.tie_word_embeddings
    assert (llm.get_input_embeddings().weight is llm.get_output_embeddings().weight) == tied


def test_a_model_can_be_initialised_a_second_time() -> None:
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


def test_the_config_of_a_model_does_not_set_the_vocabulary_size_and_the_dtype() -> None:
    llm = lm.build_llm({**CONFIGS["qwen2"], "vocab_size": 9, "dtype": "bfloat16"}, VOCAB)
    assert llm.get_input_embeddings().weight.shape == (VOCAB, 32)
    assert llm.config.num_hidden_layers == 2 and llm.dtype == torch.get_default_dtype()


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
def test_a_config_is_refused_unless_it_is_of_an_llm_with_packed_attention(config: dict, reason: str) -> None:
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
def test_attention_features_that_packed_attention_lacks_are_refused(extra: dict, reason: str) -> None:
    llm = lm.build_llm({**CONFIGS["llama"], "rope_parameters": None, **extra}, VOCAB).train()
    cu = attention.cumulative_lengths(torch.tensor(LENGTHS))
    with pytest.raises(ValueError, match=reason):
        lm.hidden_states(llm, lm.embed(llm, torch.cat(rows())), positions(LENGTHS), cu)
