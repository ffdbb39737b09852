"""Tests of the synthetic corpus: reproducible bytes, disjoint splits, and labels that match the audio."""

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
from auris.corpus.build import build, build_from_sentences
from auris.corpus.output import hash_bytes
from auris.corpus.plan import draw_text, plan_rows, plan_sentences, scale_sizes
from auris.corpus.recipes import RECIPES
from auris.corpus.sentences import select_sentences
from auris.corpus.signal import SAMPLE_RATE
from support.corpus_words import vocabulary

SPOKEN = grammar.LANGUAGES[:7]  # languages of the rows of CORPUS
DIRECTIONS = {"de-en": 1, "en-zh": 1, "ja-en": 1, "fr-en": 1}
SMALL = {"s2tt": DIRECTIONS, "lid": 7, "sgc": 4, "ks": 10, "sec": 4, "mic": 4}
CORPUS: dict[str, Any] = {
    "sizes": {
        "train": {"asr": {"en": 10, "zh": 4}, **SMALL, "aqa": 24},
        "valid": {"asr": {"en": 4}, "sgc": 4},
        "test": {"asr": {"en": 10, "zh": 4}, **SMALL, "aqa": 6},
    },
    "text_lines": 400,
    "seed": 7,
}
# Hashes of CORPUS with espeak-ng 1.52.0 and VERSION 4 of `auris.corpus.build`. If a change is meant to
# alter the corpus, raise VERSION and update the hashes.
GOLDEN = {"labels_hash": "95278830f7b9b0e4", "audio_hash": "1160f4ef0fcccdee"}


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    build(out, **CORPUS, processes=2)
    return out


def read(out: Path, *splits: str) -> list[dict[str, Any]]:
    names = splits or grammar.SPLITS
    return [json.loads(line) for name in names for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(corpus_dir: Path, tmp_path: Path) -> None:
    build(tmp_path / "corpus", **CORPUS, processes=1)
    files = sorted(path.relative_to(corpus_dir) for path in corpus_dir.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "corpus") for path in (tmp_path / "corpus").rglob("*.*"))
    for file in files:
        assert (corpus_dir / file).read_bytes() == (tmp_path / "corpus" / file).read_bytes(), file


def test_the_corpus_has_the_golden_hashes(corpus_dir: Path) -> None:
    facts = json.loads((corpus_dir / "corpus.json").read_text("utf-8"))
    assert {name: facts[name] for name in GOLDEN} == GOLDEN


def test_two_seeds_have_no_row_in_common() -> None:
    first, second = (plan_rows(CORPUS["sizes"], seed) for seed in (0, 1))
    assert not {spec.seed for spec in first} & {spec.seed for spec in second}


def test_a_larger_corpus_contains_the_smaller_one() -> None:
    small, large = (set(plan_rows({"train": {"lid": n, "ks": n}}, 0)) for n in (10, 35))
    assert small < large


def test_the_labels_hash_is_computed_from_the_files(corpus_dir: Path) -> None:
    facts = json.loads((corpus_dir / "corpus.json").read_text("utf-8"))
    names = [*(f"{split}.jsonl" for split in grammar.SPLITS), "text.txt"]
    assert facts["labels_hash"] == hash_bytes(*((corpus_dir / name).read_bytes() for name in names))


def test_splits_share_no_sentence_no_meaning_and_no_voice(corpus_dir: Path) -> None:
    rows = [row for row in read(corpus_dir) if row["provenance"] == "tts"]  # synthetic speech
    sentences = {
        split: {row.get("transcript", row["content"]) for row in rows if row["split"] == split}
        | {row["text"] for row in rows if row["split"] == split and row["task"] == "s2tt"}
        for split in grammar.SPLITS
    }
    sentences["train"] |= set((corpus_dir / "text.txt").read_text("utf-8").splitlines())
    assert not sentences["train"] & (sentences["valid"] | sentences["test"])
    assert not sentences["valid"] & sentences["test"]
    english = [row for row in rows if row["language"] == "en"]
    assert all(grammar.assign_split(row.get("transcript", row["content"])) == row["split"] for row in english)
    voices = {split: {row["speaker"] for row in rows if row["split"] == split} for split in grammar.SPLITS}
    for split, names in voices.items():
        assert names <= {*speech.VOICES[split]["male"], *speech.VOICES[split]["female"]}


