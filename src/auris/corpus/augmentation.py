"""Questions and answers that a language model writes from the labels of recordings (Qwen-Audio section 3.3).

The model is asked through any OpenAI-compatible endpoint, once per label, and every answer is kept in a file: the
next time nothing is asked, and a test or a reader without a network gets the same rows. The file that comes with auris
was answered by a script and not by a language model; its first line says so, and so does every row made from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auris.corpus import wordings
from auris.corpus.grammar import SPLITS
from auris.tasks import TASKS

SHIPPED = Path(__file__).with_name("augmentation.jsonl")

_INSTRUCTION = (
    "You write training data for an assistant that hears audio. You are told what a label says about a recording. "
    "Write questions that a user could ask about the recording, worded differently, each with the assistant's answer: "
    "one short sentence that contains the label word for word. Reply with a JSON list of objects with the keys "
    '"question" and "answer", and with nothing else.'
)
_ANSWER = ("messages", "reply", "model")  # keys of a recorded answer
_LIST = re.compile(r"\[.*\]", re.DOTALL)  # models like to put a fence or a word around it

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where chat completions are asked for.

    `url` ends before `/chat/completions`; `key_env` names the environment variable that holds the key, if one is
    needed; `timeout` is in seconds.
    """

    url: str
    model: str
    key_env: str | None = None
    temperature: float = 0.7
    timeout: float = 60.0

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
        raise ValueError(f"llm.url={self.url} gave no chat completion ({reason}); what it answered before is kept")


class Record:
    """Requests and their answers in a JSONL file, answered from there or, if there is an endpoint, by it.

    The first line says what the file is and which model answered first; each line names its own model.
    """

    def __init__(self, path: Path, endpoint: Endpoint | None = None):
        self.path, self.endpoint = path, endpoint
        self.answers: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
                try:
                    answer = json.loads(line)
                    self.answers[_digest(answer["messages"])] = {key: answer[key] for key in _ANSWER}
                except (ValueError, KeyError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise ValueError(f"llm.recording={path}, line {number} is no answer ({reason})") from None
        elif endpoint is None:
            raise FileNotFoundError(
                f"llm.recording={path}: no such file; with llm.url=http://HOST:PORT/v1 llm.model=NAME it is made"
            )

    def ask(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The reply to `messages`, and the model that gave it.

        Raises ValueError when it is not in the file and there is no endpoint, or the endpoint fails.
        """
        if (key := _digest(messages)) not in self.answers:
            if self.endpoint is None:
                raise ValueError(
                    f"{self.path} holds no answer to {messages[-1]['content']!r}; ask a model for it "
                    "(llm.url=http://HOST:PORT/v1 llm.model=NAME llm.recording=FILE), or leave such rows out "
                    "(llm.tasks=[...], mix.augmented=0)"
                )
            reply, model = self.endpoint.complete(messages)
            self.answers[key] = dict(zip(_ANSWER, (list(messages), reply, model), strict=True))
            self._append(self.answers[key])
        answer = self.answers[key]
        return answer["reply"], answer["model"]

    def _append(self, answer: Mapping[str, Any]) -> None:
        new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                what = "chat completions for python -m auris.instruct"
                file.write(json.dumps({"recording": what, "answered by": answer["model"]}, ensure_ascii=False) + "\n")
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _digest(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Written:
    """A question and an answer about recordings of `task` that are labelled `label`, and the model that wrote them."""

    task: str
    label: str
    question: str
    answer: str
    model: str


def request(task: str, label: str, pairs: int) -> list[Message]:
    """What a model is asked about a label."""
    facts = {"task": TASKS[task].name, "label": label, "pairs": pairs}
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": json.dumps(facts, ensure_ascii=False)},
    ]


def write(record: Record, labels: Iterable[tuple[str, str]], pairs: int) -> tuple[list[Written], Counter[str]]:
    """At most `pairs` questions with answers for each (task, label), and how many were refused for which reason."""
    found: list[Written] = []
    refused: Counter[str] = Counter()
    for task, label in labels:
        reply, model = record.ask(request(task, label, pairs))
        try:
            listed = json.loads(match[0]) if (match := _LIST.search(reply)) else None
        except json.JSONDecodeError:
            listed = None
        if not isinstance(listed, list):
            refused["the reply is no JSON list"] += 1
            continue
        for entry in listed[:pairs]:
            if problem := _check(entry, label):
                refused[problem] += 1
            else:
                found.append(Written(task, label, entry["question"].strip(), entry["answer"].strip(), model))
    return found, refused


def _check(entry: Any, label: str) -> str | None:
    texts = [entry.get(key) for key in ("question", "answer")] if isinstance(entry, Mapping) else []
    if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        return "no question with an answer"
    if texts[0].strip() in wordings.typed():  # whose split is settled
        return "a template asks the same"
    if not wordings.contains(texts[1], label):
        return "the label is not in the answer"
    if wordings.contains(texts[0], label):
        return "the question gives the label away"
    return None


def deal(written: Sequence[Written]) -> dict[str, list[Written]]:
    """What was written by split: a question's wording belongs to one of them, whatever label it was written for."""
    asked = sorted({entry.question for entry in written})
    if len(asked) < len(SPLITS):
        raise ValueError(f"{len(asked)} different questions were written, too few for three splits: raise llm.pairs")
    owners = {question: split for split in SPLITS for question in wordings.deal(asked, split)}
    return {split: [entry for entry in written if owners[entry.question] == split] for split in SPLITS}
