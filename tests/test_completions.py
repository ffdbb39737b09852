"""What a language model behind an endpoint said is asked for once, kept, and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

import stand_in
from auris.completions import Endpoint, Record
from auris.corpus.augmentation import SHIPPED, request

DOG = request("sec", "dog", 2)


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


def test_a_recording_that_is_there_and_empty_gets_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.touch()
    with stand_in.serve() as (url, _):
        said = Record(path, Endpoint(url=url, model="m")).ask(DOG)
    assert Record(path).ask(DOG) == said


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


def test_a_reply_may_hold_line_ends_of_unicode_s_own(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with stand_in.serve(lambda messages: "a\u2028b\x85c") as (url, _):
        Record(path, Endpoint(url=url, model="m")).ask(DOG)
    assert Record(path).ask(DOG)[0] == "a\u2028b\x85c"
