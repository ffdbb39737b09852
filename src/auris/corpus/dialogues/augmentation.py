"""Questions and answers that a language model writes from the labels of recordings (Qwen-Audio section 3.3).

There is one request for each label. Every reply is recorded (`auris.completions`), so that the rows can be reproduced
without a network. The recording that comes with auris was written by a script, not by a language model; its first line
and every row made from it say so.
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
_LIST = re.compile(r"\[.*\]", re.DOTALL)  # models often put a code fence or a few words around the list


@dataclass(frozen=True)
class Written:
    """A question and answer that `model` wrote about recordings of `task` with the label `label`."""

    task: str
    label: str
    question: str
    answer: str
    model: str


def request(task: str, label: str, pairs: int) -> list[Message]:
    """Return the messages that request questions about a label."""
    facts = {"task": TASKS[task].name, "label": label, "pairs": pairs}
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": json.dumps(facts, ensure_ascii=False)},
    ]


def write_questions(
    record: Record, labels: Iterable[tuple[str, str]], pairs: int
) -> tuple[list[Written], Counter[str]]:
    """Return at most `pairs` questions with answers for each (task, label), and the number of rejections by reason."""
    questions: list[Written] = []
    rejections: Counter[str] = Counter()
    for task, label in labels:
        reply, model = record.ask(request(task, label, pairs))
        try:
            entries = json.loads(match[0]) if (match := _LIST.search(reply)) else None
        except json.JSONDecodeError:
            entries = None
        if not isinstance(entries, list):
            rejections["the reply is no JSON list"] += 1
            continue
        for entry in entries[:pairs]:
            if problem := _check(entry, label):
                rejections[problem] += 1
            else:
                questions.append(Written(task, label, entry["question"].strip(), entry["answer"].strip(), model))
    return questions, rejections


def _check(entry: Any, label: str) -> str | None:
    question, answer = (entry.get("question"), entry.get("answer")) if isinstance(entry, Mapping) else (None, None)
    if not (isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip()):
        return "no question with an answer"
    if question.strip() in wordings.typed():  # its split is fixed already
        return "a template asks the same"
    if not contains(answer, label, "en"):
        return "the label is not in the answer"
    if contains(question, label, "en"):
        return "the question gives the label away"
    return None


def split_questions(written: Sequence[Written]) -> dict[str, list[Written]]:
    """Assign questions to splits. A wording belongs to one split, whatever label it was written for.

    Raises:
        UserError: There are too few different questions for three splits.
    """
    questions = sorted({entry.question for entry in written})
    if len(questions) < len(SPLITS):
        raise UserError(
            f"the model wrote {len(questions)} different questions, too few for three splits: raise llm.pairs"
        )
    split_by_question = {question: split for split in SPLITS for question in wordings.select(questions, split)}
    return {split: [entry for entry in written if split_by_question[entry.question] == split] for split in SPLITS}
