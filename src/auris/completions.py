"""Chat completions of a language model behind any OpenAI-compatible endpoint, each kept in a file and asked for once.

With the file alone nothing is asked: a test, or a reader without a network, gets the same answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ANSWER = ("messages", "reply", "model")  # keys of a recorded answer

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where chat completions are asked for.

    `url` ends before `/chat/completions`; `key_env` names the environment variable that holds the key, if one is
    needed; `timeout` is in seconds; `setting` is the config's name for it all, as messages say.
    """

    url: str
    model: str
    key_env: str | None = None
    temperature: float = 0.7
    timeout: float = 60.0
    setting: str = "llm"

    def complete(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The reply to `messages`, and the model that gave it. Raises ValueError when there is none."""
        body = {"model": self.model, "messages": list(messages), "temperature": self.temperature}
        headers = {"Content-Type": "application/json"}
        if self.key_env and (key := os.environ.get(self.key_env)):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                reply = json.loads(response.read())
            text = reply["choices"][0]["message"]["content"]
            if isinstance(text, str):
                return text, reply.get("model", self.model)
            reason = f"its content is {text!r}"
        except urllib.error.HTTPError as error:
            reason = f"{error} {error.read(300).decode(errors='replace')}"
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{self.setting}.url={self.url} gave no chat completion ({reason}); what it answered before is kept"
        )


class Record:
    """Requests and their answers in a JSONL file, answered from there or, if there is an endpoint, by it.

    The first line says what the file is and which model answered first; each line names its own model.

    Args:
        path: the file, which need not be there if there is an endpoint.
        what: what the answers are for.
        setting: the config's name for all this, as messages say.
        otherwise: what else helps where an answer is missing and nobody can be asked.
    """

    def __init__(
        self,
        path: Path,
        endpoint: Endpoint | None = None,
        *,
        what: str = "python -m auris.instruct",
        setting: str = "llm",
        otherwise: str = "or leave such rows out (llm.tasks=[...], mix.augmented=0)",
    ):
        self.path, self.endpoint = path, endpoint
        self.what, self.setting, self.otherwise = what, setting, otherwise
        self.answers: dict[str, dict[str, Any]] = {}
        if path.is_file():
            _, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # text has other line ends
            for number, line in enumerate(lines, start=2):
                try:
                    answer = json.loads(line)
                    self.answers[_digest(answer["messages"])] = {key: answer[key] for key in _ANSWER}
                except (ValueError, KeyError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise ValueError(f"{setting}.recording={path}, line {number} is no answer ({reason})") from None
        elif endpoint is None:
            raise FileNotFoundError(
                f"{setting}.recording={path}: no such file; with {setting}.url=http://HOST:PORT/v1 "
                f"{setting}.model=NAME it is made"
            )

    def ask(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The reply to `messages`, and the model that gave it.

        Raises ValueError when it is not in the file and there is no endpoint, or the endpoint fails.
        """
        if (key := _digest(messages)) not in self.answers:
            if self.endpoint is None:
                raise ValueError(
                    f"{self.path} holds no answer to {messages[-1]['content']!r}; ask a model for it "
                    f"({self.setting}.url=http://HOST:PORT/v1 {self.setting}.model=NAME "
                    f"{self.setting}.recording=FILE), {self.otherwise}"
                )
            reply, model = self.endpoint.complete(messages)
            self.answers[key] = dict(zip(_ANSWER, (list(messages), reply, model), strict=True))
            self._append(self.answers[key])
        answer = self.answers[key]
        return answer["reply"], answer["model"]

    def _append(self, answer: Mapping[str, Any]) -> None:
        new = not self.path.is_file() or not self.path.stat().st_size
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                head = {"recording": f"chat completions for {self.what}", "answered by": answer["model"]}
                file.write(json.dumps(head, ensure_ascii=False) + "\n")
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _digest(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