def test_text_lines_belong_to_the_training_split_in_every_language(corpus_dir: Path) -> None:
    lines = (corpus_dir / "text.txt").read_text("utf-8").splitlines()
    assert lines == draw_text(400, CORPUS["seed"], SPOKEN)
    words = {language: vocabulary(language) for language in SPOKEN}
    # The lines repeat this sequence: one sentence in each language, then one English keyword phrase.
    for start, language in enumerate(SPOKEN):
        for line in lines[start :: len(SPOKEN) + 1]:
            assert set(grammar.split_words(line, language)) <= words[language], line
    assert all(grammar.assign_split(line) == "train" for line in lines[0 :: len(SPOKEN) + 1])


def test_audio_files_have_the_duration_of_their_rows(corpus_dir: Path) -> None:
    for row in read(corpus_dir):
        clip = soundfile.info(corpus_dir / row["audio"])
        assert (clip.samplerate, clip.channels, clip.format, clip.subtype) == (SAMPLE_RATE, 1, "WAV", "PCM_16")
        assert row["duration"] == clip.frames / SAMPLE_RATE
        samples, _ = soundfile.read(corpus_dir / row["audio"])
        assert 0.1 < np.abs(samples).max() < 0.9, row["id"]


def test_word_times_are_contiguous_and_inside_the_clip(corpus_dir: Path) -> None:
    spoken = [row for row in read(corpus_dir) if row["provenance"] == "tts"]
    for row in spoken:
        times = [row["words"][0]["start"], *(word["end"] for word in row["words"])]
        assert all(a < b for a, b in itertools.pairwise(times))
        assert all(a["end"] == b["start"] for a, b in zip(row["words"][:-1], row["words"][1:], strict=True))
        assert times[0] > 0
        assert times[-1] < row["duration"]
        sentence = row.get("transcript", row["content"])
        assert [word["word"] for word in row["words"]] == grammar.split_words(sentence, row["language"])


def test_word_times_enclose_the_speech(corpus_dir: Path) -> None:
    for row in read(corpus_dir, "test"):
        if row["task"] != "asr":
            continue
        samples, _ = soundfile.read(corpus_dir / row["audio"])
        start, end = (round(row["words"][index][edge] * SAMPLE_RATE) for index, edge in ((0, "start"), (-1, "end")))
        assert np.mean(samples[start:end] ** 2) > 10 * np.mean(samples[: start - 160] ** 2), row["id"]


def test_every_row_has_a_unique_id_and_states_its_provenance_and_licence(corpus_dir: Path) -> None:
    rows = read(corpus_dir)
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows)
    for row in rows:
        is_speech = row["task"] in ("asr", "s2tt", "lid", "sgc", "ks")
        assert row["provenance"] == ("tts" if is_speech else "procedural")
        assert row["generator"].startswith("espeak-ng 1." if is_speech else "auris.corpus")
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
            assert f"{row['language']}-{row['target_language']}" in DIRECTIONS
        elif task in ("sec", "mic"):
            assert row["text"] in RECIPES[task].variants
        elif task == "aqa":
            check_answer(row)
    assert Counter(row["language"] for row in read(corpus_dir, "train") if row["task"] == "lid") == dict.fromkeys(
        SPOKEN, 1
    )


def check_answer(row: dict[str, Any]) -> None:
    """Assert that the answer of a question row follows from the events in its clip."""
    sounds = [event["label"] for event in row["events"]]
    assert row["content"] == ", ".join(sounds)
    assert [event["start"] for event in row["events"]] == sorted(event["start"] for event in row["events"])
    assert row["events"][-1]["end"] == pytest.approx(row["duration"], abs=1e-3)
    question = row["question"]
    if question.startswith("How many"):
        assert row["text"] == ("one", "two", "three")[len(sounds) - 1]
    elif question.startswith("What"):
        assert row["text"] == sounds[0 if "first" in question else -1]
        assert len(sounds) > 1
    else:
        queried = question.removeprefix("Can you hear ").removesuffix(" in the audio?").split()[-1]
        assert row["text"] == ("yes" if queried in sounds else "no")


