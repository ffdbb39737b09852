"""Answers, greedy and sampled, against transformers' `generate` on left-padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2AudioForConditionalGeneration, Qwen2ForCausalLM

from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings, generate, process
from support.packs import VOCAB, Row, expand, pack, text
from support.twins import BATCHES, QWEN2, build, pad, padded

pytestmark = pytest.mark.usefixtures("float64")

# Both systems' generation_config.json, without their tokens. The official evaluation scripts turn sampling off and
# leave the rest as it is, so that Qwen2-Audio's are greedy with a repetition penalty.
QWEN_AUDIO = {"do_sample": True, "top_k": 0, "top_p": 0.8}
QWEN2_AUDIO = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.5}
EVALUATION = {"do_sample": False, "min_new_tokens": 1}


@pytest.fixture(scope="module")
def models() -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    return build()


@pytest.fixture(params=BATCHES)
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return BATCHES[request.param]


def answers(theirs: PreTrainedModel, inputs: dict, config: dict[str, Any], **overrides: Any) -> list[list[int]]:
    """What `generate` continues each row with, up to its stop token."""
    out = theirs.generate(**inputs, generation_config=GenerationConfig(**config, pad_token_id=0), **overrides)
    stop = config.get("eos_token_id", [])
    new = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stop), None)] for row in new]


def check_greedy(ours: AudioLM, theirs: PreTrainedModel, rows: list[Row], inputs: dict, config: dict) -> None:
    """Without stop tokens, with them as in the official scripts, and with them kept off for longer."""
    batch = pack(rows, ours.geometry)
    greedy = {"do_sample": False, "max_new_tokens": 16}
    free = answers(theirs, inputs, config, **greedy)
    assert [len(row) for row in free] == [16] * len(rows) and len({tuple(row) for row in free}) > 1
    assert generate(ours, batch, GenerationSettings.from_config(config, **greedy)) == free

    config = config | {"eos_token_id": [free[0][0], free[0][5], free[-1][12]]}
    for overrides in (EVALUATION, EVALUATION | {"min_new_tokens": 3}):
        stopped = answers(theirs, inputs, config, max_new_tokens=16, **overrides)
        assert stopped != free
        assert generate(ours, batch, GenerationSettings.from_config(config, max_new_tokens=16, **overrides)) == stopped


@pytest.mark.parametrize("config", [QWEN_AUDIO, QWEN2_AUDIO], ids=["qwen_audio", "qwen2_audio"])
def test_greedy_answers_of_the_official_evaluation(models: tuple, rows: list[Row], config: dict) -> None:
    ours, theirs = models
    check_greedy(ours, theirs, rows, padded(rows, ours, "left"), config)


@pytest.mark.parametrize("config", [QWEN_AUDIO, QWEN2_AUDIO], ids=["qwen_audio", "qwen2_audio"])
def test_greedy_answers_of_a_plain_language_model(models: tuple, config: dict) -> None:
    ours, _ = models
    theirs = Qwen2ForCausalLM(ours.llm.config.__class__(**{**QWEN2, "vocab_size": VOCAB})).eval()
    theirs.load_state_dict(ours.llm.state_dict())
    rows: list[Row] = [[text(11)], [text(3)], [text(7)], [text(1)]]
    inputs = pad([expand(row, ours.geometry) for row in rows], "left")
    check_greedy(ours, theirs, rows, inputs, config)


def test_the_penalty_of_the_published_settings_changes_answers(models: tuple) -> None:
    """Without which the tests above would not see it."""
    ours, _ = models
    batch = pack(BATCHES["several clips"], ours.geometry)
    plain, penalised = (
        generate(ours, batch, GenerationSettings(max_new_tokens=16, repetition_penalty=penalty))
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
def test_tokens_are_sampled_with_the_probabilities_of_generate(models: tuple, name: str) -> None:
    """Along the answers that it samples: every step's scores, excluded tokens included."""
    ours, theirs = models
    rows = BATCHES["several clips"]
    inputs, prompts = padded(rows, ours, "left"), [expand(row, ours.geometry) for row in rows]
    config = {**SAMPLED[name], "max_new_tokens": 8, "min_new_tokens": 3, "eos_token_id": list(range(40, 90))}
    torch.manual_seed(0)
    out = theirs.generate(
        **inputs,
        generation_config=GenerationConfig(**config, pad_token_id=0),
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    batch = pack([[*row, answer] for row, answer in zip(rows, answers, strict=True)], ours.geometry)
    logits = ours.logits(batch).split(batch["cu_seqlens"].diff().tolist())
    settings = GenerationSettings.from_config(config)
    compared = 0
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        for step in range(len(answer)):
            seen = torch.zeros(1, VOCAB, dtype=torch.bool)
            seen[0, prompt + answer[:step]] = True
            logit = logits[row][None, len(prompt) - 1 + step]
            scores = process(logit, settings, so_far=torch.tensor([step]), seen=seen)
            torch.testing.assert_close(scores[0], out.scores[step][row], atol=1e-4, rtol=1e-4)
            compared += 1
            if answer[step] in settings.stop:
                break
    assert compared >= 4 * len(rows)


@torch.no_grad()
def test_sampled_tokens_come_as_often_as_their_probabilities_say(models: tuple) -> None:
    """2000 rows of one prompt, whose draws are independent of each other: chi-squared with 7 degrees of freedom."""
    ours, theirs = models
    n, prompt, config = 2000, text(5), {"do_sample": True, "temperature": 1.5, "top_k": 8, "max_new_tokens": 1}
    out = theirs.generate(
        **pad([prompt], "left"),
        generation_config=GenerationConfig(**config, pad_token_id=0),
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = n * out.scores[0][0].softmax(-1)
    batch = pack([[prompt]] * n, ours.geometry)
    sampled = generate(ours, batch, GenerationSettings.from_config(config), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor(sampled).flatten(), minlength=VOCAB)
    possible = expected > 0
    assert possible.sum() == 8 and counts[~possible].sum() == 0
    chi_squared = ((counts - expected).square() / expected)[possible].sum()
    assert chi_squared < 24.3  # exceeded once in a thousand
