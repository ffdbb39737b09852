"""Tests of a corpus with rows of every task: usable rows, labels that match the audio, and disjoint splits.

If a change is meant to alter the corpus, raise `VERSION` of `auris.corpus.build` and update the golden hashes with
`python tests/corpus/test_recipes.py`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from auris.corpus import music, requests, scenes, speech, tunes, vocal
from auris.corpus.build import build
from auris.corpus.grammar import SPLITS, assign_split
from auris.corpus.recipes import RECIPES, id_prefix
from auris.corpus.signal import SAMPLE_RATE, n_samples, power
from auris.corpus.vocabulary import train_tokenizer
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.evaluation.answer_cache import Response
from auris.evaluation.predictions import score_responses
from auris.metrics import edits, measures
from auris.text import tasks
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tasks import TASKS

GOLDEN = Path(__file__).with_name("golden.json")
CORPUS: dict[str, Any] = {
    "sizes": {
        "train": {
            **dict.fromkeys(RECIPES, 4),
            "asr": {"en": 1, "zh": 1, "ko": 1, "yue": 1},
            "s2tt": {"de-en": 2, "en-ko": 1, "yue-en": 1},
        },
        "valid": {**dict.fromkeys(RECIPES, 2), "s2tt": {"de-en": 1, "en-ko": 1}},
        "test": {**dict.fromkeys(RECIPES, 2), "s2tt": {"de-en": 1, "en-ko": 1}},
    },
    "text_lines": 100,
    "seed": 3,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all") / "corpus"
    build(out, **CORPUS, processes=2)
    return out


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[Row]:
    return [row for split in SPLITS for row in read_manifests([corpus / f"{split}.jsonl"])[0].rows]


def rows_of(rows: list[Row], *codes: str) -> Iterator[Row]:
    """Return the rows of some tasks."""
    return (row for row in rows if row.labels["task"] in codes)


def read_clip(row: Row, clip: int = 0) -> np.ndarray:
    return soundfile.read(row.clips[clip].path)[0]


def test_every_task_of_the_table_has_a_recipe() -> None:
    # The tasks of Qwen-Audio's Table 1 are those with published training hours.
    assert set(RECIPES) == {code for code, task in TASKS.items() if task.hours}


@pytest.mark.slow
def test_every_row_is_usable_with_both_prompt_styles(rows: list[Row]) -> None:
    assert {row.labels["task"] for row in rows} == set(RECIPES)
    for row in rows:
        assert row.problem is None, row
        assert len(row.clips) == TASKS[row.labels["task"]].clips
        for style in (TagPrompt(), NaturalPrompt()):
            assert list(style.variants(row.labels, len(row.clips)))


@pytest.mark.parametrize("tags", [True, False])
def test_rendered_answers_are_parsed_back_to_the_labels(rows: list[Row], tags: bool) -> None:
    for row in rows:
        task = TASKS[row.labels["task"]]
        parsed = task.answer.parse(task.render(row.labels, tags=tags))
        assert parsed, row.id
        for name, answer in parsed.items():
            assert equals_label(row.labels[name], answer), (row.id, answer)


def equals_label(label: Any, parsed: Any) -> bool:
    """Return whether an answer equals the label, with times rounded to 0.01 s and speakers numbered as they appear."""
    if isinstance(parsed, list):
        if parsed and isinstance(parsed[0], dict) and "speaker" in parsed[0]:
            speakers = list(dict.fromkeys(turn["speaker"] for turn in label))
            label = [{**turn, "speaker": f"speaker {speakers.index(turn['speaker']) + 1}"} for turn in label]
        return len(label) == len(parsed) and all(map(equals_label, label, parsed))
    if isinstance(parsed, dict):
        return all(equals_label(label[name], answer) for name, answer in parsed.items())
    return abs(label - parsed) < 0.0051 if isinstance(parsed, float) else label == parsed


def test_rows_whose_audio_does_not_carry_the_label_have_the_prefix_fmt_in_id_and_group(rows: list[Row]) -> None:
    """In grade D the label is only a setting of the generator, so a row can only test the format of answers."""
    for row in rows:
        task = TASKS[row.labels["task"]]
        is_format_only = task.synthetic_grade == "D"
        assert row.id.split("-")[1] == ("fmt_" if is_format_only else "") + task.code
        assert tasks.result_group(row.labels).startswith("fmt_") == is_format_only
    assert {code for code in RECIPES if id_prefix(code)} == {"er", "sap", "vsc", "asc", "sid", "smer", "mgr"}


@pytest.mark.parametrize("natural", [False, True])
def test_correct_answers_have_perfect_scores_in_all_metrics(rows: list[Row], natural: bool) -> None:
    answers = [Response(row, TASKS[row.labels["task"]].render(row.labels, tags=not natural)) for row in rows]
    stats_by_score: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for prediction in score_responses(answers):
        stats_by_score[prediction.group, prediction.metric].append(prediction.stats)
    scores = {(group, metric): measures.score(metric, stats) for (group, metric), stats in stats_by_score.items()}
    error_metrics = ("wer", "cer", *edits.DETAILS, "cpwer", "der", "jer", "aas_ms", "aas_official", "unparsed")
    assert {group.split()[0].removeprefix("fmt_") for group, _ in stats_by_score} == set(RECIPES)
    for (group, metric), value in scores.items():
        if metric not in ("bleu", "cider"):  # a perfect score depends on the length of the sentences
            assert value == (0.0 if metric in error_metrics else 1.0), (group, metric)


def test_splits_share_no_texts_voices_clips_or_notes(rows: list[Row]) -> None:
    by_split: dict[str, dict[str, set[Any]]] = {split: defaultdict(set) for split in SPLITS}
    for row in rows:
        labels = row.labels
        contents = by_split[labels["split"]]
        turns = labels.get("turns", [])
        contents["voices"] |= {labels.get("speaker"), *labels.get("speakers", []), *(turn["speaker"] for turn in turns)}
        texts = {labels.get("transcript"), *labels.get("transcripts", []), *(turn["text"] for turn in turns)}
        contents["texts"] |= texts | {labels["text"]} if labels["task"] in tasks.TRANSCRIPT_TASKS else texts
        contents["seeds"].add(labels["seed"])
        contents["sounds"] |= {read_clip(row, clip).tobytes() for clip in range(len(row.clips))}
        if labels["task"] == "mna":
            contents["notes"].add(tuple(labels["notes"][key] for key in ("instrument", "pitch", "velocity")))
    for first, second in combinations(by_split.values(), 2):
        for kind in first:
            assert not first[kind] & second[kind] - {None}, kind


def test_clips_have_the_duration_of_their_rows_and_contain_all_times(rows: list[Row]) -> None:
    for row in rows:
        seconds = len(read_clip(row)) / SAMPLE_RATE
        if len(row.clips) == 1:
            assert row.clips[0].duration == seconds
        assert 0.1 < seconds < 10, row.id
        for field in ("words", "events", "turns"):
            for span in row.labels.get(field, []):
                assert 0 <= span["start"] < span["end"] <= seconds + 1e-3, row.id


def test_the_audio_is_louder_inside_events_and_turns(rows: list[Row]) -> None:
    for row in rows_of(rows, "sed", "sd", "osr"):
        spans = row.labels.get("events") or row.labels["turns"]
        clip = read_clip(row)
        inside = np.zeros(len(clip), dtype=bool)
        for span in spans:
            inside[n_samples(span["start"]) : n_samples(span["end"])] = True
        before = clip[: n_samples(spans[0]["start"])]
        assert power(clip[inside]) > 10 * power(before) if len(before) else True, row.id
        assert power(clip[inside]) > power(clip[~inside]) if (~inside).any() else True, row.id


def test_turns_of_overlapped_speech_overlap_and_are_sorted_by_start(rows: list[Row]) -> None:
    for row in rows_of(rows, "osr"):
        first, second = row.labels["turns"]
        assert first["start"] < second["start"] < first["end"]
        assert row.labels["texts"] == [first["text"], second["text"]]
        assert first["speaker"] != second["speaker"]


def test_speakers_take_turns(rows: list[Row]) -> None:
    speakers_by_row = [[turn["speaker"] for turn in row.labels["turns"]] for row in rows_of(rows, "sd")]
    assert all(speaker != next_speaker for speakers in speakers_by_row for speaker, next_speaker in pairwise(speakers))
    assert {len(set(speakers)) for speakers in speakers_by_row} == {2, 3}


def test_speaker_verification_rows_have_one_speaker_for_yes_and_two_for_no(rows: list[Row]) -> None:
    n_speakers = {row.labels["text"]: [] for row in rows_of(rows, "sv")}
    for row in rows_of(rows, "sv"):
        n_speakers[row.labels["text"]].append(len(set(row.labels["speakers"])))
    assert set(n_speakers["yes"]) == {1} and set(n_speakers["no"]) == {2}
    assert not any(speech.TWINS.keys() & set(row.labels["speakers"]) for row in rows_of(rows, "sv"))


def test_dialects_are_spoken_in_their_language(rows: list[Row]) -> None:
    for row in rows_of(rows, "did", "dialect_asr"):
        dialect = row.labels.get("dialect", row.labels["text"])
        assert row.labels["language"] == {"Mandarin": "zh", "Cantonese": "yue"}.get(dialect, "en")


def test_only_languages_with_word_times_have_words(rows: list[Row]) -> None:
    spoken = [row for row in rows if "speaker" in row.labels]
    assert {row.labels["language"] for row in spoken} >= {"ko", "yue"}
    for row in spoken:
        assert ("words" in row.labels) == (row.labels["language"] not in speech.UNTIMED_LANGUAGES), row.id


# --- requests -----------------------------------------------------------------------------------------------------


def test_requests_contain_their_slots_and_entities() -> None:
    rng = np.random.default_rng(0)
    for intent in requests.INTENTS:
        for split in SPLITS:
            for _ in range(20):
                request = requests.draw_request(rng, split, intent)
                assert assign_split(request.text) == split and request.intent == intent
                words = request.text.split()
                assert not set("{}[]") & set(request.text)
                positions = [words.index(entity["value"]) for entity in request.entities]
                assert positions and positions == sorted(positions)
                assert list(request.slots.values()) == [entity["value"] for entity in request.entities]


def test_every_word_of_a_request_has_a_start_and_end_time() -> None:
    rng = np.random.default_rng(1)
    requests_words = [
        requests.draw_request(rng, "train", intent).text.split() for intent in requests.INTENTS for _ in range(25)
    ]
    lines = [speech.Line(tuple(words), "en", "m3", 180, 50) for words in requests_words]
    values = {value for _, options in requests.SLOTS.values() for value in options}
    assert {word for words in requests_words for word in words} >= values
    for line, utterance in zip(lines, speech.say(lines), strict=True):
        assert np.all(np.diff(utterance.boundaries) > 0.02), line


# --- sounds and music ---------------------------------------------------------------------------------------------


def test_captions_name_the_sounds_in_order(rows: list[Row]) -> None:
    for row in rows_of(rows, "aac"):
        labels = row.labels
        assert labels["text"] in labels["references"] and len(set(labels["references"])) == 4
        for caption in labels["references"]:
            positions = [caption.index(scenes.SOUND_PHRASES[event["label"]]) for event in labels["events"]]
            assert positions == sorted(positions)


def test_the_level_of_a_note_follows_from_its_velocity(rows: list[Row]) -> None:
    for row in rows_of(rows, "mna"):
        labels, clip = row.labels["notes"], read_clip(row)
        level = 20 * np.log10(np.abs(clip).max())
        assert level == pytest.approx(-3 + 20 * np.log10(labels["velocity"] / 127), abs=0.05), row.id


@pytest.mark.parametrize("name", tunes.PITCHED)
def test_an_instrument_plays_in_tune(name: str) -> None:
    low, high = music.INSTRUMENTS[name][1]
    size, cents = 1 << 18, np.arange(-100, 101, 5)
    for pitch in (low, (low + high) // 2, high):
        note = music.Note(pitch, 0.05, 0.7)
        spectrum = np.abs(np.fft.rfft(music.play_notes(name, np.random.default_rng(pitch), [note]), size))
        # Bins of the first three harmonics of a note that is shifted by each number of cents.
        bins = np.outer(note.frequency * 2 ** (cents / 1200), (1, 2, 3)) / SAMPLE_RATE * size
        deviation = cents[spectrum[np.round(bins).astype(int)].sum(1).argmax()]
        assert abs(deviation) <= 20, (pitch, deviation)  # the vibrato of the violin reaches 20 cents


def test_melodies_match_their_descriptions() -> None:
    rng = np.random.default_rng(2)
    for split in SPLITS:
        for _ in range(20):
            melody = tunes.draw_melody(rng, split)
            assert {0, 7, 12} <= set(melody.steps) and (4 in melody.steps) == (melody.mode == "major")
            assert (3 in melody.steps) == (melody.mode == "minor")
            assert sorted(melody.steps, reverse=melody.direction == "falling") == list(melody.steps)
            low, high = music.INSTRUMENTS[melody.instrument][1]
            assert low <= melody.root and melody.root + 12 <= high and melody.root % 12 == 0


def test_tunes_differ_and_have_similar_lengths() -> None:
    notes = {title: tunes.read_tune(tune) for title, tune in tunes.TUNES.items()}
    assert notes["ode to joy"][:3] == [(4, 1.0), (4, 1.0), (5, 1.0)] and notes["ode to joy"][-1] == (2, 2.0)
    assert len({tuple(tune[:6]) for tune in notes.values()}) == len(notes)
    assert all(12 <= sum(beats for _, beats in tune) <= 16 for tune in notes.values())


@pytest.mark.parametrize("name", vocal.VOCAL_SOUNDS)
def test_vocal_sounds_are_audible_and_vary(name: str) -> None:
    clip, repeated, other_seed = (vocal.make_vocal_sound(name, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(clip, repeated)
    assert np.isfinite(clip).all() and power(clip) > 0 and 0.2 < len(clip) / SAMPLE_RATE < 2
    assert len(clip) != len(other_seed) or not np.allclose(clip, other_seed)


# --- whole corpus -------------------------------------------------------------------------------------------------


def test_the_tokenizer_restores_every_answer_with_at_most_one_token_per_byte(corpus: Path, rows: list[Row]) -> None:
    from auris.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(train_tokenizer(corpus, 1024))
    for row in rows_of(rows, *RECIPES):
        answer = TASKS[row.labels["task"]].render(row.labels, tags=False)
        ids = tokenizer.encode_plain(answer)
        assert tokenizer.decode(list(ids)).strip() == answer.strip(), row.id
        assert len(ids) <= len(answer.encode())


def hashes_by_task(out: Path) -> dict[str, dict[str, str]]:
    """Return hashes of the labels and of the 16-bit samples of the rows of each task."""
    labels, sounds = defaultdict(hashlib.sha256), defaultdict(hashlib.sha256)
    for split in SPLITS:
        for line in (out / f"{split}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            labels[row["task"]].update(line.encode())
            for audio in [row["audio"]] if isinstance(row["audio"], str) else row["audio"]:
                sounds[row["task"]].update(soundfile.read(out / audio, dtype="int16")[0].astype("<i2").tobytes())
    return {task: {"labels": labels[task].hexdigest()[:16], "audio": sounds[task].hexdigest()[:16]} for task in labels}


def test_the_rows_of_every_task_have_the_golden_hashes(corpus: Path) -> None:
    expected, actual = json.loads(GOLDEN.read_text("utf-8")), hashes_by_task(corpus)
    assert {task for task in expected | actual if expected.get(task) != actual.get(task)} == set()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "corpus", **CORPUS)
        GOLDEN.write_text(json.dumps(hashes_by_task(Path(folder) / "corpus"), indent=1) + "\n", encoding="utf-8")