def test_answers_to_questions_are_balanced(corpus_dir: Path) -> None:
    rows = [row for row in read(corpus_dir, "train") if row["task"] == "aqa"]
    answers = Counter(row["text"] for row in rows if row["question"].startswith("Can"))
    assert answers["yes"] == answers["no"] == 4
    assert max(Counter(row["text"] for row in rows if row["question"].startswith("How")).values()) <= 3
    assert Counter(row["question"] for row in rows if row["question"].startswith("What")).most_common(1)[0][1] == 4


def test_an_existing_corpus_is_reported_and_not_rebuilt(corpus_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (corpus_dir / "corpus.json").stat().st_mtime_ns
    facts = build(corpus_dir, **CORPUS)
    assert f"already in {corpus_dir}" in capsys.readouterr().out
    assert facts["rows"]["valid"] == {"asr": 4, "sgc": 4}
    assert (corpus_dir / "corpus.json").stat().st_mtime_ns == before


def test_a_directory_with_a_corpus_of_another_config_is_an_error(corpus_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"made with other settings \(seed: 7, now 8\).*out=DIR"):
        build(corpus_dir, **{**CORPUS, "seed": 8})


def test_a_directory_with_other_files_is_an_error_and_stays_unchanged(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="no synthetic corpus"):
        build(tmp_path, **CORPUS)
    assert (tmp_path / "train.jsonl").read_text() == "mine"


def test_an_interrupted_build_leaves_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("auris.corpus.build.draw_text", fail)
    tiny = {"sizes": {"train": {"sec": 2}}, "text_lines": 5, "processes": 1}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "corpus", **tiny)
    assert not (tmp_path / "corpus").exists()
    monkeypatch.undo()
    assert build(tmp_path / "corpus", **tiny)["rows"]["train"] == {"sec": 2}
    assert not (tmp_path / "corpus.partial").exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dev": {"sec": 1}}, r"splits \['dev'\], expected train, valid, test"),
        ({"train": {"tts": 1}}, r"sizes.train has the tasks \['tts'\]"),
        ({"train": {"asr": {"pl": 1}}}, r"sizes.train.asr has the variants \['pl'\], expected any of en, zh, de"),
        ({"train": {"sec": {"cat": 1}}}, r"sizes.train.sec has the variants \['cat'\], expected any of dog, rain"),
        ({"train": {"s2tt": {"de-de": 1}}}, r"\['de-de'\]"),
    ],
)
def test_invalid_sizes_are_an_error(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_rows(sizes, 0)


def test_rows_are_distributed_evenly_over_variants_or_as_given() -> None:
    sizes = {"train": {"asr": 10, "s2tt": {"ko-en": 2}, "srwt": {"en": 1, "de": 2}}, "test": {"s2tt": 9, "srwt": 3}}
    planned = Counter((spec.split, spec.task, spec.variant) for spec in plan_rows(sizes, 0))
    languages = dict.fromkeys(grammar.LANGUAGES, 1) | {"en": 2}
    assert planned == {
        **{("train", "asr", language): rows for language, rows in languages.items()},
        ("train", "s2tt", "ko-en"): 2,
        ("train", "srwt", "en"): 1,
        ("train", "srwt", "de"): 2,
        **{
            ("test", "s2tt", direction): 1
            for direction in ("es-en", "fr-en", "it-en", "zh-en", "ja-en", "en-de", "en-zh")
        },
        ("test", "s2tt", "de-en"): 2,
        ("test", "srwt", "en"): 2,
        ("test", "srwt", "zh"): 1,
    }


def test_scale_multiplies_sizes_and_leaves_at_least_one_row_unless_the_size_is_0() -> None:
    assert scale_sizes({"train": {"asr": {"en": 100}, "sec": 3, "mic": 0}}, 0.1) == {
        "train": {"asr": {"en": 10}, "sec": 1, "mic": 0}
    }


def test_the_sample_rate_equals_that_of_the_model() -> None:
    assert SAMPLE_RATE == audio.SAMPLE_RATE


def test_every_config_key_is_an_argument_of_build_and_can_be_overridden() -> None:
    configs = Path(__file__).resolve().parents[2] / "configs"
    overrides = ["out=x", "seed=1", "processes=1", "text_lines=1", "fraction=0.5", "sizes.test.sec=1"]
    with initialize_config_dir(str(configs), version_base="1.3"):
        config = compose("corpus", overrides=overrides)
    assert config.fraction == 0.5
    keys = {str(key) for key in config} - {"vocab_size"}  # an argument of the tokenizer
    keys -= {"text", "llm", "language", "sentences"}  # of corpora of other texts than the grammar's
    # `fraction` is passed as `scale`.
    assert (keys - {"fraction"}) | {"scale"} == set(inspect.signature(build).parameters)


SENTENCES = [
    f"{owner} {animal} {action}!"
    for owner in ("My", "Our neighbour's", "Nobody's")
    for animal in ("parrot", "elephant")
    for action in ("eats peanuts", "doesn't sleep", "swims")
]


def build_text(out: Path, sentences: list[str], *, processes: int = 1) -> dict[str, Any]:
    return build_from_sentences(
        out,
        lambda: select_sentences(sentences, "en", "text=x", processes),
        source={"text": len(sentences)},
        seed=3,
        processes=processes,
    )


@pytest.fixture(scope="module")
def text_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text") / "corpus"
    build_text(out, SENTENCES, processes=2)
    return out


def test_every_sentence_is_a_row_whose_words_have_times(text_corpus: Path) -> None:
    rows = read(text_corpus)
    assert {row["text"] for row in rows} == {sentence.lower().strip("!") for sentence in SENTENCES}
    assert len(rows) == len(SENTENCES)
    for row in rows:
        assert (row["task"], row["language"], row["provenance"]) == ("asr", "en", "tts")
        assert row["content"] == row["text"] == " ".join(word["word"] for word in row["words"])
        times = [time for word in row["words"] for time in (word["start"], word["end"])]
        assert times[0] > 0 and times == sorted(times) and times[-1] < row["duration"]
        assert soundfile.info(text_corpus / row["audio"]).frames == row["duration"] * SAMPLE_RATE
        assert "licence" not in row  # of a text that somebody else wrote


def test_splits_of_a_text_share_no_sentence_and_no_voice(text_corpus: Path) -> None:
    rows = {split: read(text_corpus, split) for split in grammar.SPLITS}
    assert all(rows.values())
    for split, entries in rows.items():
        assert {grammar.assign_split(row["text"]) for row in entries} == {split} == {row["split"] for row in entries}
        assert {row["speaker"] for row in entries} <= {*itertools.chain(*speech.VOICES[split].values())}
    assert (text_corpus / "text.txt").read_text().splitlines() == [row["text"] for row in rows["train"]]


def test_distinct_words_are_counted(text_corpus: Path) -> None:
    facts = json.loads((text_corpus / "corpus.json").read_text())
    words = [{word for row in read(text_corpus, split) for word in row["text"].split()} for split in grammar.SPLITS]
    assert facts["distinct_words"] == {
        **dict(zip(grammar.SPLITS, map(len, words), strict=True)),
        "all": len(set().union(*words)),
    }
    assert facts["sentences"] == {"read": len(SENTENCES), "kept": len(SENTENCES), "dropped": {}}


def test_the_kept_sentences_give_the_same_corpus_with_any_number_of_processes(
    text_corpus: Path, tmp_path: Path
) -> None:
    repeated = build_text(tmp_path / "corpus", (text_corpus / "sentences.txt").read_text().splitlines(), processes=1)
    assert repeated == json.loads((text_corpus / "corpus.json").read_text())


def test_appended_sentences_do_not_change_the_plan_of_the_others() -> None:
    few, many = (set(plan_sentences(SENTENCES[:n], "en", 0)) for n in (10, 18))
    assert len(few) == 10 and few < many
