"""The corpus as built: the same bytes however it is made, splits that share nothing, rows true to their files."""

from __future__ import annotations

import inspect
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hydra import compose, initialize_config_dir

from auris import audio
from auris.corpus import grammar, speech
from auris.corpus.build import build
from auris.corpus.output import hash_bytes
from auris.corpus.plan import draw_text, plan, scale_sizes
from auris.corpus.recipes import RECIPES
from auris.corpus.signal import SAMPLE_RATE
from support.corpus_words import vocabulary

SPOKEN = grammar.LANGUAGES[:7]  # in the rows of CORPUS
SMALL = {"s2tt": 4, "lid": 7, "sgc": 4, "ks": 10, "sec": 4, "mic": 4}
CORPUS: dict[str, Any] = {
    "sizes": {
        "train": {"asr": {"en": 10, "zh": 4}, **SMALL, "aqa": 24},
        "valid": {"asr": {"en": 4}, "sgc": 4},
        "test": {"asr": {"en": 10, "zh": 4}, **SMALL, "aqa": 6},
    },
    "directions": ["de-en", "en-zh", "ja-en", "fr-en"],
    "text_lines": 400,
    "seed": 7,
}
# What CORPUS gives with espeak-ng 1.52.0 and VERSION 3. When a change is meant to alter the corpus, raise VERSION and
# put the new hashes here.
GOLDEN = {"labels_hash": "c131237c57c9248c", "audio_hash": "31db3d967d5a0b08"}


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    build(out, **CORPUS, processes=2)
    return out


def read(out: Path, *splits: str) -> list[dict[str, Any]]:
    names = splits or grammar.SPLITS
    return [json.loads(line) for name in names for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_same_seed_gives_the_same_bytes_with_any_number_of_processes(corpus_dir: Path, tmp_path: Path) -> None:
    build(tmp_path / "corpus", **CORPUS, processes=1)
    files = sorted(path.relative_to(corpus_dir) for path in corpus_dir.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "corpus") for path in (tmp_path / "corpus").rglob("*.*"))
    for file in files:
        assert (corpus_dir / file).read_bytes() == (tmp_path / "corpus" / file).read_bytes(), file


def test_corpus_is_the_golden_one(corpus_dir: Path) -> None:
    facts = json.loads((corpus_dir / "corpus.json").read_text("utf-8"))
    assert {name: facts[name] for name in GOLDEN} == GOLDEN


def test_another_seed_gives_other_rows() -> None:
    one, other = (plan(CORPUS["sizes"], CORPUS["directions"], seed) for seed in (0, 1))
    assert not {job.seed for job in one} & {job.seed for job in other}


def test_a_larger_corpus_holds_the_smaller_one() -> None:
    small, large = (set(plan({"train": {"lid": n, "ks": n}}, [], 0)) for n in (10, 35))
    assert small < large


def test_hashes_are_those_of_the_files(corpus_dir: Path) -> None:
    facts = json.loads((corpus_dir / "corpus.json").read_text("utf-8"))
    names = [*(f"{split}.jsonl" for split in grammar.SPLITS), "text.txt"]
    assert facts["labels_hash"] == hash_bytes(*((corpus_dir / name).read_bytes() for name in names))


def test_splits_share_no_sentence_no_meaning_and_no_voice(corpus_dir: Path) -> None:
    rows = [row for row in read(corpus_dir) if row["provenance"] == "tts"]
    sentences = {
        split: {row.get("transcript", row["content"]) for row in rows if row["split"] == split}
        | {row["text"] for row in rows if row["split"] == split and row["task"] == "s2tt"}
        for split in grammar.SPLITS
    }
    sentences["train"] |= set((corpus_dir / "text.txt").read_text("utf-8").splitlines())
    assert not sentences["train"] & (sentences["valid"] | sentences["test"])
    assert not sentences["valid"] & sentences["test"]
    english = [row for row in rows if row["language"] == "en"]
    assert all(grammar.split_of(row.get("transcript", row["content"])) == row["split"] for row in english)
    voices = {split: {row["speaker"] for row in rows if row["split"] == split} for split in grammar.SPLITS}
    for split, names in voices.items():
        assert names <= {*speech.VOICES[split]["male"], *speech.VOICES[split]["female"]}


