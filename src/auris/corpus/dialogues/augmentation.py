"""Questions and answers that a language model writes from the labels of recordings (Qwen-Audio section 3.3).

The model is asked once per label and every answer is kept (`auris.completions`), so that a test or a reader without a
network gets the same rows. The file that comes with auris was answered by a script and not by a language model; its
first line says so, and so does every row made from it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auris.completions import Message, Record
from auris.corpus.dialogues import wordings
from auris.corpus.grammar import SPLITS
from auris.errors import UserError
from auris.metrics.normalize import contains
from auris.text.tasks import TASKS

SHIPPED = Path(__file__).with_name("augmentation.jsonl")

_INSTRUCTION = (
    "You write training data for an assistant that hears audio. You are told what a label says about a recording. "
    "Write questions that a user could ask about the recording, worded differently, each with the assistant's answer: "
    "one short sentence that contains the label word for word. Reply with a JSON list of objects with the keys "
    '"question" and "answer", and with nothing else.'
)
_LIST = re.compile(r"\[.*\]", re.DOTALL)  # models like to put a fence or a word around it


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
    if not contains(texts[1], label, "en"):
        return "the label is not in the answer"
    if contains(texts[0], label, "en"):
        return "the question gives the label away"
    return None


def deal(written: Sequence[Written]) -> dict[str, list[Written]]:
    """Recorded questions by split. A wording belongs to one split, whatever label it was written for."""
    asked = sorted({entry.question for entry in written})
    if len(asked) < len(SPLITS):
        raise UserError(f"{len(asked)} different questions were written, too few for three splits: raise llm.pairs")
    owners = {question: split for split in SPLITS for question in wordings.deal(asked, split)}
    return {split: [entry for entry in written if owners[entry.question] == split] for split in SPLITS}
