"""Generation: settings and their validation, sampling that is independent of other rows, streaming, finished rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from auris.data.collate import collate
from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.generation import GenerationSettings, generate, sample_tokens
from support.packs import VOCAB, Clip, Row, pack, text

pytestmark = pytest.mark.usefixtures("float64")

QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # wide enough that greedy answers differ from row to row
}
QWEN_AUDIO = {  # QwenLM/Qwen-Audio base_generation_config.json
    "chat_format": "raw",
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "stop_words_ids": [[151643]],
    "max_new_tokens": 512,
    "do_sample": True,
    "top_k": 0,
    "top_p": 0.8,
    "transformers_version": "4.31.0",
}
QWEN2_AUDIO = {
    "chat_format": "chatml",
    "do_sample": True,
    "eos_token_id": [151643, 151645],
    "pad_token_id": 151643,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.5,
    "transformers_version": "4.38.1",
}


def build(train_length: int | None = None) -> AudioLM:
    torch.manual_seed(0)
    return AudioLM(
        encoder=Encoder(n_mels=16, width=24, n_layers=2, n_heads=2, ffn=40),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        llm=partial(llm.build_llm, QWEN2, train_length=train_length),
        vocab_size=VOCAB,
    )


@pytest.fixture(scope="module")
def net() -> AudioLM:
    return build()


def rows() -> list[Row]:
    return [
        [text(3), Clip(37), text(4)],
        [text(9)],
        [Clip(100), text(2), Clip(3), text(1), Clip(58), text(5)],
        [text(1), Clip(201), text(2)],
    ]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SAMPLED = GenerationSettings(max_new_tokens=12, do_sample=True, temperature=1.2, top_k=40, top_p=0.95)


# --- settings -----------------------------------------------------------------------------------------------------


def test_the_generation_config_of_qwen_audio_is_read() -> None:
    settings = GenerationSettings.from_config(QWEN_AUDIO)
    assert settings == GenerationSettings(max_new_tokens=512, stop=frozenset({151643}), do_sample=True, top_p=0.8)
    assert settings.unused == ("chat_format", "pad_token_id", "transformers_version")


def test_the_generation_config_of_qwen2_audio_is_read() -> None:
    assert GenerationSettings.from_config(QWEN2_AUDIO) == GenerationSettings(
        stop=frozenset({151643, 151645}), do_sample=True, repetition_penalty=1.1, temperature=0.7, top_k=20, top_p=0.5
    )


def test_turning_sampling_off_keeps_the_other_settings_of_the_file() -> None:
    settings = GenerationSettings.from_config(QWEN2_AUDIO, do_sample=False, min_new_tokens=1, max_new_tokens=None)
    assert settings == GenerationSettings(stop=frozenset({151643, 151645}), repetition_penalty=1.1, min_new_tokens=1)
    assert {"temperature", "top_k", "top_p"} < set(settings.unused)


def test_overrides_replace_the_settings_of_the_file() -> None:
    settings = GenerationSettings.from_config(QWEN2_AUDIO, stop=[7], top_k=0, temperature=0.2)
    assert (settings.stop, settings.top_k, settings.temperature, settings.top_p) == (frozenset({7}), 0, 0.2, 0.5)


def test_the_default_top_k_is_that_of_transformers() -> None:
    assert GenerationSettings.from_config({}) == GenerationSettings()
    assert GenerationSettings.from_config({"top_k": None}, do_sample=True).top_k == 50


def test_unsupported_keys_with_neutral_values_are_accepted() -> None:
    neutral = {"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": [], "stop_strings": None}
    beams_only = {"length_penalty": 1.0, "early_stopping": False}
    settings = GenerationSettings.from_config(neutral | beams_only | {"min_p": 0.1, "do_sample": False})
    assert settings == GenerationSettings() and settings.unused == (
        "early_stopping",
        "length_penalty",
        "min_p",
        "typical_p",
    )


@pytest.mark.parametrize(
    "config",
    [
        {"num_beams": 4},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [1, 2]},
        {"do_sample": True, "min_p": 0.1},
        {"stop_words_ids": [[3], [4, 5]]},
    ],
    ids=lambda config: list(config)[-1],
)
def test_a_file_with_an_unsupported_setting_is_refused(config: dict) -> None:
    with pytest.raises(ValueError, match=f"{list(config)[-1]}=.*not supported"):
        GenerationSettings.from_config(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected 1"),
        ({"min_new_tokens": 9, "max_new_tokens": 4, "stop": frozenset({1})}, "min_new_tokens=9: expected 0 to 4"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0: .*do_sample=false"),
        ({"do_sample": True, "top_k": -1}, "top_k=-1"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"temperature": 0.7}, "temperature=0.7 has no effect .*do_sample=true"),
        ({"top_k": 5}, "top_k=5 has no effect"),
        ({"min_new_tokens": 2}, "min_new_tokens=2 has no effect without a stop token"),
    ],
)
def test_a_value_out_of_range_or_without_effect_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**settings)


def test_an_override_without_effect_on_the_settings_of_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature=0.3 has no effect"):
        GenerationSettings.from_config(QWEN2_AUDIO, do_sample=False, temperature=0.3)
    with pytest.raises(ValueError, match="num_beams: expected generation settings, one of"):
        GenerationSettings.from_config(QWEN2_AUDIO, num_beams=4)


def test_a_stop_token_outside_the_vocabulary_is_refused(net: AudioLM) -> None:
    with pytest.raises(ValueError, match=rf"stop=\[151643\]: expected token ids below {VOCAB}"):
        generate(net, pack(rows(), net.geometry), GenerationSettings(stop=frozenset({3, 151643})))


# --- sampling -----------------------------------------------------------------------------------------------------


def test_sampling_picks_the_token_whose_probability_interval_contains_the_draw() -> None:
    scores = torch.tensor([[-torch.inf, 0.5, -torch.inf, 0.25, 0.25, -torch.inf]]).repeat(6, 1)
    scores[scores > 0] = scores[scores > 0].log() + 3  # adding a constant to logits changes nothing
    draws = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(scores, draws).tolist() == [1, 1, 3, 3, 4, 4]


def test_sampled_answers_are_reproducible_and_depend_on_the_seed(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    first, repeated, other = (generate(net, batch, SAMPLED, generator=seeded(seed)) for seed in (1, 1, 2))
    assert first == repeated and all(a != b for a, b in zip(first, other, strict=True))
    torch.manual_seed(5)
    unseeded = generate(net, batch, SAMPLED)
    assert unseeded != generate(net, batch, SAMPLED)  # the state of the global generator has advanced
    torch.manual_seed(5)
    assert unseeded == generate(net, batch, SAMPLED)


def test_a_sampled_answer_depends_on_the_row_number_but_not_on_other_rows(net: AudioLM) -> None:
    expected = generate(net, pack(rows(), net.geometry), SAMPLED, generator=seeded(3))
    for order in ([2, 0, 3, 1], [1], [3, 2]):
        batch = pack([rows()[i] for i in order], net.geometry) | {"rows": order}
        assert generate(net, batch, SAMPLED, generator=seeded(3)) == [expected[i] for i in order]
    duplicates = pack([rows()[0]] * 2, net.geometry)
    first, second = generate(net, duplicates, SAMPLED, generator=seeded(3))
    assert first == expected[0] and first != second


def test_draws_are_independent_along_a_row_and_across_rows(net: AudioLM) -> None:
    """All tokens are equally likely, and so must be all pairs of neighbours after grouping tokens into 4 classes."""
    settings = GenerationSettings(max_new_tokens=11, do_sample=True, temperature=1e9)
    answers = generate(net, pack([[text(2)]] * 200, net.geometry), settings, generator=seeded(0))
    classes = torch.tensor(answers) // (VOCAB // 4)
    for first, second in ((classes[:, :-1], classes[:, 1:]), (classes[:-1], classes[1:])):
        counts = torch.bincount((4 * first + second).flatten(), minlength=16)
        expected = counts.sum() / 16
        chi_squared = ((counts - expected).square() / expected).sum()
        assert chi_squared < 37.7  # p = 0.001 at 15 degrees of freedom


def test_a_shorter_limit_truncates_the_same_sampled_answer(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    longer = generate(net, batch, SAMPLED, generator=seeded(3))
    short = GenerationSettings(max_new_tokens=5, do_sample=True, temperature=1.2, top_k=40, top_p=0.95)
    assert generate(net, batch, short, generator=seeded(3)) == [answer[:5] for answer in longer]


def test_sampling_from_only_the_most_likely_token_is_greedy(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    greedy = generate(net, batch, GenerationSettings(max_new_tokens=8))
    for restriction in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}):
        assert generate(net, batch, GenerationSettings(max_new_tokens=8, do_sample=True, **restriction)) == greedy


# --- decoding -----------------------------------------------------------------------------------------------------


def test_a_huge_repetition_penalty_prevents_every_repetition(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    prompts = batch["ids"].split(batch["cu_seqlens"].diff().tolist())
    unpenalised = generate(net, batch, GenerationSettings(max_new_tokens=12))
    assert any(len(set(answer)) < len(answer) for answer in unpenalised)
    for prompt, answer in zip(
        prompts, generate(net, batch, GenerationSettings(max_new_tokens=12, repetition_penalty=1e6)), strict=True
    ):
        assert len(set(answer)) == 12 and not set(answer) & set(prompt.tolist())


def test_tokens_are_streamed_as_soon_as_they_are_final(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    unstopped = generate(net, batch, GenerationSettings(max_new_tokens=10))
    streamed: list[tuple[int, int]] = []
    settings = GenerationSettings(max_new_tokens=10, stop=frozenset({unstopped[0][3], unstopped[2][6]}))
    answers = generate(net, batch, settings, stream=lambda row, token: streamed.append((row, token)))
    assert len({len(answer) for answer in answers}) > 1
    steps = range(max(map(len, answers)))
    assert streamed == [(row, answer[i]) for i in steps for row, answer in enumerate(answers) if i < len(answer)]


def test_finished_rows_are_not_computed(net: AudioLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pack(rows(), net.geometry)
    unstopped = generate(net, batch, GenerationSettings(max_new_tokens=10))
    token_counts: list[int] = []
    hidden_states = llm.hidden_states

    def count_tokens(net: AudioLM, embeds: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        token_counts.append(len(embeds))
        return hidden_states(net, embeds, *args, **options)

    monkeypatch.setattr(llm, "hidden_states", count_tokens)
    answers = generate(
        net, batch, GenerationSettings(max_new_tokens=10, stop=frozenset({unstopped[0][3], unstopped[2][6]}))
    )
    running = [sum(len(answer) > i for answer in answers) for i in range(9)]  # the last of 10 tokens is never an input
    assert token_counts == [len(batch["ids"]), *(n for n in running if n)]
    assert sum(running) < 9 * len(answers)


GREEDY = GenerationSettings(max_new_tokens=10)


@pytest.mark.parametrize(
    "settings",
    [GREEDY, SAMPLED, GenerationSettings(max_new_tokens=10, repetition_penalty=1.5)],
    ids=["greedy", "sampled", "penalty"],
)
def test_rows_that_refill_slots_are_answered_as_in_one_batch(net: AudioLM, settings: GenerationSettings) -> None:
    """Rows stop at different steps or at the token limit, so that slots are refilled singly and several at a time."""
    all_rows = [*rows(), [text(6)], [Clip(64), text(3)], [text(2), Clip(11)], [text(5)]]
    unstopped = generate(net, pack(all_rows, net.geometry), settings, generator=seeded(3))
    stop = frozenset(answer[n] for n, answer in zip((2, 6, 1), unstopped[:3], strict=True))
    settings = replace(settings, stop=stop, min_new_tokens=1)
    expected = generate(net, pack(all_rows, net.geometry), settings, generator=seeded(3))
    lengths = [len(answer) for answer in expected]
    assert len(set(lengths)) > 2 and max(lengths) == settings.max_new_tokens

    waiting = list(range(3, len(all_rows)))
    running_counts: list[int] = []

    def next_pack(running: int) -> dict | None:
        running_counts.append(running)
        numbers = [waiting.pop(0) for _ in range(min(3 - running, len(waiting)))]
        return pack([all_rows[row] for row in numbers], net.geometry) | {"rows": numbers} if numbers else None

    streamed: dict[int, list[int]] = {row: [] for row in range(len(all_rows))}
    answers = generate(
        net,
        pack(all_rows[:3], net.geometry),
        settings,
        generator=seeded(3),
        stream=lambda row, token: streamed[row].append(token),
        next_pack=next_pack,
    )
    assert answers == expected == list(streamed.values())
    # Each step calls `next_pack`. There are more steps than one pack needs, but on average at least two rows in each.
    assert max(lengths) < len(running_counts) < sum(lengths) / 2


def test_rotary_rescaling_depends_on_the_prompt_length_while_decoding() -> None:
    """Qwen-Audio rescales rotary angles beyond its training length. The length that counts is that of the prompt."""
    net = build(train_length=16)
    batch = pack(rows(), net.geometry)
    lengths = batch["cu_seqlens"].diff()
    assert lengths.min() < 16 < lengths.max() and lengths.min() + 10 > 16
    expected = []
    for row, n in zip(rows(), lengths, strict=True):
        answer: list[int] = []
        for _ in range(10):
            full_row = pack([[*row, answer]], net.geometry)
            with torch.no_grad():
                h = llm.hidden_states(
                    net.llm, net.embed(full_row), full_row["positions"], full_row["cu_seqlens"], prompt_lengths=n[None]
                )
            answer.append(int(net.head(h[-1]).argmax()))
        expected.append(answer)
    answers = generate(net, batch, GenerationSettings(max_new_tokens=10))
    assert answers == expected
    assert answers != generate(build(), batch, GenerationSettings(max_new_tokens=10))


def test_generation_runs_on_a_pack_without_rows(net: AudioLM) -> None:
    """Such a pack is computed as one dummy row, because every forward pass of a sharded net needs all ranks."""
    empty = collate([], geometry=net.geometry)
    for settings in (
        GenerationSettings(max_new_tokens=3),
        SAMPLED,
        GenerationSettings(max_new_tokens=3, repetition_penalty=1.1),
    ):
        assert [len(answer) for answer in generate(net, empty, settings)] == [settings.max_new_tokens]


# --- several ranks ---


@pytest.mark.parametrize(
    "settings", [GenerationSettings(max_new_tokens=12, stop=frozenset(range(0, VOCAB, 3))), SAMPLED]
)
def test_a_rank_whose_rows_have_stopped_continues_until_all_ranks_have_stopped(
    net: AudioLM, settings: GenerationSettings
) -> None:
    """Every forward pass of a sharded net needs all ranks."""
    batch = pack(rows(), net.geometry)
    expected = generate(net, batch, settings, generator=seeded(1))
    active_flags: list[bool] = []

    def another_rank_is_active(active: bool) -> bool:
        active_flags.append(active)
        return True

    assert generate(net, batch, settings, generator=seeded(1), any_rank_active=another_rank_is_active) == expected
    assert len(active_flags) == settings.max_new_tokens
    assert active_flags.count(True) == max(map(len, expected))
    assert not settings.stop or active_flags.count(True) < len(active_flags)  # the rows of this rank stopped earlier
