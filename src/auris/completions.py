"""Client of OpenAI-compatible chat endpoints that saves every reply in a file and can replay the replies from the file.

The API key is read from an environment variable and sent in the header of a request. It is never written to a file or
a message.
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

from auris.errors import MissingFileError, UserError, shorten
from auris.files import append_jsonl, digest

_MAX_PAUSE = 60.0  # maximum number of seconds between two attempts
_FILTER_CODES = ("content_filter", "content_policy_violation")  # error codes for requests that the provider refuses

Message = Mapping[str, str]
Settings = Mapping[str, str | float | None]
"""Settings of one request: model, temperature, max_tokens."""


class Reply(NamedTuple):
    """A model's reply.

    Attributes:
        text: Content of the reply.
        model: Name of the model.
        details: The finish reason and the token usage, if the server reports them.
    """

    text: str
    model: str
    details: Mapping[str, object] = {}


class ChatModel(Protocol):
    """Something that completes chats: an endpoint, or a script that replaces it."""

    @property
    def stand_in(self) -> str | None:
        """Description of the script that replies in place of a language model; None for a language model."""

    def complete(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply:
        """Return the reply to `messages`.

        Raises:
            UserError: No reply was given.
        """
        ...


class _RequestError(Exception):
    """A failed attempt to get a reply.

    Attributes:
        is_temporary: Whether another attempt may succeed.
        wait: Minimum number of seconds before the next attempt.
    """

    def __init__(self, reason: str, *, is_temporary: bool, wait: float = 0.0):
        super().__init__(reason)
        self.is_temporary, self.wait = is_temporary, wait


class _RateLimiter:
    """Delays requests so that the requests of all threads together are sent at equal intervals."""

    def __init__(self) -> None:
        self.lock, self.next_time = threading.Lock(), 0.0

    def wait(self, per_minute: float | None) -> None:
        """Wait until the next request may be sent; with None, do not wait."""
        if not per_minute:
            return
        with self.lock:
            send_time = max(self.next_time, time.monotonic())
            self.next_time = send_time + 60 / per_minute
        time.sleep(max(0.0, send_time - time.monotonic()))


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """OpenAI-compatible endpoint for chat completions.

    Attributes:
        url: Address of the endpoint without `/chat/completions`.
        model: Name of the model.
        key_env: Environment variable that holds the API key, if the endpoint needs one.
        temperature: Sampling temperature.
        timeout: Seconds to wait for a reply.
        retries: Maximum number of further attempts after a temporary failure (network, rate limit, server error).
        pause: Seconds before the first retry. The pause is doubled for each further retry, and the server may ask for a
            longer one.
        per_minute: Maximum number of requests per minute; None for no limit.
        accept_empty: Whether to accept a reply without content. The text of such a reply is its `refusal`, or
            empty without one. A request that the provider's filter refuses then gets an empty reply too.
        stand_in: Description of the script at `url`; None if a language model replies.
        config_key: Config key of the endpoint, for messages.
    """

    url: str
    model: str
    key_env: str | None = None
    temperature: float = 0.7
    timeout: float = 60.0
    retries: int = 0
    pause: float = 1.0
    per_minute: float | None = None
    accept_empty: bool = False
    stand_in: str | None = None
    config_key: str = "llm"
    _limiter: _RateLimiter = field(default_factory=_RateLimiter, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.key_env, re.ASCII):
            raise UserError(
                f"{self.config_key}.key_env is not the name of an environment variable; store the key in an "
                f"environment variable, and set {self.config_key}.key_env to the name of the variable"
            )
        parts = urllib.parse.urlsplit(self.url)
        if "@" in parts.netloc or parts.query:
            raise UserError(
                f"{self.config_key}.url contains a user or a query, which would be saved with the run; store the key "
                f"in an environment variable, and set {self.config_key}.key_env to the name of the variable"
            )

    def complete(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply:
        """Return the reply to `messages`.

        Args:
            messages: The messages.
            settings: Settings that replace the model and temperature of the endpoint.

        Raises:
            UserError: All attempts failed.
        """
        defaults = {"model": self.model, "temperature": self.temperature}
        body = json.dumps({"messages": list(messages), **(settings or defaults)}).encode()
        pause = self.pause
        for retries_left in reversed(range(self.retries + 1)):
            self._limiter.wait(self.per_minute)
            try:
                return self._request(body)
            except _RequestError as error:
                if not retries_left or not error.is_temporary:
                    raise UserError(
                        f"{self.config_key}.url={self.url} gave no chat completion ({error}); earlier replies are saved"
                    ) from None
                # With the random factor, requests that were rejected at the same time are repeated at different times.
                time.sleep(min(_MAX_PAUSE, max(pause, error.wait) * random.uniform(1, 1.25)))
                pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _request(self, body: bytes) -> Reply:
        """Send a request once.

        Raises:
            _RequestError: The attempt failed.
        """
        key = os.environ.get(self.key_env) if self.key_env else None
        address = f"{self.url.rstrip('/')}/chat/completions"
        is_temporary, wait = True, 0.0
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
            if key:
                # An unredirected header is not sent to the target of a redirection, which may be another host.
                request.add_unredirected_header("Authorization", f"Bearer {key}")
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return self._parse(json.loads(response.read()))
        except urllib.error.HTTPError as error:
            content = error.read(2000).decode(errors="replace")
            if self.accept_empty and error.code == 400 and any(code in content for code in _FILTER_CODES):
                return Reply("", self.model, {"finish_reason": "content_filter"})
            is_temporary = error.code in (408, 409, 425, 429) or error.code >= 500
            retry_after = error.headers.get("Retry-After", "")
            wait = float(retry_after) if retry_after.isdigit() else 0.0
            reason = f"{error} {content[:300]}"
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            is_temporary = "unknown url type" not in reason
        # Some servers repeat a rejected key in their reply.
        reason = reason.replace(key, "[key]") if key else reason
        raise _RequestError(reason, is_temporary=is_temporary, wait=wait)

    def _parse(self, completion: Mapping[str, Any]) -> Reply:
        choice = completion["choices"][0]
        text = choice["message"].get("content")
        if text is None and self.accept_empty:
            text = choice["message"].get("refusal") or ""
        if not isinstance(text, str):
            raise UserError(f"its content is {shorten(text)}")
        details = {"finish_reason": choice.get("finish_reason"), "usage": completion.get("usage")}
        return Reply(text, completion.get("model") or self.model, {k: v for k, v in details.items() if v is not None})


class ReplyLog:
    """Log of requests and their replies in a JSONL file.

    A request that is not in the file is sent to the endpoint, if there is one, and its reply is added to the file.

    The first line describes the file and names the source of the first reply: a model, or a script that replaces one.
    Every other line is one reply with its request and the name of its model. A request is identified by its messages
    and, if it has any, its settings. If the last line was cut off when a process died, its reply is requested again.

    Args:
        path: The file. It may be missing if there is an endpoint.
        endpoint: Source of replies that are not recorded.
        purpose: Purpose of the replies, for the first line.
        config_key: Config key of the log, for messages.
        advice: Advice at the end of the error message about a reply that is not recorded.

    Attributes:
        head: The first line of the file.
        replies: The replies by the digest of their request (`_request_key`).

    Raises:
        MissingFileError: The file does not exist, and there is no endpoint.
        UserError: The file is broken, or the replies in the file and those of the endpoint differ in `stand_in`: one
            source is a script, and the other is a language model or another script.
    """

    def __init__(
        self,
        path: Path,
        endpoint: ChatModel | None = None,
        *,
        purpose: str = "auris instruct",
        config_key: str = "llm",
        advice: str = "or leave such rows out (llm.tasks=[...], dialogues.mix.augmented=0)",
    ):
        self.path, self.endpoint = path, endpoint
        self.purpose, self.config_key, self.advice = purpose, config_key, advice
        self.head: dict[str, Any] = {}
        self.replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        if path.is_file():
            self._load()
        elif endpoint is None:
            raise MissingFileError(
                f"{config_key}.recording={path}: there is no such file; to create it, set "
                f"{config_key}.url=http://HOST:PORT/v1 {config_key}.model=NAME"
            )
        if endpoint is not None and self.head and endpoint.stand_in != self.stand_in:
            raise UserError(
                f"{config_key}.recording={path} holds replies of {self.stand_in or 'a language model'}, but new ones "
                f"would come from {endpoint.stand_in or 'a language model'}; set {config_key}.recording to another file"
            )

    @property
    def stand_in(self) -> str | None:
        """Description of the script that replied; None if the file does not say that its replies are from a script."""
        return self.head.get("answered by") if self.head.get("stand-in") else None

    def _load(self) -> None:
        *lines, unfinished_line = self.path.read_bytes().split(b"\n")
        if unfinished_line and self.endpoint is None:  # with an endpoint, this reply is requested again
            lines.append(unfinished_line)
        for number, line in enumerate(lines, start=1):
            try:
                content = json.loads(line)
                if number == 1:
                    self.head = dict(content)
                    continue
                reply = Reply(content["reply"], content["model"])
                self.replies[_request_key(content["messages"], content.get("settings"))] = reply
            except (ValueError, KeyError, TypeError) as error:
                problem = "does not describe the file" if number == 1 else "is not a reply"
                reason = f"{type(error).__name__}: {error}"
                raise UserError(
                    f"{self.config_key}.recording={self.path}, line {number} {problem} ({reason})"
                ) from None

    def find(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply | None:
        """Return the recorded reply to a request; None if it is not recorded."""
        return self.replies.get(_request_key(messages, settings))

    def ask(self, messages: Sequence[Message], settings: Settings | None = None) -> tuple[str, str]:
        """Return the reply to `messages` and the name of the model that wrote it.

        Raises:
            UserError: The reply is not in the file, and either there is no endpoint or the endpoint fails.
        """
        if (key := _request_key(messages, settings)) not in self.replies:
            if self.endpoint is None:
                with_settings = "" if settings is None else f" with the settings {dict(settings)}"
                raise UserError(
                    f"{self.path} holds no reply{with_settings} to {shorten(messages[-1]['content'])}; request it from "
                    f"a model ({self.config_key}.url=http://HOST:PORT/v1 {self.config_key}.model=NAME "
                    f"{self.config_key}.recording=FILE), {self.advice}"
                )
            reply = self.endpoint.complete(messages, settings)
            with self._lock:
                self.replies[key] = reply
                self._append(messages, reply, settings, stand_in=self.endpoint.stand_in)
        reply = self.replies[key]
        return reply.text, reply.model

    def ask_all(
        self,
        requests: Iterable[tuple[Sequence[Message], Settings]],
        *,
        workers: int = 1,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Record the replies to all requests that are not recorded yet.

        Args:
            requests: Messages and settings of each request. Equal requests are sent once.
            workers: Number of requests that are sent in parallel.
            done: Function that is called after each new reply.

        Raises:
            UserError: The endpoint failed, or there is none. Requests that have already been sent are finished first,
                and their replies are recorded.
        """
        missing = {key: request for request in requests if (key := _request_key(*request)) not in self.replies}
        with ThreadPoolExecutor(max_workers=workers) as pool:
            futures = [pool.submit(self.ask, *request) for request in missing.values()]
            try:
                for future in as_completed(futures):
                    future.result()
                    done()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _append(
        self, messages: Sequence[Message], reply: Reply, settings: Settings | None, *, stand_in: str | None
    ) -> None:
        with_settings = {} if settings is None else {"settings": dict(settings)}
        content = {"messages": list(messages), "reply": reply.text, "model": reply.model}
        lines = [{**content, **reply.details, **with_settings}]
        if not self.head:
            self.head = {"recording": f"chat completions for {self.purpose}", "answered by": stand_in or reply.model}
            self.head |= ({"stand-in": True} if stand_in else {}) | with_settings
            lines = [self.head, *lines]
        append_jsonl(self.path, lines)


def _request_key(messages: Sequence[Message], settings: Settings | None = None) -> str:
    return digest(messages if settings is None else {"messages": messages, **settings}, 64)
