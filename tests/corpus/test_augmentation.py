"""A language model's questions: asked over HTTP once, recorded, replayed without a network; bad replies are counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import stand_in
from auris.corpus import augmentation
from auris.corpus.augmentation import SHIPPED, Endpoint, Record, Written, request
from auris.corpus.grammar import SPLITS

DOG = request("sec", "dog", 2)


def replying(text: str):
    return lambda messages: text


def test_the_shipped_recording_says_in_its_first_line_that_no_language_model_wrote_it() -> None:
    first = json.loads(SHIPPED.read_text("utf-8").splitlines()[0])
    assert first["answered by"] == stand_in.MODEL == "a script of templates, not a language model"


def test_the_shipped_recording_is_what_the_script_says_today(tmp_path: Path) -> None:
    stand_in.record(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == SHIPPED.read_bytes()


def test_the_shipped_recording_gives_eight_good_pairs_for_each_label() -> None:
    written, refused = augmentation.write(Record(SHIPPED), stand_in.labels(), stand_in.PAIRS)
    assert not refused
    assert set(Counter((entry.task, entry.label) for entry in written).values()) == {8}
    assert {entry.model for entry in written} == {stand_in.MODEL}


def test_an_answer_is_asked_for_once_and_then_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.jsonl"
    with stand_in.serve() as (url, requests):
        record = Record(path, Endpoint(url=url, model="m", temperature=0.5))
        said = [record.ask(DOG), record.ask(DOG), Record(path, record.endpoint).ask(DOG)]
    assert len(requests) == 1
    assert requests[0]["path"] == "/v1/chat/completions"
    assert requests[0]["body"] == {"model": "m", "messages": DOG, "temperature": 0.5}
    assert said == [Record(path).ask(DOG)] * 3
    assert said[0] == (stand_in.reply(DOG), stand_in.MODEL)


def test_the_key_is_taken_from_the_environment_and_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "opensesame")
    with stand_in.serve() as (url, requests):
        Record(tmp_path / "record.jsonl", Endpoint(url=url, model="m", key_env="SOME_KEY")).ask(DOG)
        Record(tmp_path / "other.jsonl", Endpoint(url=url, model="m", key_env="NO_SUCH_KEY")).ask(DOG)
    assert [call["headers"].get("Authorization") for call in requests] == ["Bearer opensesame", None]
    assert "opensesame" not in (tmp_path / "record.jsonl").read_text()


def test_what_is_not_recorded_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r'(?s)augmentation.jsonl holds no answer.*"label": "owl".*llm.url=.*mix.augm'):
        Record(SHIPPED).ask(request("sec", "owl", 8))


def test_a_recording_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="llm.recording=.*none.jsonl.*llm.url="):
        Record(tmp_path / "none.jsonl")


def test_a_line_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(SHIPPED.read_text("utf-8")[:3000])
    with pytest.raises(ValueError, match=r"record.jsonl, line 4 is no answer \(JSONDecodeError"):
        Record(path)


def test_an_endpoint_that_fails_is_named_and_earlier_answers_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with stand_in.serve() as (url, _):
        Record(path, Endpoint(url=url, model="m")).ask(DOG)
    gone = Record(path, Endpoint(url=url, model="m", timeout=2))
    with pytest.raises(ValueError, match=f"llm.url={url} gave no chat completion"):
        gone.ask(request("sec", "bell", 2))
    assert Record(path).ask(DOG)[0] == stand_in.reply(DOG)


def test_an_address_that_is_none_of_an_endpoint_is_named() -> None:
    with stand_in.serve() as (url, _), pytest.raises(ValueError, match="elsewhere gave no chat .*404"):
        Endpoint(url=url.replace("v1", "elsewhere"), model="m").complete(DOG)
    with stand_in.serve(lambda messages: None) as (url, _), pytest.raises(ValueError, match="its content is None"):
        Endpoint(url=url, model="m").complete(DOG)
    with pytest.raises(ValueError, match="llm.url=nonsense gave no chat completion"):
        Endpoint(url="nonsense", model="m").complete(DOG)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"question": "What is it?"}, "no question with an answer"),
        ({"question": " ", "answer": "A dog."}, "no question with an answer"),
        ("What is it?", "no question with an answer"),
        ({"question": "What is it?", "answer": "Some dogs."}, "the label is not in the answer"),
        ({"question": "Is it a dog?", "answer": "Yes, a dog."}, "the question gives the label away"),
        ({"question": "Which sound can be heard?", "answer": "A dog."}, "a template asks the same"),
    ],
)
def test_a_bad_pair_is_refused_and_counted(tmp_path: Path, entry: object, reason: str) -> None:
    good = {"question": "Who barks?", "answer": "It is a dog."}
    with stand_in.serve(replying(json.dumps([entry, good]))) as (url, _):
        record = Record(tmp_path / "record.jsonl", Endpoint(url=url, model="m"))
        written, refused = augmentation.write(record, [("sec", "dog")], 2)
    assert written == [Written("sec", "dog", "Who barks?", "It is a dog.", stand_in.MODEL)]
    assert refused == {reason: 1}


@pytest.mark.parametrize(
    ("reply", "pairs", "refused"),
    [
        ('Here you are:\n```json\n[{"question": "Who barks?", "answer": "A dog."}]\n```', 1, {}),
        ("I cannot do that.", 0, {"the reply is no JSON list": 1}),
        ('[{"question": ', 0, {"the reply is no JSON list": 1}),
        ("[broken]", 0, {"the reply is no JSON list": 1}),
    ],
)
def test_a_fence_is_read_over_and_what_is_no_list_is_counted(
    tmp_path: Path, reply: str, pairs: int, refused: dict[str, int]
) -> None:
    with stand_in.serve(replying(reply)) as (url, _):
        record = Record(tmp_path / "record.jsonl", Endpoint(url=url, model="m"))
        written, counted = augmentation.write(record, [("sec", "dog")], 4)
    assert (len(written), counted) == (pairs, refused)


def test_a_question_belongs_to_one_split_whatever_label_it_was_written_for() -> None:
    written, _ = augmentation.write(Record(SHIPPED), stand_in.labels(), stand_in.PAIRS)
    asked = {split: {entry.question for entry in several} for split, several in augmentation.deal(written).items()}
    assert all(asked[split] for split in SPLITS)
    assert sum(map(len, asked.values())) == len({entry.question for entry in written})


def test_too_few_questions_for_three_splits_is_an_error() -> None:
    with pytest.raises(ValueError, match="raise llm.pairs"):
        augmentation.deal([Written("sec", "dog", "Who barks?", "A dog.", "m")])
