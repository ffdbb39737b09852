"""Tests of `auris instruct`: answers that follow from the labels, reproducible bytes, and disjoint splits.

The `key` of a row consists of the words that a correct answer contains. The `sources` of a row are the corpus rows that
it uses.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import soundfile

from auris import cli, config
from auris.corpus import grammar, speech
from auris.corpus.dialogues import wordings
from auris.corpus.dialogues.augmentation import SHIPPED_REPLIES
from auris.corpus.dialogues.kinds import KINDS
from auris.corpus.dialogues.rows import FAULTS
from auris.corpus.instruct import divide_by_weight, instruct, tabulate_rows
from auris.corpus.scenes import SOUND_PHRASES
from auris.data.manifests import read_manifests
from auris.metrics.judges.rating import POLITE_OPENINGS, rate
from auris.metrics.normalize import contains
from auris.text import chat
from auris.text.tasks import LANGUAGES, MODES
from support import mock_llm
from support.corpora import TRAIN_ROWS, build_corpus

FILES = [f"{prefix}{split}" for split in grammar.SPLITS for prefix in ("", "preferences_")]
SPLIT_OF_FILE = {name: name.removeprefix("preferences_") for name in FILES}
EQUAL_MIX = dict.fromkeys(KINDS, 1)
OPTIONS: dict[str, Any] = {
    "dialogues": {
        "rows": {"train": 180, "valid": 60, "test": 90},
        "preferences": {"train": 80, "valid": 16, "test": 40},
        "mix": EQUAL_MIX,
        "tasks": {task: 1 for task in wordings.ANSWER_SENTENCES},
    },
    "forms": {"terse": 1, "sentence": 1, "polite": 1},
    "faults": {"wrong": 2, "terse": 1, "plain": 1},  # plain: a full sentence without a polite opening
    "llm": {
        "recording": None,
        "tasks": ["lid", "sgc", "ks", "sec", "mic"],
        "pairs": 8,
        "url": None,
        "model": None,
        "key_env": None,
        "temperature": 0.7,
    },
    "seed": 3,
}


def replace(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return options with changes. Keys of the group `dialogues` need no prefix."""
    dialogue_changes = {key: value for key, value in changes.items() if key in OPTIONS["dialogues"]}
    other_changes = {key: value for key, value in changes.items() if key not in dialogue_changes}
    return {**options, "dialogues": options["dialogues"] | dialogue_changes, **other_changes}


WITHOUT_SPEECH = replace(OPTIONS, {"mix": {"demonstration": 3, "text": 1}})  # fast, as nothing is synthesised


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a corpus whose valid and test splits are as large as train, because dialogues need that many rows."""
    return build_corpus(tmp_path_factory.mktemp("embedded") / "corpus", TRAIN_ROWS)


@pytest.fixture(scope="module")
def dialogue_dir(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dialogues") / "instruct"
    instruct(corpus, out, **OPTIONS, processes=2)
    return out


def read(out: Path, *names: str) -> list[dict[str, Any]]:
    return [json.loads(line) for name in names for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]


def texts_of(row: dict[str, Any], role: str) -> list[str]:
    """Return the text of each message of a role."""
    contents = [message["content"] for message in row["messages"] if message["role"] == role]
    return [
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        for content in contents
    ]


def audio_paths(row: dict[str, Any]) -> list[str]:
    return chat.audios(row["messages"])


def rows_by_id(corpus: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read(corpus, *grammar.SPLITS)}


def test_every_row_is_usable_and_read_with_its_labels(dialogue_dir: Path) -> None:
    for name in FILES:
        (manifest,) = read_manifests([dialogue_dir / f"{name}.jsonl"])
        for row, written in zip(manifest.rows, read(dialogue_dir, name), strict=True):
            assert row.problem is None, (row.id, row.problem)
            assert row.labels["task"] == ("preference" if "preferences" in name else "chat")
            assert (row.labels["mode"], row.labels["key"]) == (written["mode"], written["key"])
            assert [clip.path.resolve() for clip in row.clips] == [
                (dialogue_dir / path).resolve() for path in audio_paths(written)
            ]
            assert all(clip.path.is_file() for clip in row.clips)


def test_every_kind_has_its_share_of_rows_and_instruct_json_counts_them(dialogue_dir: Path) -> None:
    facts = json.loads((dialogue_dir / "instruct.json").read_text("utf-8"))
    for name in FILES:
        rows = read(dialogue_dir, name)
        kinds = Counter(row["kind"] for row in rows)
        assert kinds == facts["kinds"][name]
        assert set(kinds) == set(KINDS) - ({"augmented"} if "preferences" in name else set())
        assert max(kinds.values()) - min(kinds.values()) <= 1
        assert Counter(row["mode"] for row in rows) == facts["modes"][name]
        assert {row["mode"] for row in rows} == set(MODES)
    first = Counter(row["kind"] for row in read(dialogue_dir, "train")[: len(KINDS)])
    assert set(first.values()) == {1}  # the first rows contain every kind


def test_the_last_answer_of_a_row_contains_its_key(dialogue_dir: Path) -> None:
    for row in read(dialogue_dir, *grammar.SPLITS):
        assert row["messages"][-1]["role"] == "assistant"
        assert contains(row["messages"][-1]["content"], row["key"], row["language"]), row


def test_answers_have_the_form_named_in_the_row(dialogue_dir: Path) -> None:
    rows = [row for row in read(dialogue_dir, *grammar.SPLITS) if row["kind"] != "augmented"]
    assert {row["form"] for row in rows} == set(wordings.FORMS)
    for row in rows:
        for reply in texts_of(row, "assistant"):
            assert reply.startswith(POLITE_OPENINGS) == (row["form"] == "polite"), row
            assert reply.endswith(".") == (row["form"] != "terse"), row


def test_the_mode_follows_from_the_users_messages(dialogue_dir: Path) -> None:
    for row in read(dialogue_dir, *FILES):
        match row["kind"]:
            case "voice":
                assert (row["mode"], len(audio_paths(row)), texts_of(row, "user")) == ("voice_chat", 1, [""])
            case "text":
                assert (row["mode"], audio_paths(row)) == ("text", [])
            case "command":
                assert (row["mode"], len(audio_paths(row)), texts_of(row, "user")) == ("audio_analysis", 1, [""])
            case "comparison":
                assert row["mode"] == "audio_analysis" and len(audio_paths(row)) in (2, 3)
            case "turns":
                assert row["mode"] == "audio_analysis" and len(audio_paths(row)) == len(texts_of(row, "user")) in (2, 3)
            case "follow_up":
                assert len(audio_paths(row)) == 1 and len(texts_of(row, "user")) in (2, 3)
            case _:
                assert row["mode"] == "audio_analysis" and len(audio_paths(row)) == 1 and all(texts_of(row, "user"))


# --- answers, from the labels of the corpus --------------------------------------------------------------------------


def label_of(row: dict[str, Any]) -> str:
    return LANGUAGES[row["language"]] if row["task"] == "lid" else row["text"]


def table_of(task: str) -> dict[str, tuple[str, ...]]:
    return {"sec": wordings.SOUND_SOURCES, "mic": wordings.INSTRUMENT_FAMILIES}[task]


def expected_key(row: dict[str, Any], sources: list[dict[str, Any]]) -> str:
    """Return the key of a row, computed from its source rows and its question."""
    question = (texts_of(row, "user")[-1] or row["spoken"]).lower()
    question = re.sub(r" (please|tell me|i want to know|thank you)\.$", "", question)
    first = sources[0] if sources else {}
    match row["kind"]:
        case "demonstration" | "augmented" | "command" | "turns":
            return label_of(sources[-1])
        case "follow_up":
            return follow_up(first, question)
        case "comparison":
            return comparison(sources, question)
        case "reasoning" if "story" in question:
            return SOUND_PHRASES[first["text"]] if first["task"] == "sec" else f"the {first['text']}"
        case "reasoning":
            return next(heading for heading, items in table_of(first["task"]).items() if first["text"] in items)
        case _:
            return fact(question)


def follow_up(source: dict[str, Any], question: str) -> str:
    """Return the key of a follow-up question."""
    if source["task"] in ("sec", "mic"):
        return next(heading for heading, items in table_of(source["task"]).items() if source["text"] in items)
    if "language" in question:
        return LANGUAGES[source["language"]]
    if "male" in question:
        return next(gender for gender in ("male", "female") if source["speaker"] in speakers(gender))
    return slot(source.get("transcript") or source["text"], question)


def speakers(gender: str) -> set[str]:
    """Return the voices of a gender in all splits."""
    return {variant for voices in speech.VOICES.values() for variant in voices[gender]}


def slot(statement: str, question: str) -> str:
    """Return the part of a statement that the question asks for: its subject, its object or its place."""
    verb = next(word for word in statement.split() if word in {**grammar.TRANSITIVE, **grammar.INTRANSITIVE})
    before, after = statement.split(f" {verb}")
    if re.search(r"\bwho\b|the one", question):
        return before
    return re.sub(r" (now|tonight|often)$", "", after.strip()) or after.strip()


def comparison(sources: list[dict[str, Any]], question: str) -> str:
    """Return the key of a question that compares several clips."""
    source_labels = [label_of(source) for source in sources]
    if "same" in question:
        return "yes" if len(set(source_labels)) == 1 else "no"
    if match := re.search(r"audio (?:is |that is )(.+?)[?.]$", question):
        (index,) = (index for index, label in enumerate(source_labels) if label.lower() in match[1].split())
        return f"audio {index + 1}"
    templates = {"lid": "{}", "sgc": "a {} voice", "ks": "the keyword {}", "mic": "the {}"}
    phrases = {source["text"]: SOUND_PHRASES[source["text"]] for source in sources if source["task"] == "sec"}
    return ", then ".join(phrases.get(label) or templates[sources[0]["task"]].format(label) for label in source_labels)


def fact(question: str) -> str:
    """Return the key of a knowledge question: a sum, opposite, translation, category or part of a statement."""
    if match := re.search(r"(\w+) (?:plus|and) (\w+)[?.]?$", question):
        return wordings.NUMBERS[sum(wordings.NUMBERS.index(number) + 1 for number in match.groups()) - 1]
    if match := re.search(r"opposite of (\w+)", question):
        (pair,) = (pair for pair in wordings.OPPOSITES if match[1] in pair)
        return pair[1 - pair.index(match[1])]
    verbs = {**grammar.TRANSITIVE, **grammar.INTRANSITIVE}
    if any(word in verbs for word in question.replace(".", "").split()):
        statement, statement_question = re.search(
            r"(the (?:\w+ ){1,2}(?:" + "|".join(verbs) + r")\b.*?)\.? (who.*|what.*|which.*|name.*|where.*)$", question
        ).groups()
        return slot(statement, statement_question)
    noun = next(word for word in re.findall(r"\w+", question) if word in {**grammar.SUBJECTS, **grammar.OBJECTS})
    for code in ("de", "es", "fr", "it"):
        if LANGUAGES[code].lower() in question:
            return grammar.SUBJECTS[noun][code]
    return next(heading for heading, items in wordings.CATEGORIES.items() if noun in items)


def test_every_key_follows_from_the_labels(dialogue_dir: Path, corpus: Path) -> None:
    corpus_rows = rows_by_id(corpus)
    for row in read(dialogue_dir, *FILES):
        sources = [corpus_rows[source] for source in row["sources"]]
        assert row["key"] == expected_key(row, sources), row
        has_skill = row["kind"] in ("demonstration", "turns")
        assert row.get("skill") == (sources[-1]["task"] if has_skill else None)


def test_earlier_answers_of_dialogues_with_several_turns_follow_from_the_labels_too(
    dialogue_dir: Path, corpus: Path
) -> None:
    corpus_rows = rows_by_id(corpus)
    for row in read(dialogue_dir, *FILES):
        if row["kind"] == "turns":
            for source, reply in zip(row["sources"], texts_of(row, "assistant"), strict=False):
                assert contains(
                    reply,
                    label_of(corpus_rows[source]),
                    corpus_rows[source].get("target_language") or corpus_rows[source].get("language", "en"),
                )


# --- preferences ----------------------------------------------------------------------------------------------------


def test_preferences_end_with_the_user_and_choose_the_correct_polite_answer(dialogue_dir: Path) -> None:
    faults = Counter()
    for row in read(dialogue_dir, *(name for name in FILES if "preferences" in name)):
        assert row["messages"][-1]["role"] == "user"
        assert row["chosen"].startswith(POLITE_OPENINGS) and contains(row["chosen"], row["key"], row["language"])
        assert row["chosen"] != row["rejected"]
        better, worse = row["scores"]
        assert better == 9.0 > worse
        assert (better, worse) == tuple(rate(row[side], row["key"], row["language"]) for side in ("chosen", "rejected"))
        match row["fault"]:
            case "wrong":
                assert not contains(row["rejected"], row["key"], row["language"]), row
                assert row["rejected"].startswith(POLITE_OPENINGS)
            case "terse":
                assert contains(row["rejected"], row["key"], row["language"]) and not row["rejected"].endswith(".")
            case "plain":
                assert row["chosen"].removeprefix("Sure. ").removeprefix("Of course. ") == row["rejected"]
        assert row["annotator"] == "a rule (auris.metrics.judges.rating.rate), not a person"
        faults[row["fault"]] += 1
    assert set(faults) == set(FAULTS)
    assert faults["wrong"] > max(faults["terse"], faults["plain"])


# --- splits and provenance ------------------------------------------------------------------------------------------


def test_splits_share_no_clips_voices_spoken_sentences_or_questions(dialogue_dir: Path, corpus: Path) -> None:
    corpus_rows = rows_by_id(corpus)
    by_split: dict[str, dict[str, set[str]]] = {split: {} for split in grammar.SPLITS}
    for name, split in SPLIT_OF_FILE.items():
        contents = by_split[split]
        for row in read(dialogue_dir, name):
            assert row["split"] == split
            assert {corpus_rows[source]["split"] for source in row["sources"]} <= {split}
            contents.setdefault("clips", set()).update(
                (dialogue_dir / path).resolve().name for path in audio_paths(row)
            )
            contents.setdefault("questions", set()).update(filter(None, texts_of(row, "user")))
            if "spoken" in row:
                contents.setdefault("spoken", set()).add(row["spoken"])
                contents.setdefault("voices", set()).add(row["speaker"])
        assert contents["voices"] <= {*speech.VOICES[split]["male"], *speech.VOICES[split]["female"]}
    for kind in ("clips", "questions", "spoken", "voices"):
        train, valid, test = (by_split[split][kind] for split in grammar.SPLITS)
        assert not (train & valid or train & test or valid & test), kind


def test_every_row_has_a_unique_id_and_states_its_provenance_and_licence(dialogue_dir: Path, corpus: Path) -> None:
    corpus_rows = rows_by_id(corpus)
    rows = read(dialogue_dir, *FILES)
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows)
    for row in rows:
        origins = {corpus_rows[source]["provenance"] for source in row["sources"]} | (
            {"tts"} if "spoken" in row else set()
        )
        assert row["provenance"] == ("+".join(sorted(origins)) or "templates")
        assert row["written_by"] == (mock_llm.MODEL if row["kind"] == "augmented" else "templates")
        assert row["licence"] == "CC0-1.0"


def test_no_dialogue_is_repeated(dialogue_dir: Path) -> None:
    for name in FILES:
        rows = [row["messages"] for row in read(dialogue_dir, name)]
        assert len({json.dumps(messages) for messages in rows}) == len(rows)


def test_the_wording_of_a_question_belongs_to_the_split_of_its_row(dialogue_dir: Path) -> None:
    placeholders = {"statement": r"the [a-z ]+", "noun": r"the \w+", "question": r"(?:how|what|can) [^.]+"}

    def pattern(wording: str) -> str:
        return re.sub(r"\\\{(\w+)\\\}", lambda match: placeholders.get(match[1], r"[\w ]+"), re.escape(wording.lower()))

    patterns = {
        (split, spoken): [
            pattern(wording)
            for family in wordings.question_families(spoken=spoken)
            for wording in wordings.select_questions(family, split, spoken=spoken)
        ]
        for split in grammar.SPLITS
        for spoken in (False, True)
    }
    for row in read(dialogue_dir, *FILES):
        if row["kind"] != "augmented":
            questions = (
                [(row["spoken"], True)] if "spoken" in row else [(text, False) for text in texts_of(row, "user")]
            )
            for text, spoken in questions:
                assert any(
                    re.fullmatch(wording_pattern, text.lower()) for wording_pattern in patterns[row["split"], spoken]
                ), text


# --- audio files ----------------------------------------------------------------------------------------------------


def test_only_newly_synthesised_speech_has_audio_files(dialogue_dir: Path) -> None:
    facts = json.loads((dialogue_dir / "instruct.json").read_text("utf-8"))
    spoken = {row["id"]: audio_paths(row) for row in read(dialogue_dir, *FILES) if "spoken" in row}
    files = sorted(path.relative_to(dialogue_dir).as_posix() for path in (dialogue_dir / "audio").rglob("*.*"))
    assert files == sorted(path for (path,) in spoken.values())
    assert len(files) == facts["recordings"]


def test_a_command_precedes_its_clip(dialogue_dir: Path, corpus: Path) -> None:
    corpus_rows = rows_by_id(corpus)
    for row in read(dialogue_dir, "test"):
        if row["kind"] == "command":
            recording, sample_rate = soundfile.read(dialogue_dir / audio_paths(row)[0], dtype="int16")
            (source,) = row["sources"]
            clip, _ = soundfile.read(corpus / corpus_rows[source]["audio"], dtype="int16")
            assert sample_rate == 16_000
            assert (recording[-len(clip) :] == clip).all()
            assert len(recording) - len(clip) > 0.5 * sample_rate
            assert abs(recording[: -len(clip)]).max() > 1000


# --- generation ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(dialogue_dir: Path, corpus: Path) -> None:
    second_dir = dialogue_dir.with_name("second")  # a sibling directory, because paths of clips are relative
    instruct(corpus, second_dir, **OPTIONS, processes=1)
    files = sorted(path.relative_to(dialogue_dir) for path in dialogue_dir.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second_dir) for path in second_dir.rglob("*") if path.is_file())
    for file in files:
        assert (dialogue_dir / file).read_bytes() == (second_dir / file).read_bytes(), file


def test_a_larger_set_of_dialogues_contains_the_smaller_one(dialogue_dir: Path, corpus: Path) -> None:
    sizes = {"rows": {"train": 45}, "preferences": {"train": 24}}
    instruct(corpus, dialogue_dir.with_name("small"), **replace(OPTIONS, sizes), processes=1)
    for name in ("train", "preferences_train"):
        larger = {row["id"]: row for row in read(dialogue_dir, name)}
        for row in read(dialogue_dir.with_name("small"), name):
            assert row == larger[row["id"]]
    for path in (dialogue_dir.with_name("small") / "audio").rglob("*.wav"):
        assert path.read_bytes() == (dialogue_dir / path.relative_to(dialogue_dir.with_name("small"))).read_bytes()


def test_two_seeds_give_different_dialogues_of_the_same_kinds(corpus: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        instruct(corpus, tmp_path / str(seed), **{**WITHOUT_SPEECH, "seed": seed})
    first, second = (read(tmp_path / str(seed), "train") for seed in (0, 1))
    assert [row["kind"] for row in first] == [row["kind"] for row in second]
    assert sum(a["messages"] == b["messages"] for a, b in zip(first, second, strict=True)) < len(first) / 10


def test_existing_dialogues_are_reported_and_not_rebuilt(
    dialogue_dir: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (dialogue_dir / "instruct.json").stat().st_mtime_ns
    facts = instruct(corpus, dialogue_dir, **OPTIONS)
    assert f"already in {dialogue_dir}" in capsys.readouterr().out
    assert facts["kinds"]["train"]["voice"] == 20
    assert (dialogue_dir / "instruct.json").stat().st_mtime_ns == before


def test_a_directory_with_dialogues_of_other_settings_is_an_error(dialogue_dir: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"made with other settings \(seed: 3, now 4\).*out=DIR"):
        instruct(corpus, dialogue_dir, **{**OPTIONS, "seed": 4})


def test_a_directory_with_other_files_is_an_error_and_stays_unchanged(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no dialogues"):
        instruct(corpus, tmp_path, **WITHOUT_SPEECH)
    assert (tmp_path / "train.jsonl").read_text() == "mine"


def test_questions_are_written_by_the_language_model_of_the_config(corpus: Path, tmp_path: Path) -> None:
    replies_file = tmp_path / "mine.jsonl"
    with mock_llm.serve() as (url, requests):
        llm = OPTIONS["llm"] | {"url": url, "model": "m", "recording": str(replies_file), "tasks": ["ks"]}
        options = replace(WITHOUT_SPEECH, {"mix": {"augmented": 1, "text": 1}, "rows": {"train": 40, "test": 8}})
        instruct(corpus, tmp_path / "out", **{**options, "llm": llm})
    assert len(requests) == 10  # one request for each keyword
    augmented = [row for row in read(tmp_path / "out", "train") if row["kind"] == "augmented"]
    assert {source.split("-")[1] for row in augmented for source in row["sources"]} == {"ks"}
    replayed = instruct(corpus, tmp_path / "again", **{**options, "llm": llm | {"url": None, "model": None}})
    assert replayed["rows_hash"] == json.loads((tmp_path / "out" / "instruct.json").read_text())["rows_hash"]


def test_the_table_states_the_provenance_of_texts_and_preferences(dialogue_dir: Path) -> None:
    table = tabulate_rows(json.loads((dialogue_dir / "instruct.json").read_text("utf-8")))
    assert "a script of templates, not a language model" in table.caption
    assert "a rule (auris.metrics.judges.rating.rate), not a person" in table.caption


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": {"poem": 1}}, r"^dialogues.mix has \['poem'\], expected demonstration, augmented"),
        ({"mix": {"text": 0}}, "all weights of dialogues.mix are 0"),
        ({"mix": {"augmented": 1}}, "dialogues of the kind `augmented` alone; set dialogues.mix.demonstration=1"),
        ({"forms": {"rude": 1}}, r"forms has \['rude'\], expected terse, sentence, polite"),
        ({"faults": {"rude": 1}}, r"faults has \['rude'\], expected wrong, terse, plain"),
        ({"tasks": {"er": 1}}, r"^dialogues.tasks has \['er'\]"),
        ({"rows": {"dev": 1}}, r"^dialogues.rows has the splits \['dev'\], expected train, valid, test"),
        (
            {"mix": {"augmented": 1}, "rows": {"valid": 1000}, "preferences": {}},
            "valid split has only about .* of the kind 'augmented', but 1000 are .*lower dialogues.mix.augmented",
        ),
    ],
)
def test_invalid_settings_are_an_error(corpus: Path, tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instruct(corpus, tmp_path / "out", **replace(WITHOUT_SPEECH, settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        ({"url": "http://127.0.0.1:9/v1"}, "needs the name of a model: set llm.model=NAME"),
        ({"url": "http://127.0.0.1:9/v1", "model": "m"}, "llm.recording=FILE.jsonl"),
        ({"tasks": ["asr"]}, "holds no reply to"),
        ({"tasks": ["er"]}, r"llm.tasks is \['er'\].*no rows"),
    ],
)
def test_invalid_language_model_settings_are_an_error(
    corpus: Path, tmp_path: Path, llm: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        instruct(corpus, tmp_path / "out", **replace(WITHOUT_SPEECH, {"mix": EQUAL_MIX, "llm": OPTIONS["llm"] | llm}))


def test_the_error_for_a_corpus_without_rows_for_a_kind_names_the_kind(corpus: Path, tmp_path: Path) -> None:
    for split in grammar.SPLITS:
        rows = [row for row in read(corpus, split) if row["task"] == "s2tt"]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("follow_up", "comparison", "reasoning", "command"):
        with pytest.raises(ValueError, match=f"'{kind}' need rows .*train split has none.*set dialogues.mix.{kind}=0"):
            instruct(tmp_path, tmp_path / "out", **replace(WITHOUT_SPEECH, {"mix": {kind: 1}}))


def test_unusable_rows_are_counted_by_reason(corpus: Path, tmp_path: Path) -> None:
    for split in grammar.SPLITS:
        rows = read(corpus, split)
        for row in rows:
            row["audio"] = str(corpus / row["audio"])
        unusable = [{**rows[0], "id": "x", "text": ""}, {**rows[0], "id": "y", "audio": [rows[0]["audio"]] * 2}]
        unusable[1].pop("duration")
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *unusable]))
    facts = instruct(tmp_path, tmp_path / "out", **WITHOUT_SPEECH)
    assert facts["unused"]["train"] == {"label `text` is empty": 1, "task asr, 2 clips": 1}


def test_the_error_for_a_missing_corpus_gives_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"corpus=.*none.*auris corpus out="):
        instruct(tmp_path / "none", tmp_path / "out", **WITHOUT_SPEECH)


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_number_of_rows_is_divided_in_proportion_to_weights() -> None:
    assert divide_by_weight(10, {"a": 1, "b": 2, "c": 0}) == {"a": 3, "b": 7}
    assert sum(divide_by_weight(2400, {"a": 7, "b": 2, "c": 5.5}).values()) == 2400
    assert divide_by_weight(0, {"a": 1}) == {"a": 0}


def test_the_default_config_has_at_least_two_thousand_training_rows_and_its_keys_are_arguments() -> None:
    defaults = config.resolve(config.compose([], "instruct"))
    dialogues = defaults["dialogues"]
    assert dialogues["rows"]["train"] >= 2000
    assert set(defaults) == set(inspect.signature(instruct).parameters)
    assert set(dialogues) == set(OPTIONS["dialogues"])
    assert set(dialogues["mix"]) == set(KINDS)
    assert set(dialogues["tasks"]) == set(wordings.ANSWER_SENTENCES)
    assert set(defaults["llm"]) == set(OPTIONS["llm"])
    assert defaults["llm"]["pairs"] == mock_llm.PAIRS
    assert SHIPPED_REPLIES.is_file()


def test_the_command_prints_its_table_and_reports_errors(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        return cli.main(["instruct", f"corpus={corpus}", *arguments])

    no_evaluation_rows = [
        f"dialogues.{kind}.{split}=0" for kind in ("rows", "preferences") for split in ("valid", "test")
    ]
    overrides = ["dialogues.rows.train=28", "dialogues.preferences.train=0", *no_evaluation_rows, "processes=1"]
    assert run(f"out={tmp_path / 'out'}", *overrides) == 0
    assert re.search(r"voice\s+│\s+6 ", capsys.readouterr().out)
    assert len(read(tmp_path / "out", "train")) == 28
    assert run(f"out={tmp_path / 'out'}", *overrides, "seed=5") == 1
    assert re.match("error: .*made with other settings .seed: 0, now 5", capsys.readouterr().err)
