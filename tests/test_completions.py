"""Chat completions of an endpoint: each request is sent once, recorded and replayed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from auris.completions import Endpoint, ReplyLog
from auris.corpus.dialogues.augmentation import SHIPPED_REPLIES, write_request
from support import mock_llm

DOG = write_request("sec", "dog", 2)


def test_a_reply_is_requested_once_and_then_replayed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "reply_log.jsonl"
    with mock_llm.serve() as (url, requests):
        reply_log = ReplyLog(path, Endpoint(url=url, model="m", temperature=0.5))
        replies = [reply_log.ask(DOG), reply_log.ask(DOG), ReplyLog(path, reply_log.endpoint).ask(DOG)]
    assert len(requests) == 1
    assert requests[0]["path"] == "/v1/chat/completions"
    assert requests[0]["body"] == {"model": "m", "messages": DOG, "temperature": 0.5}
    assert replies == [ReplyLog(path).ask(DOG)] * 3
    assert replies[0] == (mock_llm.reply(DOG), mock_llm.MODEL)


def test_the_api_key_is_read_from_the_environment_and_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "opensesame")
    with mock_llm.serve() as (url, requests):
        ReplyLog(tmp_path / "reply_log.jsonl", Endpoint(url=url, model="m", key_env="SOME_KEY")).ask(DOG)
        ReplyLog(tmp_path / "other.jsonl", Endpoint(url=url, model="m", key_env="NO_SUCH_KEY")).ask(DOG)
    assert [call["headers"].get("Authorization") for call in requests] == ["Bearer opensesame", None]
    assert "opensesame" not in (tmp_path / "reply_log.jsonl").read_text()


def test_the_error_for_an_unrecorded_request_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r'(?s)augmentation.jsonl holds no reply.*"label": "owl".*llm.url=.*mix.augm'):
        ReplyLog(SHIPPED_REPLIES).ask(write_request("sec", "owl", 8))


def test_a_missing_file_of_replies_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="llm.recording=.*none.jsonl.*llm.url="):
        ReplyLog(tmp_path / "none.jsonl")


def test_an_empty_file_of_replies_can_be_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "reply_log.jsonl"
    path.touch()
    with mock_llm.serve() as (url, _):
        reply = ReplyLog(path, Endpoint(url=url, model="m")).ask(DOG)
    assert ReplyLog(path).ask(DOG) == reply


def test_a_truncated_reply_is_requested_again_if_there_is_an_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "reply_log.jsonl"
    content = SHIPPED_REPLIES.read_bytes()
    path.write_bytes(content[: content.index(b"\n", 3000) - 5])
    with mock_llm.serve() as (url, requests):
        reply_log = ReplyLog(path, Endpoint(url=url, model="m"))
        assert len(reply_log.replies) == content[:3000].count(b"\n") - 1 and not requests
        reply_log.ask(DOG)
    assert len(ReplyLog(path).replies) == len(reply_log.replies)


def test_the_error_for_a_truncated_line_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "reply_log.jsonl"
    path.write_text(SHIPPED_REPLIES.read_text("utf-8")[:3000])
    with pytest.raises(ValueError, match=r"reply_log.jsonl, line 4 is not a reply \(JSONDecodeError"):
        ReplyLog(path)


def test_the_error_for_a_failing_endpoint_names_the_endpoint_and_recorded_replies_remain(tmp_path: Path) -> None:
    path = tmp_path / "reply_log.jsonl"
    with mock_llm.serve() as (url, _):
        ReplyLog(path, Endpoint(url=url, model="m")).ask(DOG)
    unreachable = ReplyLog(path, Endpoint(url=url, model="m", timeout=2))
    with pytest.raises(ValueError, match=f"llm.url={url} gave no chat completion"):
        unreachable.ask(write_request("sec", "bell", 2))
    assert ReplyLog(path).ask(DOG)[0] == mock_llm.reply(DOG)


def test_the_error_for_an_invalid_endpoint_names_its_url() -> None:
    with mock_llm.serve() as (url, _), pytest.raises(ValueError, match="elsewhere gave no chat .*404"):
        Endpoint(url=url.replace("v1", "elsewhere"), model="m").complete(DOG)
    with mock_llm.serve(lambda messages: None) as (url, _), pytest.raises(ValueError, match="its content is None"):
        Endpoint(url=url, model="m").complete(DOG)
    with pytest.raises(ValueError, match="llm.url=nonsense gave no chat completion"):
        Endpoint(url="nonsense", model="m").complete(DOG)


def test_a_reply_may_contain_unicode_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "reply_log.jsonl"
    with mock_llm.serve(lambda messages: "a\u2028b\x85c") as (url, _):
        ReplyLog(path, Endpoint(url=url, model="m")).ask(DOG)
    assert ReplyLog(path).ask(DOG)[0] == "a\u2028b\x85c"


SETTINGS = {"model": "judge", "temperature": 1.0, "max_tokens": 8}


def numbered_request(number: int) -> tuple[list[dict], dict]:
    return [{"role": "user", "content": f"question {number}"}], SETTINGS


def test_requests_with_different_settings_are_recorded_separately(tmp_path: Path) -> None:
    path = tmp_path / "reply_log.jsonl"
    with mock_llm.serve(lambda messages: "yes") as (url, requests):
        reply_log = ReplyLog(path, Endpoint(url=url, model="m"))
        messages, settings = numbered_request(1)
        reply_log.ask(messages, settings)
        reply_log.ask(messages, {**settings, "temperature": 2.0})
    assert [call["body"]["temperature"] for call in requests] == [1.0, 2.0]
    assert requests[0]["body"] == {"messages": messages, **settings}
    assert ReplyLog(path).ask(messages, settings)[0] == "yes"
    with pytest.raises(ValueError, match="holds no reply with .*'temperature': 3"):
        ReplyLog(path).ask(messages, {**settings, "temperature": 3})


def test_requests_run_concurrently_and_each_is_sent_once(tmp_path: Path) -> None:
    active, most_active, lock, barrier = 0, 0, threading.Lock(), threading.Barrier(4)

    def answer(messages: list) -> str:
        nonlocal active, most_active
        with lock:
            active += 1
            most_active = max(most_active, active)
        barrier.wait(10)  # wait until four requests are active at the same time
        with lock:
            active -= 1
        return messages[-1]["content"].upper()

    path = tmp_path / "reply_log.jsonl"
    with mock_llm.serve(answer) as (url, requests):
        reply_log = ReplyLog(path, Endpoint(url=url, model="m"))
        reply_log.ask_all([*map(numbered_request, range(8)), numbered_request(3), numbered_request(0)], workers=4)
    assert most_active == 4 and len(requests) == 8
    assert len(path.read_text().splitlines()) == 9  # a description of the file and eight replies
    assert [ReplyLog(path).ask(*numbered_request(number))[0] for number in (0, 7)] == ["QUESTION 0", "QUESTION 7"]


def test_server_errors_are_retried_and_authorization_errors_are_not(tmp_path: Path) -> None:
    replies = [mock_llm.Refused(429, "slow down"), mock_llm.Refused(503), "yes"]
    with mock_llm.serve(lambda messages: replies.pop(0)) as (url, requests):
        assert Endpoint(url=url, model="m", retries=2, pause=0.01).complete(DOG).text == "yes"
    assert len(requests) == 3
    for status, tries in ((401, 1), (500, 3)):
        refused = mock_llm.Refused(status, "no")
        with (
            mock_llm.serve(lambda messages, reply=refused: reply) as (url, requests),
            pytest.raises(ValueError, match="are saved") as error,
        ):
            Endpoint(url=url, model="m", retries=2, pause=0.01).complete(DOG)
        assert len(requests) == tries and str(status) in str(error.value)


def test_the_retry_after_header_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("auris.completions.time.sleep", pauses.append)
    replies = [mock_llm.Refused(429, headers={"Retry-After": "7"}), mock_llm.Refused(500), "yes"]
    with mock_llm.serve(lambda messages: replies.pop(0)) as (url, _):
        Endpoint(url=url, model="m", retries=2, pause=1).complete(DOG)
    first, second = pauses
    assert 7 <= first <= 7 * 1.25 and 2 <= second <= 2 * 1.25


def test_requests_respect_the_limit_per_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("auris.completions.time.sleep", pauses.append)
    monkeypatch.setattr("auris.completions.time.monotonic", lambda: 100.0)
    with mock_llm.serve(lambda messages: "yes") as (url, _):
        endpoint = Endpoint(url=url, model="m", per_minute=30)
        for _ in range(3):
            endpoint.complete(DOG)
    assert pauses == [0, 2, 4]  # seconds after the first request


def test_the_api_key_is_not_leaked_to_messages_recipes_or_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "opensesame")
    refused = mock_llm.Refused(401, "bad key opensesame")
    with mock_llm.serve(lambda messages: refused) as (url, _), pytest.raises(ValueError, match=r"bad key \[key\]"):
        Endpoint(url=url, model="m", key_env="SOME_KEY").complete(DOG)
    with mock_llm.serve(lambda messages: "yes") as (other_url, other_requests):
        redirect = mock_llm.Refused(302, headers={"Location": f"{other_url}/chat/completions"})
        with mock_llm.serve(lambda messages: redirect) as (url, _), pytest.raises(ValueError, match="gave no chat"):
            Endpoint(url=url, model="m", key_env="SOME_KEY").complete(DOG)
    assert not any("opensesame" in str(call) for call in other_requests)
    with pytest.raises(ValueError, match="key_env is not the name") as error:
        Endpoint(url=url, model="m", key_env="sk-opensesame")
    assert "opensesame" not in str(error.value)
    for address in ("http://me:opensesame@localhost/v1", "http://localhost/v1?key=opensesame"):
        with pytest.raises(ValueError, match="llm.url contains a user or a query") as error:
            Endpoint(url=address, model="m")
        assert "opensesame" not in str(error.value)


def test_an_empty_reply_is_accepted_if_accept_empty_is_set(tmp_path: Path) -> None:
    with mock_llm.serve(lambda messages: None) as (url, _):
        assert Endpoint(url=url, model="m", accept_empty=True).complete(DOG).text == ""
    filtered = mock_llm.Refused(400, '{"error": {"code": "content_filter"}}')
    with mock_llm.serve(lambda messages: filtered) as (url, _):
        reply = Endpoint(url=url, model="m", accept_empty=True).complete(DOG)
        assert reply.text == "" and reply.details == {"finish_reason": "content_filter"}


def test_replies_of_a_stand_in_are_marked_and_not_mixed_with_those_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "reply_log.jsonl"
    with mock_llm.serve(lambda messages: "yes") as (url, _):
        ReplyLog(path, Endpoint(url=url, model="m", stand_in="a script")).ask(*numbered_request(1))
        assert '"answered by": "a script", "stand-in": true' in path.read_text().splitlines()[0]
        assert ReplyLog(path).stand_in == "a script"
        with pytest.raises(
            ValueError, match="holds replies of a script, but new ones would come from a language model"
        ):
            ReplyLog(path, Endpoint(url=url, model="m"))


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_completions import numbered_request
from auris.completions import Endpoint, ReplyLog
ReplyLog(Path(sys.argv[1]), Endpoint(url=sys.argv[2], model="m")).ask_all(map(numbered_request, range(10)), workers=1)
"""


@pytest.mark.slow
def test_after_a_kill_only_unanswered_requests_are_repeated(tmp_path: Path) -> None:
    path, child = tmp_path / "reply_log.jsonl", None

    def answer(messages: list) -> str:
        if len(requests) == 6 and child:  # kill the client during its sixth request
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        return "yes"

    with mock_llm.serve(answer) as (url, requests):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), url, str(Path(__file__).parent)])
        assert child.wait(60) == -signal.SIGKILL
        assert len(ReplyLog(path).replies) == 5
        with path.open("a") as file:
            file.write('{"messages": [{"role": "us')  # as if killed while writing this reply
        child = None
        ReplyLog(path, Endpoint(url=url, model="m")).ask_all(map(numbered_request, range(10)), workers=2)
    counts = Counter(call["body"]["messages"][0]["content"] for call in requests)
    assert len(ReplyLog(path).replies) == len(counts) == 10
    assert [question for question, n in counts.items() if n > 1] == [
        "question 5"
    ]  # the request during which the client was killed
