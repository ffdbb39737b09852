"""Tests of measured lengths: reading them from the cache, measuring again after a change, and reported problems."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from auris.audio import Geometry
from auris.data import lengths
from auris.data.length_cache import LengthCache, splits_into_words
from auris.data.lengths import Lengths, measure_lengths
from auris.data.manifests import Manifest, read_manifests
from auris.data.rows import Clip, Record, Row, TransientProblem
from auris.data.samples import ChatSamples, TextSamples
from auris.text import tasks
from auris.text.chat import Qwen2AudioChat, QwenAudioChat
from auris.text.prompts import BothPrompts, NaturalPrompt, TagPrompt
from auris.text.task_table import EXAMPLE
from auris.text.tasks import TASKS
from auris.text.tokenizer import Tokenizer
from support.manifests import make_sample_builder, speech_rows, tokenizer, write_manifest, write_wave


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def manifests(folder: Path, *, with_duration: bool = False, extra: list[dict] | None = None) -> list[Manifest]:
    rows = speech_rows(folder, [0.4, 0.6, 0.8], with_duration=with_duration)
    return read_manifests([write_manifest(folder / "rows.jsonl", rows + (extra or []))])


def cache_files(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*")}


def forbid_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("measured although cached")

    monkeypatch.setattr(lengths, "_measure", fail)


def equal(first: Lengths, second: Lengths) -> bool:
    return (
        np.array_equal(first.tokens, second.tokens)
        and first.problems == second.problems
        and first.dropped_seconds == second.dropped_seconds
    )


def test_measured_lengths_equal_the_lengths_of_built_samples(folder, cache):
    (manifest,) = manifests(folder)
    samples = make_sample_builder(prompt=TagPrompt())
    measured = measure_lengths([manifest], samples, cache)
    assert measured.tokens.tolist() == [len(samples.build(row, 0, 0).ids) for row in manifest.rows]
    assert measured.problems == {}


def test_lengths_from_the_cache_equal_the_measured_ones(folder, cache, monkeypatch):
    bad = {"id": "gone", "audio": "gone.wav", "task": "asr", "language": "en", "text": "x"}
    data = manifests(folder, extra=[bad])
    first = measure_lengths(data, make_sample_builder(), cache)
    (file,) = cache_files(cache)
    forbid_measuring(monkeypatch)
    again = measure_lengths(read_manifests([folder / "rows.jsonl"]), make_sample_builder(), cache)
    assert equal(first, again) and again.tokens.dtype == np.int64
    assert list(again.problems) == [3]
    assert cache_files(cache) == {file}


def test_rows_are_numbered_consecutively_over_all_manifests(folder, cache):
    bad = {"id": "bad", "task": "asr"}
    (folder / "b").mkdir()
    other = write_manifest(folder / "b" / "rows.jsonl", [bad, *speech_rows(folder / "b", [0.5], prefix="b")])
    (first,) = manifests(folder)
    measured = measure_lengths([first, *read_manifests([other])], make_sample_builder(), cache)
    assert len(measured.tokens) == 5
    assert list(measured.problems) == [3] and measured.tokens[3] == 0
    assert (measured.tokens[[0, 1, 2, 4]] > 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": TagPrompt()},
        {"tokenizer": Tokenizer.train(["other text"], vocab_size=290)},
        {"geometry": Geometry(n_mels=16, pool=4)},
        {"long_audio": "window"},
        {"kind": TextSamples},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_rows_are_measured_again_if_a_setting_of_the_samples_changes(folder, cache, settings):
    data = manifests(folder)
    measure_lengths(data, make_sample_builder(), cache)
    before = cache_files(cache)
    measure_lengths(data, make_sample_builder(**settings), cache)
    assert len(cache_files(cache) - before) == 1


class OtherPrompt(TagPrompt):
    """Prompt style that differs from `TagPrompt` only by its class."""


def test_rows_are_measured_again_if_only_the_class_of_the_prompt_style_changes(folder, cache):
    data = manifests(folder)
    measure_lengths(data, make_sample_builder(prompt=TagPrompt()), cache)
    before = cache_files(cache)
    measure_lengths(data, make_sample_builder(prompt=OtherPrompt()), cache)
    assert len(cache_files(cache) - before) == 1


def test_rows_are_measured_again_if_a_wording_changes(folder, cache, monkeypatch):
    data = manifests(folder)
    short = measure_lengths(data, make_sample_builder(), cache)
    asr = tasks.TASKS["asr"]
    longer = replace(asr, paraphrases=(*asr.paraphrases, 9 * "Write down what is said. "))
    monkeypatch.setitem(tasks.TASKS, "asr", longer)
    assert (measure_lengths(data, make_sample_builder(), cache).tokens > short.tokens).all()


def test_dialogues_are_measured_again_if_the_text_around_clips_changes(folder, cache):
    write_wave(folder / "a.wav", 0.5)
    messages = [{"role": "user", "content": [{"audio": "a.wav"}]}, {"role": "assistant", "content": "the cat"}]
    (manifest,) = read_manifests([write_manifest(folder / "rows.jsonl", [{"id": "d", "messages": messages}])])
    for chat in (QwenAudioChat(), QwenAudioChat(spacing="paper"), Qwen2AudioChat()):
        samples = make_sample_builder(ChatSamples, prompt=chat)
        n_tokens = len(samples.build(manifest.rows[0], 0, None).ids)
        assert measure_lengths([manifest], samples, cache).tokens.tolist() == [n_tokens]
    assert len(cache_files(cache)) == 3


def test_rows_are_measured_again_if_the_manifest_changes(folder, cache):
    first = measure_lengths(manifests(folder), make_sample_builder(), cache)
    rows = speech_rows(folder, [0.4, 0.6, 0.8], with_duration=False)
    rows[1]["text"] += " on the mat again and again"
    changed = read_manifests([write_manifest(folder / "rows.jsonl", rows)])
    second = measure_lengths(changed, make_sample_builder(), cache)
    assert (second.tokens > first.tokens).tolist() == [False, True, False]


def test_lengths_of_a_whole_manifest_are_not_used_for_a_limited_one(folder, cache):
    measure_lengths(manifests(folder), make_sample_builder(), cache)
    limited = read_manifests([{"path": folder / "rows.jsonl", "limit": 2}])
    assert len(measure_lengths(limited, make_sample_builder(), cache).tokens) == 2


def test_a_file_of_unstated_duration_is_measured_again_when_it_changes(folder, cache):
    data = manifests(folder)
    first = measure_lengths(data, make_sample_builder(), cache)
    write_wave(folder / "r1.wav", 1.2)
    assert (measure_lengths(data, make_sample_builder(), cache).tokens - first.tokens).tolist() == [0, 15, 0]


def test_a_file_of_unstated_duration_is_measured_again_when_its_modification_time_changes(folder, cache):
    data = manifests(folder)
    measure_lengths(data, make_sample_builder(), cache)
    before = cache_files(cache)
    os.utime(folder / "r1.wav", ns=(1, 1))
    measure_lengths(data, make_sample_builder(), cache)
    assert len(cache_files(cache) - before) == 1


def test_a_missing_file_is_measured_once_it_exists(folder, cache):
    data = manifests(folder)
    (folder / "r2.wav").unlink()
    assert list(measure_lengths(data, make_sample_builder(), cache).problems) == [2]
    write_wave(folder / "r2.wav", 0.8)
    assert measure_lengths(data, make_sample_builder(), cache).problems == {}


def test_rows_with_a_stated_duration_are_measured_without_their_files(folder, cache):
    data = manifests(folder, with_duration=True)
    for path in folder.glob("*.wav"):
        path.unlink()
    assert (measure_lengths(data, make_sample_builder(), cache).tokens > 0).all()


def test_an_unusable_row_has_a_reason_and_no_length(folder, cache):
    (folder / "noise.wav").write_bytes(b"not an audio file")
    asr = {"task": "asr", "language": "en", "text": "x"}
    write_wave(folder / "short.wav", 0.02)
    extra = [
        {"id": "corrupt", "audio": "noise.wav", **asr},
        {"id": "unlabelled", "audio": "r0.wav", "task": "asr", "language": "en"},
        {"id": "long", "audio": "r0.wav", "duration": 40, **asr},
        {"id": "short", "audio": "short.wav", **asr},
    ]
    measured = measure_lengths(manifests(folder, extra=extra), make_sample_builder(long_audio="skip"), cache)
    reasons = [
        "cannot be decoded",
        "needs the label `text`",
        "40.0 s long, the limit is 30 s",
        "shorter than one audio token",
    ]
    assert list(measured.problems) == [3, 4, 5, 6]
    assert all(part in reason for part, reason in zip(reasons, measured.problems.values(), strict=True))
    assert (measured.tokens > 0).tolist() == [True] * 3 + [False] * 4


def test_an_invalid_label_that_the_task_does_not_use_does_not_stop_the_measurement(folder, cache):
    row = {"id": "odd", "audio": "r0.wav", "task": "sec", "text": "rain", "language": "tlh"}
    measured = measure_lengths(manifests(folder, extra=[row]), make_sample_builder(), cache)
    assert measured.tokens[3] > 0 or 3 in measured.problems


def test_a_long_clip_under_the_error_policy_is_an_error_with_the_row_id_and_leaves_no_cache(folder, cache):
    long = {"id": "sermon", "audio": "r0.wav", "duration": 40, "task": "asr", "language": "en", "text": "x"}
    with pytest.raises(ValueError, match="row sermon: the clip is 40.0 s long, .* set long_audio=window"):
        measure_lengths(manifests(folder, extra=[long]), make_sample_builder(long_audio="error"), cache)
    assert cache_files(cache) == set()


def test_measuring_in_parallel_gives_the_same_lengths_as_in_one_process(folder, monkeypatch):
    extra = [
        {"id": "gone", "audio": "gone.wav", "task": "asr", "language": "en", "text": "x"},
        {"id": "long", "audio": "r0.wav", "duration": 31, "task": "asr", "language": "en", "text": "x"},
    ]
    rows = manifests(folder, extra=extra, with_duration=True)[0].rows
    samples = make_sample_builder(long_audio="first")
    expected = lengths._measure(rows, samples)
    monkeypatch.setattr(lengths, "_CHUNK_ROWS", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert (
        equal(lengths._measure(rows, samples), expected)
        and expected.dropped_seconds == {4: 1.0}
        and list(expected.problems) == [3]
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert equal(lengths._measure(rows, samples), expected)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(ValueError, match="row long: the clip is 31.0 s long"):
        lengths._measure(rows, make_sample_builder(long_audio="error"))


def test_the_length_of_a_long_clip_includes_all_its_windows(folder, cache):
    long = {"id": "sermon", "audio": "r0.wav", "duration": 40, "task": "asr", "language": "en", "text": "x"}
    measured = measure_lengths(manifests(folder, extra=[long]), make_sample_builder(long_audio="window"), cache)
    assert measured.tokens[3] > 1_000 and measured.problems == {}


def test_rows_are_measured_again_if_tokens_are_added_to_the_tokenizer(folder, cache):
    data = manifests(folder)
    measure_lengths(data, make_sample_builder(tokenizer=tokenizer()), cache)
    other = Tokenizer.train(["x"], vocab_size=300)
    before = cache_files(cache)
    measure_lengths(data, make_sample_builder(tokenizer=other), cache)
    after_other = cache_files(cache)
    other.fast.add_tokens(["the cat sat"])
    other = Tokenizer(other.fast)
    measure_lengths(data, make_sample_builder(tokenizer=other), cache)
    assert len(before) < len(after_other) < len(cache_files(cache))


def test_dropped_seconds_are_reported_on_a_cache_hit_too(folder, cache):
    write_wave(folder / "long.wav", 33.0)
    row = {"id": "long", "audio": "long.wav", "task": "asr", "language": "en", "text": "x"}
    data = manifests(folder, extra=[row])
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"drops 3\.0 s of audio after the first 30 s, in 1 row and"):
            assert measure_lengths(data, make_sample_builder(long_audio="first"), cache).dropped_seconds == {3: 3.0}


def rows_of_all_kinds() -> list[Row]:
    """Return rows of each task, with texts in several scripts and every optional label."""
    rows = []
    for code in sorted(TASKS.keys() - {"chat", "preference"}):
        task = TASKS[code]
        # In this order: labels that a row must have, that the prompt may contain, and that only the metrics use.
        names = (*task.needs, *task.optional, *task.uses)
        labels = {name: EXAMPLE[name] for name in names if name in EXAMPLE}
        for text_labels in ({"text": "it's the 3rd  cat\n"}, {"text": "ein Hund schläft 猫", "language": "de"}):
            task_labels = {"text": task.choices[0]} if task.choices else {"question": "Which <|en|> sound?"}
            fields = labels | {"language": "en"} | text_labels | task_labels | {"task": code}
            clips = () if code == "text" else task.clips * (Clip(Path("x.wav"), duration=1.0),)
            rows.append(Row(code, clips, fields))
    return rows


@pytest.mark.parametrize("prompt", [TagPrompt(), NaturalPrompt(), BothPrompts()])
def test_the_length_of_a_row_is_the_length_of_its_longest_wording(prompt):
    samples = make_sample_builder(prompt=prompt)
    for row in rows_of_all_kinds():
        assert tasks.find_problem(row.labels) is None
        audio_lengths = samples.audio_lengths(row)
        pads = [[samples.tokenizer.id("<|AUDIO|>")] * n for n in audio_lengths]
        encoded = [samples.tokenizer.encode(turns, pads) for turns in prompt.variants(row.labels, len(row.clips))]
        assert samples.max_length(row, audio_lengths) == max(len(wording.ids) for wording in encoded), (
            row.id,
            row.labels,
        )


def test_a_row_that_could_not_be_read_is_measured_again_at_the_next_start(folder, cache, monkeypatch):
    (manifest,) = manifests(folder, with_duration=True)
    expected = measure_lengths([manifest], make_sample_builder(), cache / "expected")
    decode = type(manifest.rows.row_index).decode

    def fail(row_index: object, record: Record) -> Row:
        return Row("r1", problem=TransientProblem("timed out")) if record.id == "r1" else decode(row_index, record)

    with monkeypatch.context() as patch:
        patch.setattr(type(manifest.rows.row_index), "decode", fail)
        assert measure_lengths([manifest], make_sample_builder(), cache).problems == {1: "timed out"}
    assert equal(measure_lengths([manifest], make_sample_builder(), cache), expected)
    forbid_measuring(monkeypatch)
    assert equal(measure_lengths([manifest], make_sample_builder(), cache), expected)


@pytest.mark.parametrize("prompt", [TagPrompt(), NaturalPrompt(), BothPrompts()])
@pytest.mark.parametrize("policy", ["skip", "window", "first"])
def test_the_length_of_a_row_does_not_depend_on_its_neighbours(folder, prompt, policy):
    """Similar rows share one measurement of their wording. This must not hide a difference that changes the length."""
    texts = ["cat", " the  cat ", "it's 3", "\tred\n", "schläft 猫", "<|en|>", " ", "", None, 7, "a\r\n b", "x" * 400]
    rows = [
        {"audio": "a.wav", "duration": seconds, "text": text, "task": task, "language": language} | extra
        for task in ("asr", "did", "s2tt", "aqa", "aac", "vsc", "srwt", "chat", "no", 3)
        for text, seconds in zip(texts, (1, 2.5, 0.01, 29.99, 31, -1, True, "1", 0, None, 30, 1e9), strict=True)
        for language in ("en", "tlh")
        for extra in (
            {},
            {"target_language": "de"},
            {"target_language": ["de"], "offset": 0.5},
            {"question": "What is it?", "caption_style": "clotho", "references": ["a cat"]},
            {"audio": ["a.wav"]},
            {"messages": []},
        )
    ]
    (manifest,) = read_manifests([write_manifest(folder / "rows.jsonl", rows)])
    samples = make_sample_builder(prompt=prompt, long_audio=policy)
    together = lengths._measure(manifest.rows, samples)
    one_by_one = [lengths._measure([row], samples) for row in manifest.rows]
    assert together.tokens.tolist() == [int(result.tokens[0]) for result in one_by_one]
    assert together.problems == {
        number: result.problems[0] for number, result in enumerate(one_by_one) if result.problems
    }
    assert together.dropped_seconds == {
        number: result.dropped_seconds[0] for number, result in enumerate(one_by_one) if result.dropped_seconds
    }
    assert 100 < np.count_nonzero(together.tokens) < len(rows)


def test_counting_tokens_word_by_word_equals_encoding_the_whole_text():
    """Texts are random ASCII. Characters at which tokenizers split words are more frequent."""
    tokenizer = Tokenizer.train(["it's 12 o'clock, we'll go", "A b\n\n c"], vocab_size=320)
    cache = LengthCache(tokenizer)
    assert splits_into_words(tokenizer.text_encoder)
    rng = random.Random(0)
    alphabet = [*map(chr, range(128)), *6 * " '\n\rsS1", "'ll", "'RE", "  "]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 30))) for _ in range(3000)]
    for text in [*texts, "über 猫 it's", "\u017f's", "<|endoftext|>"]:
        assert cache.count_tokens(text) == len(tokenizer.encode_plain(text)), text
    assert not splits_into_words(Tokenizer(whitespace_tokenizer()).text_encoder)


def whitespace_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits text only at whitespace."""
    fast = Tokenizer.train(["a b"], vocab_size=300).fast
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast
