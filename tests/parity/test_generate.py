"""Greedy and sampled answers against transformers' `generate` on left-padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2AudioForConditionalGeneration, Qwen2ForCausalLM

from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings, generate, process_logits
from support.packs import VOCAB, Row, pack, row_ids, text
from support.twins import BATCHES, QWEN2, build, pad_ids, processor_output

pytestmark = pytest.mark.usefixtures("float64")

# generation_config.json of both systems, without token ids. The official evaluation scripts turn sampling off and
# keep the other settings, so Qwen2-Audio decodes greedily with a repetition penalty.
QWEN_AUDIO = {"do_sample": True, "top_k": 0, "top_p": 0.8}
QWEN2_AUDIO = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.5}
EVALUATION = {"do_sample": False, "min_new_tokens": 1}


@pytest.fixture(scope="module")
def models() -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    return build()


@pytest.fixture(params=BATCHES)
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return BATCHES[request.param]


def answers(reference: PreTrainedModel, inputs: dict, config: dict[str, Any], **overrides: Any) -> list[list[int]]:
    """Return the tokens that `generate` appends to each row, up to the stop token."""
    tokens = reference.generate(**inputs, generation_config=GenerationConfig(**config, pad_token_id=0), **overrides)
    stop = config.get("eos_token_id", [])
    new_tokens = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stop), None)] for row in new_tokens]


def check_greedy(net: AudioLM, reference: PreTrainedModel, rows: list[Row], inputs: dict, config: dict) -> None:
    """Compare greedy answers without stop tokens, with official settings, and with a higher minimum length."""
    batch = pack(rows, net.geometry)
    greedy = {"do_sample": False, "max_new_tokens": 16}
    unstopped = answers(reference, inputs, config, **greedy)
    assert [len(row) for row in unstopped] == [16] * len(rows) and len({tuple(row) for row in unstopped}) > 1
    assert generate(net, batch, GenerationSettings.from_config(config, **greedy)) == unstopped

    config = config | {"eos_token_id": [unstopped[0][0], unstopped[0][5], unstopped[-1][12]]}
    for overrides in (EVALUATION, EVALUATION | {"min_new_tokens": 3}):
        stopped = answers(reference, inputs, config, max_new_tokens=16, **overrides)
        assert stopped != unstopped
        assert generate(net, batch, GenerationSettings.from_config(config, max_new_tokens=16, **overrides)) == stopped


@pytest.mark.parametrize("config", [QWEN_AUDIO, QWEN2_AUDIO], ids=["qwen_audio", "qwen2_audio"])
def test_greedy_answers_equal_those_of_transformers_with_official_settings(
    models: tuple, rows: list[Row], config: dict
) -> None:
    net, reference = models
    check_greedy(net, reference, rows, processor_output(rows, net, "left"), config)


@pytest.mark.parametrize("config", [QWEN_AUDIO, QWEN2_AUDIO], ids=["qwen_audio", "qwen2_audio"])
def test_greedy_answers_to_text_prompts_equal_those_of_the_language_model(models: tuple, config: dict) -> None:
    net, _ = models
    reference = Qwen2ForCausalLM(net.llm.config.__class__(**{**QWEN2, "vocab_size": VOCAB})).eval()
    reference.load_state_dict(net.llm.state_dict())
    rows: list[Row] = [[text(11)], [text(3)], [text(7)], [text(1)]]
    inputs = pad_ids([row_ids(row, net.geometry) for row in rows], "left")
    check_greedy(net, reference, rows, inputs, config)


def test_the_penalty_of_the_published_settings_changes_answers(models: tuple) -> None:
    """If the penalty had no effect, the comparisons with transformers could not detect a wrong one."""
    net, _ = models
    batch = pack(BATCHES["several clips"], net.geometry)
    plain, penalised = (
        generate(net, batch, GenerationSettings(max_new_tokens=16, repetition_penalty=penalty))
        for penalty in (1.0, 1.1)
    )
    assert plain != penalised


SAMPLED = {
    "qwen_audio": QWEN_AUDIO,
    "qwen2_audio": QWEN2_AUDIO,
    "temperature": {"do_sample": True, "top_k": 0, "temperature": 1.7},
    "default top-k": {"do_sample": True},
    "top-k": {"do_sample": True, "top_k": 7},
    "top-p": {"do_sample": True, "top_k": 0, "top_p": 0.6},
    "all": {"do_sample": True, "repetition_penalty": 1.4, "temperature": 1.3, "top_k": 30, "top_p": 0.9},
}


@torch.no_grad()
@pytest.mark.parametrize("name", SAMPLED)
def test_processed_scores_equal_those_of_transformers_at_every_sampled_token(models: tuple, name: str) -> None:
    """At every step of an answer sampled by transformers, compare the scores of all tokens (-inf: excluded)."""
    net, reference = models
    rows = BATCHES["several clips"]
    inputs, prompts = processor_output(rows, net, "left"), [row_ids(row, net.geometry) for row in rows]
    config = {**SAMPLED[name], "max_new_tokens": 8, "min_new_tokens": 3, "eos_token_id": list(range(40, 90))}
    torch.manual_seed(0)
    out = reference.generate(
        **inputs,
        generation_config=GenerationConfig(**config, pad_token_id=0),
        return_dict_in_generate=True,
        output_scores=True,
    )
    sampled_answers = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    batch = pack([[*row, answer] for row, answer in zip(rows, sampled_answers, strict=True)], net.geometry)
    logits = net.logits(batch).split(batch["cu_seqlens"].diff().tolist())
    settings = GenerationSettings.from_config(config)
    compared = 0
    for row, (prompt, answer) in enumerate(zip(prompts, sampled_answers, strict=True)):
        for step in range(len(answer)):
            seen = torch.zeros(1, VOCAB, dtype=torch.bool)
            seen[0, prompt + answer[:step]] = True
            logit = logits[row][None, len(prompt) - 1 + step]
            scores = process_logits(logit, settings, n_generated=torch.tensor([step]), seen=seen)
            torch.testing.assert_close(scores[0], out.scores[step][row], atol=1e-4, rtol=1e-4)
            compared += 1
            if answer[step] in settings.stop:
                break
    assert compared >= 4 * len(rows)


@torch.no_grad()
def test_frequencies_of_sampled_tokens_match_their_probabilities(models: tuple) -> None:
    """Sample one token for 2000 copies of a prompt. Chi-squared test with 7 degrees of freedom."""
    net, reference = models
    n, prompt, config = 2000, text(5), {"do_sample": True, "temperature": 1.5, "top_k": 8, "max_new_tokens": 1}
    out = reference.generate(
        **pad_ids([prompt], "left"),
        generation_config=GenerationConfig(**config, pad_token_id=0),
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = n * out.scores[0][0].softmax(-1)
    batch = pack([[prompt]] * n, net.geometry)
    sampled = generate(net, batch, GenerationSettings.from_config(config), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor(sampled).flatten(), minlength=VOCAB)
    possible = expected > 0
    assert possible.sum() == 8 and counts[~possible].sum() == 0
    chi_squared = ((counts - expected).square() / expected)[possible].sum()
    assert chi_squared < 24.3  # p = 0.001