def test_text_is_of_the_training_split_in_every_language(corpus_dir: Path) -> None:
    lines = (corpus_dir / "text.txt").read_text("utf-8").splitlines()
    assert lines == draw_text(400, CORPUS["seed"], SPOKEN)
    known = {language: vocabulary(language) for language in SPOKEN}
    for place, language in enumerate(SPOKEN):
        for line in lines[place :: len(SPOKEN) + 1]:
            assert set(grammar.split_words(line, language)) <= known[language], line
    assert all(grammar.split_of(line) == "train" for line in lines[0 :: len(SPOKEN) + 1])


def test_sound_files_are_as_long_as_their_rows_say(corpus_dir: Path) -> None:
    for row in read(corpus_dir):
        clip = soundfile.info(corpus_dir / row["audio"])
        assert (clip.samplerate, clip.channels, clip.format, clip.subtype) == (SAMPLE_RATE, 1, "WAV", "PCM_16")
        assert row["duration"] == clip.frames / SAMPLE_RATE
        samples, _ = soundfile.read(corpus_dir / row["audio"])
        assert 0.1 < np.abs(samples).max() < 0.9, row["id"]


def test_word_times_follow_each_other_inside_the_clip(corpus_dir: Path) -> None:
    spoken = [row for row in read(corpus_dir) if row["provenance"] == "tts"]
    for row in spoken:
        times = [row["words"][0]["start"], *(word["end"] for word in row["words"])]
        assert all(a < b for a, b in itertools.pairwise(times))
        assert all(a["end"] == b["start"] for a, b in zip(row["words"][:-1], row["words"][1:], strict=True))
        assert times[0] > 0
        assert times[-1] < row["duration"]
        said = row.get("transcript", row["content"])
        assert [word["word"] for word in row["words"]] == grammar.split_words(said, row["language"])


def test_word_times_point_at_the_speech(corpus_dir: Path) -> None:
    for row in read(corpus_dir, "test"):
        if row["task"] != "asr":
            continue
        samples, _ = soundfile.read(corpus_dir / row["audio"])
        start, end = (round(row["words"][place][edge] * SAMPLE_RATE) for place, edge in ((0, "start"), (-1, "end")))
        assert np.mean(samples[start:end] ** 2) > 10 * np.mean(samples[: start - 160] ** 2), row["id"]


def test_every_row_has_a_provenance(corpus_dir: Path) -> None:
    rows = read(corpus_dir)
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows)
    for row in rows:
        spoken = row["task"] in ("asr", "s2tt", "lid", "sgc", "ks")
        assert row["provenance"] == ("tts" if spoken else "procedural")
        assert row["generator"].startswith("espeak-ng 1." if spoken else "auris.corpus")
        assert row["licence"] == "CC0-1.0"
        assert row["content"]


def test_labels_match_their_tasks(corpus_dir: Path) -> None:
    for row in read(corpus_dir):
        task = row["task"]
        if task == "sgc":
            assert row["speaker"] in speech.VOICES[row["split"]][row["text"]]
            assert row["content"] == f"{row['text']} {row['transcript']}"
        elif task == "ks":
            assert row["text"] in row["transcript"].split()
        elif task == "s2tt":
            assert f"{row['language']}-{row['target_language']}" in CORPUS["directions"]
        elif task in ("sec", "mic"):
            assert row["text"] in RECIPES[task].variants
        elif task == "aqa":
            check_answer(row)
    assert Counter(row["language"] for row in read(corpus_dir, "train") if row["task"] == "lid") == dict.fromkeys(
        SPOKEN, 1
    )


def check_answer(row: dict[str, Any]) -> None:
    heard = [event["label"] for event in row["events"]]
    assert row["content"] == ", ".join(heard)
    assert [event["start"] for event in row["events"]] == sorted(event["start"] for event in row["events"])
    assert row["events"][-1]["end"] == pytest.approx(row["duration"], abs=1e-3)
    question = row["question"]
    if question.startswith("How many"):
        assert row["text"] == ("one", "two", "three")[len(heard) - 1]
    elif question.startswith("What"):
        assert row["text"] == heard[0 if "first" in question else -1]
        assert len(heard) > 1
    else:
        asked = question.removeprefix("Can you hear ").removesuffix(" in the audio?").split()[-1]
        assert row["text"] == ("yes" if asked in heard else "no")


def test_answers_to_questions_are_balanced(corpus_dir: Path) -> None:
    rows = [row for row in read(corpus_dir, "train") if row["task"] == "aqa"]
    answers = Counter(row["text"] for row in rows if row["question"].startswith("Can"))
    assert answers["yes"] == answers["no"] == 4
    assert max(Counter(row["text"] for row in rows if row["question"].startswith("How")).values()) <= 3
    assert Counter(row["question"] for row in rows if row["question"].startswith("What")).most_common(1)[0][1] == 4


