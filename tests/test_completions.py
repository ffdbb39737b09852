"""What a language model behind an endpoint said is asked for once, kept, and read again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from auris.completions import Endpoint, Record
from auris.corpus.dialogues.augmentation import SHIPPED, request
from support import stand_in

DOG = request("sec", "dog", 2)


def test_a_reply_is_requested_once_and_then_read_from_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.jsonl"
    with stand_in.serve() as (url, requests):
        record = Record(path, Endpoint(url=url, model="m", temperature=0.5))
        replies = [record.ask(DOG), record.ask(DOG), Record(path, record.endpoint).ask(DOG)]
    assert len(requests) == 1
    assert requests[0]["path"] == "/v1/chat/completions"
    assert requests[0]["body"] == {"model": "m", "messages": DOG, "temperature": 0.5}
    assert replies == [Record(path).ask(DOG)] * 3
    assert replies[0] == (stand_in.reply(DOG), stand_in.MODEL)


def test_the_key_is_taken_from_the_environment_and_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "opensesame")
    with stand_in.serve() as (url, requests):
        Record(tmp_path / "record.jsonl", Endpoint(url=url, model="m", key_env="SOME_KEY")).ask(DOG)
        Record(tmp_path / "other.jsonl", Endpoint(url=url, model="m", key_env="NO_SUCH_KEY")).ask(DOG)
    assert [call["headers"].get("Authorization") for call in requests] == ["Bearer opensesame", None]
    assert "opensesame" not in (tmp_path / "record.jsonl").read_text()


def test_a_missing_recording_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r'(?s)augmentation.jsonl holds no answer.*"label": "owl".*llm.url=.*mix.augm'):
        Record(SHIPPED).ask(request("sec", "owl", 8))


def test_a_recording_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="llm.recording=.*none.jsonl.*llm.url="):
        Record(tmp_path / "none.jsonl")


def test_a_recording_that_is_there_and_empty_gets_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.touch()
    with stand_in.serve() as (url, _):
        reply = Record(path, Endpoint(url=url, model="m")).ask(DOG)
    assert Record(path).ask(DOG) == reply


def test_a_truncated_line_is_requested_again_where_requests_are_possible(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    whole = SHIPPED.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n", 3000) - 5])
    with stand_in.serve() as (url, requests):
        record = Record(path, Endpoint(url=url, model="m"))
        assert len(record.answers) == whole[:3000].count(b"\n") - 1 and not requests
        record.ask(DOG)
    assert len(Record(path).answers) == len(record.answers)


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


def test_an_invalid_endpoint_url_is_named() -> None:
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


SETTINGS = {"model": "judge", "temperature": 1.0, "max_tokens": 8}


def asked(number: int) -> tuple[list[dict], dict]:
    return [{"role": "user", "content": f"question {number}"}], SETTINGS


def test_a_request_is_known_by_its_settings_too(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with stand_in.serve(lambda messages: "yes") as (url, requests):
        record = Record(path, Endpoint(url=url, model="m"))
        messages, settings = asked(1)
        record.ask(messages, settings)
        record.ask(messages, {**settings, "temperature": 2.0})
    assert [call["body"]["temperature"] for call in requests] == [1.0, 2.0]
    assert requests[0]["body"] == {"messages": messages, **settings}
    assert Record(path).ask(messages, settings)[0] == "yes"
    with pytest.raises(ValueError, match="holds no answer by .*'temperature': 3"):
        Record(path).ask(messages, {**settings, "temperature": 3})


def test_requests_run_concurrently_and_each_is_sent_once(tmp_path: Path) -> None:
    inside, most, lock, all_in = 0, 0, threading.Lock(), threading.Barrier(4)

    def answer(messages: list) -> str:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        all_in.wait(10)  # no answer before four are asked for: they are at the same time
        with lock:
            inside -= 1
        return messages[-1]["content"].upper()

    path = tmp_path / "record.jsonl"
    with stand_in.serve(answer) as (url, requests):
        record = Record(path, Endpoint(url=url, model="m"))
        record.ask_all([*map(asked, range(8)), asked(3), asked(0)], workers=4)
    assert most == 4 and len(requests) == 8 and len(path.read_text().splitlines()) == 9
    assert [Record(path).ask(*asked(number))[0] for number in (0, 7)] == ["QUESTION 0", "QUESTION 7"]


def test_server_errors_are_retried_and_refusals_are_not(tmp_path: Path) -> None:
    replies = [stand_in.Refused(429, "slow down"), stand_in.Refused(503), "yes"]
    with stand_in.serve(lambda messages: replies.pop(0)) as (url, requests):
        assert Endpoint(url=url, model="m", retries=2, pause=0.01).complete(DOG).text == "yes"
    assert len(requests) == 3
    for status, tries in ((401, 1), (500, 3)):
        refused = stand_in.Refused(status, "no")
        with (
            stand_in.serve(lambda messages, reply=refused: reply) as (url, requests),
            pytest.raises(ValueError, match="is kept") as error,
        ):
            Endpoint(url=url, model="m", retries=2, pause=0.01).complete(DOG)
        assert len(requests) == tries and str(status) in str(error.value)


def test_the_server_s_own_pause_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("auris.completions.time.sleep", slept.append)
    replies = [stand_in.Refused(429, headers={"Retry-After": "7"}), stand_in.Refused(500), "yes"]
    with stand_in.serve(lambda messages: replies.pop(0)) as (url, _):
        Endpoint(url=url, model="m", retries=2, pause=1).complete(DOG)
    first, second = slept
    assert 7 <= first <= 7 * 1.25 and 2 <= second <= 2 * 1.25


def test_requests_keep_their_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("auris.completions.time.sleep", slept.append)
    monkeypatch.setattr("auris.completions.time.monotonic", lambda: 100.0)
    with stand_in.serve(lambda messages: "yes") as (url, _):
        endpoint = Endpoint(url=url, model="m", per_minute=30)
        for _ in range(3):
            endpoint.complete(DOG)
    assert slept == [0, 2, 4]  # seconds after the first


def test_a_key_stays_out_of_messages_recipes_and_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "opensesame")
    refused = stand_in.Refused(401, "bad key opensesame")
    with stand_in.serve(lambda messages: refused) as (url, _), pytest.raises(ValueError, match=r"bad key \[key\]"):
        Endpoint(url=url, model="m", key_env="SOME_KEY").complete(DOG)
    with stand_in.serve(lambda messages: "yes") as (other, elsewhere):
        away = stand_in.Refused(302, headers={"Location": f"{other}/chat/completions"})
        with stand_in.serve(lambda messages: away) as (url, _), pytest.raises(ValueError, match="gave no chat"):
            Endpoint(url=url, model="m", key_env="SOME_KEY").complete(DOG)
    assert not any("opensesame" in str(call) for call in elsewhere)
    with pytest.raises(ValueError, match="key_env is no name") as error:
        Endpoint(url=url, model="m", key_env="sk-opensesame")
    assert "opensesame" not in str(error.value)
    for address in ("http://me:opensesame@localhost/v1", "http://localhost/v1?key=opensesame"):
        with pytest.raises(ValueError, match="llm.url holds a user or a query") as error:
            Endpoint(url=address, model="m")
        assert "opensesame" not in str(error.value)


def test_a_reply_of_nothing_is_one_where_it_counts(tmp_path: Path) -> None:
    with stand_in.serve(lambda messages: None) as (url, _):
        assert Endpoint(url=url, model="m", blank=True).complete(DOG).text == ""
    filtered = stand_in.Refused(400, '{"error": {"code": "content_filter"}}')
    with stand_in.serve(lambda messages: filtered) as (url, _):
        reply = Endpoint(url=url, model="m", blank=True).complete(DOG)
        assert reply.text == "" and reply.details == {"finish_reason": "content_filter"}


def test_a_stand_in_is_named_in_the_first_line_and_not_mixed_with_a_model(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with stand_in.serve(lambda messages: "yes") as (url, _):
        Record(path, Endpoint(url=url, model="m", stand_in="a script")).ask(*asked(1))
        assert '"answered by": "a script", "stand-in": true' in path.read_text().splitlines()[0]
        assert Record(path).stand_in == "a script"
        with pytest.raises(ValueError, match="holds answers of a script, and now a language model would"):
            Record(path, Endpoint(url=url, model="m"))


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_completions import asked
from auris.completions import Endpoint, Record
Record(Path(sys.argv[1]), Endpoint(url=sys.argv[2], model="m")).ask_all(map(asked, range(10)), workers=1)
"""


def test_after_a_kill_no_answered_request_is_repeated(tmp_path: Path) -> None:
    path, child = tmp_path / "record.jsonl", None

    def answer(messages: list) -> str:
        if len(requests) == 6 and child:  # while this one is under way
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        return "yes"

    with stand_in.serve(answer) as (url, requests):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), url, str(Path(__file__).parent)])
        assert child.wait(60) == -signal.SIGKILL
        assert len(Record(path).answers) == 5
        with path.open("a") as file:
            file.write('{"messages": [{"role": "us')  # as if the end had come a little later
        child = None
        Record(path, Endpoint(url=url, model="m")).ask_all(map(asked, range(10)), workers=2)
    counts = Counter(call["body"]["messages"][0]["content"] for call in requests)
    assert len(Record(path).answers) == len(counts) == 10
    assert [question for question, n in counts.items() if n > 1] == ["question 5"]  # which was never answered
