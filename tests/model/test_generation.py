"""Generation: settings and what is refused, sampling that no neighbour changes, streaming, rows that have finished."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from auris.data.collate import collate
from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.generation import GenerationSettings, generate, sample
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


def test_qwen_audios_settings_are_read() -> None:
    settings = GenerationSettings.from_config(QWEN_AUDIO)
    assert settings == GenerationSettings(max_new_tokens=512, stop=frozenset({151643}), do_sample=True, top_p=0.8)
    assert settings.unused == ("chat_format", "pad_token_id", "transformers_version")


def test_qwen2_audios_settings_are_read() -> None:
    assert GenerationSettings.from_config(QWEN2_AUDIO) == GenerationSettings(
        stop=frozenset({151643, 151645}), do_sample=True, repetition_penalty=1.1, temperature=0.7, top_k=20, top_p=0.5
    )


def test_turning_sampling_off_leaves_the_rest_of_the_file_in_force() -> None:
    settings = GenerationSettings.from_config(QWEN2_AUDIO, do_sample=False, min_new_tokens=1, max_new_tokens=None)
    assert settings == GenerationSettings(stop=frozenset({151643, 151645}), repetition_penalty=1.1, min_new_tokens=1)
    assert {"temperature", "top_k", "top_p"} < set(settings.unused)


def test_overrides_replace_the_settings_of_the_file() -> None:
    settings = GenerationSettings.from_config(QWEN2_AUDIO, stop=[7], top_k=0, temperature=0.2)
    assert (settings.stop, settings.top_k, settings.temperature, settings.top_p) == (frozenset({7}), 0, 0.2, 0.5)


def test_an_absent_top_k_is_the_one_of_transformers() -> None:
    assert GenerationSettings.from_config({}) == GenerationSettings()
    assert GenerationSettings.from_config({"top_k": None}, do_sample=True).top_k == 50


def test_keys_that_change_nothing_are_accepted() -> None:
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


def test_a_stop_token_that_the_model_does_not_have_is_refused(net: AudioLM) -> None:
    with pytest.raises(ValueError, match=rf"stop=\[151643\]: expected token ids below {VOCAB}"):
        generate(net, pack(rows(), net.geometry), GenerationSettings(stop=frozenset({3, 151643})))


# --- sampling -----------------------------------------------------------------------------------------------------


def test_a_draw_picks_the_token_whose_share_it_falls_into() -> None:
    scores = torch.tensor([[-torch.inf, 0.5, -torch.inf, 0.25, 0.25, -torch.inf]]).repeat(6, 1)
    scores[scores > 0] = scores[scores > 0].log() + 3  # logits are free of a constant
    draws = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53], dtype=torch.float64)
    assert sample(scores, draws).tolist() == [1, 1, 3, 3, 4, 4]


def test_answers_depend_on_the_seed(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    first, again, other = (generate(net, batch, SAMPLED, generator=seeded(seed)) for seed in (1, 1, 2))
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))
    torch.manual_seed(5)
    unseeded = generate(net, batch, SAMPLED)
    assert unseeded != generate(net, batch, SAMPLED)  # the global generator goes on
    torch.manual_seed(5)
    assert unseeded == generate(net, batch, SAMPLED)


def test_a_sampled_answer_depends_on_the_rows_number_and_not_on_its_neighbours(net: AudioLM) -> None:
    together = generate(net, pack(rows(), net.geometry), SAMPLED, generator=seeded(3))
    for order in ([2, 0, 3, 1], [1], [3, 2]):
        batch = pack([rows()[i] for i in order], net.geometry) | {"rows": order}
        assert generate(net, batch, SAMPLED, generator=seeded(3)) == [together[i] for i in order]
    twins = pack([rows()[0]] * 2, net.geometry)
    one, two = generate(net, twins, SAMPLED, generator=seeded(3))
    assert one == together[0] and one != two


def test_draws_are_independent_along_a_row_and_across_rows(net: AudioLM) -> None:
    """Tokens that are all equally likely, in 4 classes: consecutive pairs, and pairs of adjacent rows, are as well."""
    settings = GenerationSettings(max_new_tokens=11, do_sample=True, temperature=1e9)
    answers = generate(net, pack([[text(2)]] * 200, net.geometry), settings, generator=seeded(0))
    classes = torch.tensor(answers) // (VOCAB // 4)
    for first, second in ((classes[:, :-1], classes[:, 1:]), (classes[:-1], classes[1:])):
        counts = torch.bincount((4 * first + second).flatten(), minlength=16)
        expected = counts.sum() / 16
        chi_squared = ((counts - expected).square() / expected).sum()
        assert chi_squared < 37.7  # exceeded once in a thousand, at 15 degrees of freedom


def test_fewer_tokens_are_the_first_ones_of_a_sampled_answer(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    longer = generate(net, batch, SAMPLED, generator=seeded(3))
    short = GenerationSettings(max_new_tokens=5, do_sample=True, temperature=1.2, top_k=40, top_p=0.95)
    assert generate(net, batch, short, generator=seeded(3)) == [answer[:5] for answer in longer]


def test_sampling_from_the_likeliest_token_alone_is_greedy(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    greedy = generate(net, batch, GenerationSettings(max_new_tokens=8))
    for only in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}):
        assert generate(net, batch, GenerationSettings(max_new_tokens=8, do_sample=True, **only)) == greedy


# --- decoding -----------------------------------------------------------------------------------------------------


def test_a_prohibitive_penalty_keeps_prompt_and_answer_from_being_repeated(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    prompts = batch["ids"].split(batch["cu_seqlens"].diff().tolist())
    free = generate(net, batch, GenerationSettings(max_new_tokens=12))
    assert any(len(set(answer)) < len(answer) for answer in free)
    for prompt, answer in zip(
        prompts, generate(net, batch, GenerationSettings(max_new_tokens=12, repetition_penalty=1e6)), strict=True
    ):
        assert len(set(answer)) == 12 and not set(answer) & set(prompt.tolist())


def test_tokens_are_streamed_as_soon_as_they_are_final(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    free = generate(net, batch, GenerationSettings(max_new_tokens=10))
    streamed: list[tuple[int, int]] = []
    settings = GenerationSettings(max_new_tokens=10, stop=frozenset({free[0][3], free[2][6]}))
    answers = generate(net, batch, settings, stream=lambda row, token: streamed.append((row, token)))
    assert len({len(answer) for answer in answers}) > 1
    steps = range(max(map(len, answers)))
    assert streamed == [(row, answer[i]) for i in steps for row, answer in enumerate(answers) if i < len(answer)]


def test_finished_rows_are_computed_no_more(net: AudioLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pack(rows(), net.geometry)
    free = generate(net, batch, GenerationSettings(max_new_tokens=10))
    computed: list[int] = []
    hidden = llm.hidden_states

    def counting(net: AudioLM, embeds: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        computed.append(len(embeds))
        return hidden(net, embeds, *args, **options)

    monkeypatch.setattr(llm, "hidden_states", counting)
    answers = generate(net, batch, GenerationSettings(max_new_tokens=10, stop=frozenset({free[0][3], free[2][6]})))
    going = [sum(len(answer) > i for answer in answers) for i in range(9)]  # the last token is not computed with
    assert computed == [len(batch["ids"]), *(n for n in going if n)]
    assert sum(going) < 9 * len(answers)


FREE = GenerationSettings(max_new_tokens=10)


@pytest.mark.parametrize(
    "settings",
    [FREE, SAMPLED, GenerationSettings(max_new_tokens=10, repetition_penalty=1.5)],
    ids=["greedy", "sampled", "pen"],
)
def test_rows_that_refill_slots_are_answered_as_if_alone(net: AudioLM, settings: GenerationSettings) -> None:
    """One by one and several at a time, where rows have stopped at different steps; a limit of tokens ends them too."""
    all_rows = [*rows(), [text(6)], [Clip(64), text(3)], [text(2), Clip(11)], [text(5)]]
    free = generate(net, pack(all_rows, net.geometry), settings, generator=seeded(3))
    stop = frozenset(answer[n] for n, answer in zip((2, 6, 1), free[:3], strict=True))
    settings = replace(settings, stop=stop, min_new_tokens=1)
    expected = generate(net, pack(all_rows, net.geometry), settings, generator=seeded(3))
    lengths = [len(answer) for answer in expected]
    assert len(set(lengths)) > 2 and max(lengths) == settings.max_new_tokens

    waiting = list(range(3, len(all_rows)))
    asked: list[int] = []

    def more(going: int) -> dict | None:
        asked.append(going)
        taken = [waiting.pop(0) for _ in range(min(3 - going, len(waiting)))]
        return pack([all_rows[row] for row in taken], net.geometry) | {"rows": taken} if taken else None

    streamed: dict[int, list[int]] = {row: [] for row in range(len(all_rows))}
    answers = generate(
        net,
        pack(all_rows[:3], net.geometry),
        settings,
        generator=seeded(3),
        stream=lambda row, token: streamed[row].append(token),
        next_pack=more,
    )
    assert answers == expected == list(streamed.values())
    assert max(lengths) < len(asked) < sum(lengths) / 2  # steps: more than one pack would take, and full ones


def test_a_prompts_length_is_kept_while_its_answer_is_decoded() -> None:
    """If a model adapts to lengths it was not trained on, whether the prompt or the answer gets there (Qwen-Audio)."""
    net = build(train_length=16)
    batch = pack(rows(), net.geometry)
    lengths = batch["cu_seqlens"].diff()
    assert lengths.min() < 16 < lengths.max() and lengths.min() + 10 > 16
    expected = []
    for row, n in zip(rows(), lengths, strict=True):
        answer: list[int] = []
        for _ in range(10):
            whole = pack([[*row, answer]], net.geometry)
            with torch.no_grad():
                h = llm.hidden_states(
                    net.llm, net.embed(whole), whole["positions"], whole["cu_seqlens"], prompt_lengths=n[None]
                )
            answer.append(int(net.head(h[-1]).argmax()))
        expected.append(answer)
    answers = generate(net, batch, GenerationSettings(max_new_tokens=10))
    assert answers == expected
    assert answers != generate(build(), batch, GenerationSettings(max_new_tokens=10))


def test_a_pack_without_rows_is_generated_from_like_any_other(net: AudioLM) -> None:
    """Ranks of a sharded model must all take part."""
    empty = collate([], geometry=net.geometry)
    for settings in (
        GenerationSettings(max_new_tokens=3),
        SAMPLED,
        GenerationSettings(max_new_tokens=3, repetition_penalty=1.1),
    ):
        assert [len(answer) for answer in generate(net, empty, settings)] == [settings.max_new_tokens]


# --- beside other processes ---


@pytest.mark.parametrize(
    "settings", [GenerationSettings(max_new_tokens=12, stop=frozenset(range(0, VOCAB, 3))), SAMPLED]
)
def test_a_process_whose_rows_have_stopped_computes_along_until_all_have(
    net: AudioLM, settings: GenerationSettings
) -> None:
    """A sharded net needs all processes in each forward."""
    batch = pack(rows(), net.geometry)
    alone = generate(net, batch, settings, generator=seeded(1))
    told: list[bool] = []

    def another_goes(ours: bool) -> bool:
        told.append(ours)
        return True

    assert generate(net, batch, settings, generator=seeded(1), any_rank_active=another_goes) == alone
    assert len(told) == settings.max_new_tokens
    assert told.count(True) == max(map(len, alone))
    assert not settings.stop or told.count(True) < len(told)  # all of ours had stopped before