def test_an_existing_corpus_is_reported_and_left_alone(corpus_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (corpus_dir / "corpus.json").stat().st_mtime_ns
    facts = build(corpus_dir, **CORPUS)
    assert f"already in {corpus_dir}" in capsys.readouterr().out
    assert facts["rows"]["valid"] == {"asr": 4, "sgc": 4}
    assert (corpus_dir / "corpus.json").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_directory_is_refused(corpus_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"made with other settings \(seed: 7, now 8\).*out=DIR"):
        build(corpus_dir, **{**CORPUS, "seed": 8})


def test_a_directory_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="no embedded corpus"):
        build(tmp_path, **CORPUS)
    assert (tmp_path / "train.jsonl").read_text() == "mine"


def test_an_interrupted_build_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("auris.corpus.build.draw_text", fail)
    tiny = {"sizes": {"train": {"sec": 2}}, "directions": [], "text_lines": 5, "processes": 1}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "corpus", **tiny)
    assert not (tmp_path / "corpus").exists()
    monkeypatch.undo()
    assert build(tmp_path / "corpus", **tiny)["rows"]["train"] == {"sec": 2}
    assert not (tmp_path / "corpus.partial").exists()


@pytest.mark.parametrize(
    ("sizes", "directions", "message"),
    [
        ({"dev": {"sec": 1}}, [], r"splits \['dev'\], expected train, valid, test"),
        ({"train": {"tts": 1}}, [], r"sizes.train has the tasks \['tts'\]"),
        ({"train": {"asr": {"pl": 1}}}, [], r"sizes.train.asr has \['pl'\], expected rows by any of en, zh, de"),
        ({"train": {"sec": {"cat": 1}}}, [], r"sizes.train.sec has \['cat'\], expected rows by any of dog, rain"),
        ({"train": {"s2tt": {"de-de": 1}}}, [], r"\['de-de'\]"),
        ({"train": {"asr": {"en": "many"}}}, [], "sizes.train.asr.en is 'many'"),
        ({"train": {"sec": -1}}, [], "sizes.train.sec is -1"),
        ({"train": {"s2tt": 1}}, [], "directions is empty"),
        ({"train": {"s2tt": 1}}, ["de-de"], "'de-de'.*as in de-en"),
        ({"train": {"s2tt": 1}}, ["pl-en"], "'pl-en'"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(sizes: Any, directions: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(sizes, directions, 0)


def test_rows_go_to_variants_evenly_or_as_they_are_named() -> None:
    sizes = {"train": {"asr": 10, "s2tt": {"ko-en": 2}, "srwt": {"en": 1, "de": 2}}, "test": {"s2tt": 3, "srwt": 3}}
    planned = Counter((job.split, job.task, job.variant) for job in plan(sizes, ["de-en", "yue-en"], 0))
    languages = dict.fromkeys(grammar.LANGUAGES, 1) | {"en": 2}
    assert planned == {
        **{("train", "asr", language): rows for language, rows in languages.items()},
        ("train", "s2tt", "ko-en"): 2,
        ("train", "srwt", "en"): 1,
        ("train", "srwt", "de"): 2,
        ("test", "s2tt", "de-en"): 2,
        ("test", "s2tt", "yue-en"): 1,
        ("test", "srwt", "en"): 2,
        ("test", "srwt", "zh"): 1,
    }


def test_scale_multiplies_and_keeps_what_is_there() -> None:
    assert scale_sizes({"train": {"asr": {"en": 100}, "sec": 3, "mic": 0}}, 0.1) == {
        "train": {"asr": {"en": 10}, "sec": 1, "mic": 0}
    }


def test_sample_rate_is_the_models() -> None:
    assert SAMPLE_RATE == audio.SAMPLE_RATE


def test_every_key_of_the_config_can_be_typed_and_reaches_the_build() -> None:
    configs = Path(__file__).resolve().parents[2] / "configs"
    overrides = ["out=x", "seed=1", "processes=1", "text_lines=1", "directions=[]", "fraction=0.5", "sizes.test.sec=1"]
    with initialize_config_dir(str(configs), version_base="1.3"):
        config = compose("corpus", overrides=overrides)
    assert config.fraction == 0.5
    keys = {str(key) for key in config} - {"vocab_size"}  # the tokenizer's
    assert keys - {"fraction"} | {"scale"} == set(inspect.signature(build).parameters)
