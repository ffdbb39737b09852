"""A corpus of every task: rows that can be used, labels that are true of the sound, splits that share nothing.

`python tests/corpus/test_recipes.py` writes the golden hashes anew, where a change is meant to alter the corpus (and
`VERSION` of `auris.corpus.build` was raised).
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
from auris.corpus.grammar import SPLITS, split_of
from auris.corpus.recipes import RECIPES, mark
from auris.corpus.signal import SAMPLE_RATE, power, samples
from auris.corpus.vocabulary import train_tokenizer
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.evaluation.answer_cache import Response
from auris.evaluation.predictions import score
from auris.metrics import measures
from auris.text import tasks
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tasks import TASKS

GOLDEN = Path(__file__).with_name("golden.json")
CORPUS: dict[str, Any] = {
    "sizes": {
        "train": {**dict.fromkeys(RECIPES, 4), "asr": {"en": 1, "zh": 1, "ko": 1, "yue": 1}},
        "valid": dict.fromkeys(RECIPES, 2),
        "test": dict.fromkeys(RECIPES, 2),
    },
    "directions": ["de-en", "en-ko", "yue-en"],
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


def of(rows: list[Row], *codes: str) -> Iterator[Row]:
    return (row for row in rows if row.labels["task"] in codes)


def hear(row: Row, clip: int = 0) -> np.ndarray:
    return soundfile.read(row.clips[clip].path)[0]


def test_every_task_of_the_table_has_a_recipe() -> None:
    assert set(RECIPES) == {code for code, task in TASKS.items() if task.hours}


def test_every_row_can_be_used_under_both_prompting_styles(rows: list[Row]) -> None:
    assert {row.labels["task"] for row in rows} == set(RECIPES)
    for row in rows:
        assert row.problem is None, row
        assert len(row.clips) == TASKS[row.labels["task"]].clips
        for style in (TagPrompt(), NaturalPrompt()):
            assert list(style.variants(row.labels, len(row.clips)))


@pytest.mark.parametrize("tags", [True, False])
def test_target_answers_parse_back_to_the_labels(rows: list[Row], tags: bool) -> None:
    for row in rows:
        task = TASKS[row.labels["task"]]
        read = task.answer.parse(task.render(row.labels, tags=tags))
        assert read, row.id
        for name, answer in read.items():
            assert alike(row.labels[name], answer), (row.id, answer)


def alike(given: Any, read: Any) -> bool:
    """Equal, times to the hundredths that are written; speakers are numbered as they begin."""
    if isinstance(read, list):
        if read and isinstance(read[0], dict) and "speaker" in read[0]:
            names = list(dict.fromkeys(turn["speaker"] for turn in given))
            given = [{**turn, "speaker": f"speaker {names.index(turn['speaker']) + 1}"} for turn in given]
        return len(given) == len(read) and all(map(alike, given, read))
    if isinstance(read, dict):
        return all(alike(given[name], answer) for name, answer in read.items())
    return abs(given - read) < 0.0051 if isinstance(read, float) else given == read


def test_rows_that_only_test_the_format_are_marked_and_have_their_own_lines(rows: list[Row]) -> None:
    for row in rows:
        task = TASKS[row.labels["task"]]
        is_format = task.embedded == "D"
        assert row.id.split("-")[1] == ("fmt_" if is_format else "") + task.code
        assert tasks.group(row.labels).startswith("fmt_") == is_format
    assert {code for code in RECIPES if mark(code)} == {"er", "sap", "vsc", "asc", "sid", "smer", "mgr"}


@pytest.mark.parametrize("natural", [False, True])
def test_the_right_answers_are_scored_as_right_in_all_metrics(rows: list[Row], natural: bool) -> None:
    answers = [Response(row, TASKS[row.labels["task"]].render(row.labels, tags=not natural)) for row in rows]
    lines: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for prediction in score(answers):
        lines[prediction.group, prediction.metric].append(prediction.stats)
    scores = {line: measures.score(line[1], stats) for line, stats in lines.items()}
    errors = ("wer", "cer", "cpwer", "der", "jer", "aas_ms", "aas_official", "unparsed")
    assert {line.split()[0].removeprefix("fmt_") for line, _ in lines} == set(RECIPES)
    for (line, metric), value in scores.items():
        if metric not in ("bleu", "cider"):  # which depend on how long the sentences are
            assert value == (0.0 if metric in errors else 1.0), (line, metric)


def test_splits_share_no_words_voices_sounds_or_notes(rows: list[Row]) -> None:
    shared: dict[str, dict[str, set[Any]]] = {split: defaultdict(set) for split in SPLITS}
    for row in rows:
        labels = row.labels
        mine = shared[labels["split"]]
        turns = labels.get("turns", [])
        mine["voices"] |= {labels.get("speaker"), *labels.get("speakers", []), *(turn["speaker"] for turn in turns)}
        texts = {labels.get("transcript"), *labels.get("transcripts", []), *(turn["text"] for turn in turns)}
        mine["texts"] |= texts | {labels["text"]} if labels["task"] in tasks.TRANSCRIPTS else texts
        mine["seeds"].add(labels["seed"])
        mine["sounds"] |= {hear(row, clip).tobytes() for clip in range(len(row.clips))}
        if labels["task"] == "mna":
            mine["notes"].add(tuple(labels["notes"][key] for key in ("instrument", "pitch", "velocity")))
    for one, other in combinations(shared.values(), 2):
        for what in one:
            assert not one[what] & other[what] - {None}, what


def test_clips_are_as_long_as_their_rows_say_and_hold_their_times(rows: list[Row]) -> None:
    for row in rows:
        seconds = len(hear(row)) / SAMPLE_RATE
        if len(row.clips) == 1:
            assert row.clips[0].duration == seconds
        assert 0.1 < seconds < 10, row.id
        for field in ("words", "events", "turns"):
            for span in row.labels.get(field, []):
                assert 0 <= span["start"] < span["end"] <= seconds + 1e-3, row.id


def test_events_and_turns_are_where_the_sound_is(rows: list[Row]) -> None:
    for row in of(rows, "sed", "sd", "osr"):
        spans = row.labels.get("events") or row.labels["turns"]
        heard = hear(row)
        inside = np.zeros(len(heard), dtype=bool)
        for span in spans:
            inside[samples(span["start"]) : samples(span["end"])] = True
        before = heard[: samples(spans[0]["start"])]
        assert power(heard[inside]) > 10 * power(before) if len(before) else True, row.id
        assert power(heard[inside]) > power(heard[~inside]) if (~inside).any() else True, row.id


def test_overlapped_speakers_overlap_and_are_ordered_by_their_start(rows: list[Row]) -> None:
    for row in of(rows, "osr"):
        first, second = row.labels["turns"]
        assert first["start"] < second["start"] < first["end"]
        assert row.labels["texts"] == [first["text"], second["text"]]
        assert first["speaker"] != second["speaker"]


def test_speakers_take_turns(rows: list[Row]) -> None:
    heard = [[turn["speaker"] for turn in row.labels["turns"]] for row in of(rows, "sd")]
    assert all(one != next_one for speakers in heard for one, next_one in pairwise(speakers))
    assert {len(set(speakers)) for speakers in heard} == {2, 3}


def test_verified_speakers_are_one_or_two(rows: list[Row]) -> None:
    found = {row.labels["text"]: [] for row in of(rows, "sv")}
    for row in of(rows, "sv"):
        found[row.labels["text"]].append(len(set(row.labels["speakers"])))
    assert set(found["yes"]) == {1} and set(found["no"]) == {2}
    assert not any(speech.TWINS.keys() & set(row.labels["speakers"]) for row in of(rows, "sv"))


def test_dialects_are_spoken_in_their_language(rows: list[Row]) -> None:
    for row in of(rows, "did", "dialect_asr"):
        named = row.labels.get("dialect", row.labels["text"])
        assert row.labels["language"] == {"Mandarin": "zh", "Cantonese": "yue"}.get(named, "en")


def test_untimed_languages_have_no_times_and_all_others_have(rows: list[Row]) -> None:
    spoken = [row for row in rows if "speaker" in row.labels]
    assert {row.labels["language"] for row in spoken} >= {"ko", "yue"}
    for row in spoken:
        assert ("words" in row.labels) == (row.labels["language"] not in speech.UNTIMED), row.id


# --- requests -----------------------------------------------------------------------------------------------------


def test_requests_contain_their_slots_and_entities() -> None:
    rng = np.random.default_rng(0)
    for intent in requests.INTENTS:
        for split in SPLITS:
            for _ in range(20):
                request = requests.draw(rng, split, intent)
                assert split_of(request.text) == split and request.intent == intent
                words = request.text.split()
                assert not set("{}[]") & set(request.text)
                places = [words.index(entity["value"]) for entity in request.entities]
                assert places and places == sorted(places)
                assert list(request.slots.values()) == [entity["value"] for entity in request.entities]


def test_every_word_of_a_request_gets_its_time() -> None:
    rng = np.random.default_rng(1)
    requests_words = [
        requests.draw(rng, "train", intent).text.split() for intent in requests.INTENTS for _ in range(25)
    ]
    lines = [speech.Line(tuple(words), "en", "m3", 180, 50) for words in requests_words]
    values = {value for _, options in requests.SLOTS.values() for value in options}
    assert {word for words in requests_words for word in words} >= values
    for line, utterance in zip(lines, speech.say(lines), strict=True):
        assert np.all(np.diff(utterance.boundaries) > 0.02), line


# --- sounds and music ---------------------------------------------------------------------------------------------


def test_captions_name_the_sounds_in_their_order(rows: list[Row]) -> None:
    for row in of(rows, "aac"):
        labels = row.labels
        assert labels["text"] in labels["references"] and len(set(labels["references"])) == 4
        for caption in labels["references"]:
            places = [caption.index(scenes.SOUND_PHRASES[event["label"]]) for event in labels["events"]]
            assert places == sorted(places)


def test_a_note_is_as_loud_as_its_velocity(rows: list[Row]) -> None:
    for row in of(rows, "mna"):
        labels, heard = row.labels["notes"], hear(row)
        level = 20 * np.log10(np.abs(heard).max())
        assert level == pytest.approx(-3 + 20 * np.log10(labels["velocity"] / 127), abs=0.05), row.id


@pytest.mark.parametrize("name", tunes.PITCHED)
def test_an_instrument_plays_in_tune(name: str) -> None:
    low, high = music.INSTRUMENTS[name][1]
    size, cents = 1 << 18, np.arange(-100, 101, 5)
    for pitch in (low, (low + high) // 2, high):
        note = music.Note(pitch, 0.05, 0.7)
        spectrum = np.abs(np.fft.rfft(music.perform(name, np.random.default_rng(pitch), [note]), size))
        # How strong the first three harmonics are of a note so many hundredths of a semitone away.
        bins = np.outer(note.frequency * 2 ** (cents / 1200), (1, 2, 3)) / SAMPLE_RATE * size
        found = cents[spectrum[np.round(bins).astype(int)].sum(1).argmax()]
        assert abs(found) <= 20, (pitch, found)  # the violin's vibrato is as wide


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


def test_tunes_differ_and_last_about_as_long() -> None:
    read = {title: tunes.read_tune(tune) for title, tune in tunes.TUNES.items()}
    assert read["ode to joy"][:3] == [(4, 1.0), (4, 1.0), (5, 1.0)] and read["ode to joy"][-1] == (2, 2.0)
    assert len({tuple(tune[:6]) for tune in read.values()}) == len(read)
    assert all(12 <= sum(beats for _, beats in tune) <= 16 for tune in read.values())


@pytest.mark.parametrize("name", vocal.VOCAL_SOUNDS)
def test_vocal_sounds_are_audible_and_vary(name: str) -> None:
    one, same, other = (vocal.make(name, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.isfinite(one).all() and power(one) > 0 and 0.2 < len(one) / SAMPLE_RATE < 2
    assert len(one) != len(other) or not np.allclose(one, other)


# --- the whole ----------------------------------------------------------------------------------------------------


def test_the_tokenizer_reads_and_writes_every_answer_with_few_tokens(corpus: Path, rows: list[Row]) -> None:
    from auris.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(train_tokenizer(corpus, 1024))
    for row in of(rows, *RECIPES):
        answer = TASKS[row.labels["task"]].render(row.labels, tags=False)
        ids = tokenizer.plain(answer)
        assert tokenizer.decode(list(ids)).strip() == answer.strip(), row.id
        assert len(ids) <= len(answer.encode())


def golden(out: Path) -> dict[str, dict[str, str]]:
    """Hashes of the labels and of the 16-bit samples of each task's rows."""
    labels, sounds = defaultdict(hashlib.sha256), defaultdict(hashlib.sha256)
    for split in SPLITS:
        for line in (out / f"{split}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            labels[row["task"]].update(line.encode())
            for audio in [row["audio"]] if isinstance(row["audio"], str) else row["audio"]:
                sounds[row["task"]].update(soundfile.read(out / audio, dtype="int16")[0].astype("<i2").tobytes())
    return {task: {"labels": labels[task].hexdigest()[:16], "audio": sounds[task].hexdigest()[:16]} for task in labels}


def test_rows_of_every_task_are_the_golden_ones(corpus: Path) -> None:
    expected, found = json.loads(GOLDEN.read_text("utf-8")), golden(corpus)
    assert {task for task in expected | found if expected.get(task) != found.get(task)} == set()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "corpus", **CORPUS)
        GOLDEN.write_text(json.dumps(golden(Path(folder) / "corpus"), indent=1) + "\n", encoding="utf-8")
