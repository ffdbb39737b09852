"""Client of OpenAI-compatible chat endpoints that records every reply in a file and replays it from there.

The key comes from the environment and goes into the header of the request, nowhere else.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from auris.errors import MissingFileError, UserError
from auris.files import append_jsonl, digest

_LONGEST_PAUSE = 60.0  # seconds between two tries
_FILTERED = ("content_filter", "content_policy_violation")  # codes of a request that a provider refuses to answer

Message = Mapping[str, str]
Settings = Mapping[str, str | float | None]  # of one request: model, temperature, max_tokens


class Reply(NamedTuple):
    """What a model said, and which did; `details`: the reason why it ended and the tokens it took, if told."""

    text: str
    model: str
    details: Mapping[str, object] = {}


class Answerer(Protocol):
    """Answers requests; `stand_in` names what does where it is no language model."""

    stand_in: str | None

    def complete(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply:
        """The reply to `messages`. Raises ValueError when there is none."""


class _Failed(Exception):
    """A try without a reply; `again` whether another may have one, `after` so many seconds."""

    def __init__(self, reason: str, *, again: bool, after: float = 0.0):
        super().__init__(reason)
        self.again, self.after = again, after


class _Pace:
    """Lets requests of all threads through at equal distances."""

    def __init__(self) -> None:
        self.lock, self.next = threading.Lock(), 0.0

    def wait(self, per_minute: float | None) -> None:
        if not per_minute:
            return
        with self.lock:
            due = max(self.next, time.monotonic())
            self.next = due + 60 / per_minute
        time.sleep(max(0.0, due - time.monotonic()))


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where chat completions are asked for.

    `url` ends before `/chat/completions`; `key_env` names the environment variable that holds the key, if one is
    needed; `timeout` and `pause` are in seconds; `setting` is the config's name for it all, as messages say.
    A request without an answer (the network, too many requests, a server's error) is tried `retries` times more, after
    `pause`, twice that, and so on, or when the server says. `blank`: no content, and a refusal by the provider's
    filter, is a reply too, an empty one. `stand_in` says what answers at `url` if it is no language model.
    """

    url: str
    model: str
    key_env: str | None = None
    temperature: float = 0.7
    timeout: float = 60.0
    retries: int = 0
    pause: float = 1.0
    per_minute: float | None = None
    blank: bool = False
    stand_in: str | None = None
    setting: str = "llm"
    _pace: _Pace = field(default_factory=_Pace, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.key_env, re.ASCII):
            raise UserError(f"{self.setting}.key_env is no name of an environment variable; the key itself stays there")
        parts = urllib.parse.urlsplit(self.url)
        if "@" in parts.netloc or parts.query:
            raise UserError(
                f"{self.setting}.url holds a user or a query, which would be kept with the run: a key comes from the "
                f"environment ({self.setting}.key_env=NAME)"
            )

    def complete(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply:
        """The reply to `messages`; `settings` are instead of the endpoint's own. Raises ValueError when there is
        none."""
        own = {"model": self.model, "temperature": self.temperature}
        body = json.dumps({"messages": list(messages), **(settings or own)}).encode()
        pause = self.pause
        for left in reversed(range(self.retries + 1)):
            self._pace.wait(self.per_minute)
            try:
                return self._try(body)
            except _Failed as error:
                if not left or not error.again:
                    raise UserError(
                        f"{self.setting}.url={self.url} gave no chat completion ({error}); what it answered before is "
                        "kept"
                    ) from None
                # By chance a little more, or all that were sent away together come back together.
                time.sleep(min(_LONGEST_PAUSE, max(pause, error.after) * random.uniform(1, 1.25)))
                pause *= 2
        raise AssertionError("the last try returns or raises")

    def _try(self, body: bytes) -> Reply:
        key = os.environ.get(self.key_env) if self.key_env else None
        address = f"{self.url.rstrip('/')}/chat/completions"
        again, after = True, 0.0
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
            if key:
                request.add_unredirected_header("Authorization", f"Bearer {key}")  # not to another host
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return self._read(json.loads(response.read()))
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            if self.blank and error.code == 400 and any(code in said for code in _FILTERED):
                return Reply("", self.model, {"finish_reason": "content_filter"})
            again = error.code in (408, 409, 425, 429) or error.code >= 500
            given = error.headers.get("Retry-After", "")
            after = float(given) if given.isdigit() else 0.0
            reason = f"{error} {said[:300]}"
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            again = "unknown url type" not in reason
        # Some servers repeat the key that they refuse.
        raise _Failed(reason.replace(key, "[key]") if key else reason, again=again, after=after)

    def _read(self, answer: Mapping[str, Any]) -> Reply:
        choice = answer["choices"][0]
        text = choice["message"].get("content")
        if text is None and self.blank:
            text = choice["message"].get("refusal") or ""
        if not isinstance(text, str):
            raise UserError(f"its content is {text!r}")
        details = {"finish_reason": choice.get("finish_reason"), "usage": answer.get("usage")}
        return Reply(text, answer.get("model") or self.model, {k: v for k, v in details.items() if v is not None})


class Record:
    """Requests and their answers in a JSONL file, answered from there or, if there is an endpoint, by it.

    The first line says what the file is and which model answered first, or what stood in for one; each line names its
    own model. A request is known by its messages and, where it has some, its settings. A last line that was cut off by
    the end of a process is asked for again.

    Args:
        path: the file, which need not be there if there is an endpoint.
        what: what the answers are for.
        setting: the config's name for all this, as messages say.
        otherwise: what else helps where an answer is missing and nobody can be asked.
    """

    def __init__(
        self,
        path: Path,
        endpoint: Answerer | None = None,
        *,
        what: str = "auris instruct",
        setting: str = "llm",
        otherwise: str = "or leave such rows out (llm.tasks=[...], mix.augmented=0)",
    ):
        self.path, self.endpoint = path, endpoint
        self.what, self.setting, self.otherwise = what, setting, otherwise
        self.head: dict[str, Any] = {}
        self.answers: dict[str, Reply] = {}  # by request
        self._lock = threading.Lock()
        if path.is_file():
            self._load()
        elif endpoint is None:
            raise MissingFileError(
                f"{setting}.recording={path}: no such file; with {setting}.url=http://HOST:PORT/v1 "
                f"{setting}.model=NAME it is made"
            )
        if endpoint is not None and self.head and endpoint.stand_in != self.stand_in:
            raise UserError(
                f"{setting}.recording={path} holds answers of {self.stand_in or 'a language model'}, and now "
                f"{endpoint.stand_in or 'a language model'} would answer; give another file"
            )

    @property
    def stand_in(self) -> str | None:
        """What answered, if the file says that it was no language model."""
        return self.head.get("answered by") if self.head.get("stand-in") else None

    def _load(self) -> None:
        *lines, unfinished = self.path.read_bytes().split(b"\n")
        if unfinished and self.endpoint is None:  # otherwise it is asked for again
            lines.append(unfinished)
        for number, line in enumerate(lines, start=1):
            try:
                content = json.loads(line)
                if number == 1:
                    self.head = dict(content)
                    continue
                reply = Reply(content["reply"], content["model"])
                self.answers[_request(content["messages"], content.get("settings"))] = reply
            except (ValueError, KeyError, TypeError) as error:
                what = "does not say what it is" if number == 1 else "is no answer"
                reason = f"{type(error).__name__}: {error}"
                raise UserError(f"{self.setting}.recording={self.path}, line {number} {what} ({reason})") from None

    def find(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply | None:
        """Return the recorded reply to a request, or None."""
        return self.answers.get(_request(messages, settings))

    def ask(self, messages: Sequence[Message], settings: Settings | None = None) -> tuple[str, str]:
        """Return the reply to `messages`, and the model that gave it.

        Raises:
            UserError: The reply is not in the file, and there is no endpoint or the endpoint fails.
        """
        if (key := _request(messages, settings)) not in self.answers:
            if self.endpoint is None:
                asked = "" if settings is None else f" by {dict(settings)}"
                raise UserError(
                    f"{self.path} holds no answer{asked} to {messages[-1]['content']!r}; ask a model for it "
                    f"({self.setting}.url=http://HOST:PORT/v1 {self.setting}.model=NAME "
                    f"{self.setting}.recording=FILE), {self.otherwise}"
                )
            reply = self.endpoint.complete(messages, settings)
            with self._lock:
                self.answers[key] = reply
                self._append(messages, reply, settings)
        reply = self.answers[key]
        return reply.text, reply.model

    def ask_all(
        self,
        requests: Iterable[tuple[Sequence[Message], Settings]],
        *,
        workers: int = 1,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Has all of these answered, `workers` at a time and each once; `done` is called after each new answer.

        Raises ValueError as `ask` does, after what is under way has ended and is kept.
        """
        missing = {key: request for request in requests if (key := _request(*request)) not in self.answers}
        with ThreadPoolExecutor(max_workers=workers) as pool:
            futures = [pool.submit(self.ask, *request) for request in missing.values()]
            try:
                for future in as_completed(futures):
                    future.result()
                    done()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _append(self, messages: Sequence[Message], reply: Reply, settings: Settings | None) -> None:
        of_request = {} if settings is None else {"settings": dict(settings)}
        answer = {"messages": list(messages), "reply": reply.text, "model": reply.model, **reply.details, **of_request}
        lines = [answer]
        if not self.head:
            stand_in = self.endpoint.stand_in
            self.head = {"recording": f"chat completions for {self.what}", "answered by": stand_in or reply.model}
            self.head |= ({"stand-in": True} if stand_in else {}) | of_request
            lines = [self.head, answer]
        append_jsonl(self.path, lines)


def _request(messages: Sequence[Message], settings: Settings | None = None) -> str:
    """Return the key of a request."""
    return digest(messages if settings is None else {"messages": messages, **settings}, 64)
