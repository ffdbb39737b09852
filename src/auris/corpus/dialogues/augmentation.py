"""Questions and answers that a language model writes from the labels of recordings (Qwen-Audio section 3.3).

There is one request for each label. Every reply is saved in a file (`auris.completions`), so that the rows can be
reproduced without a network. The file that comes with auris (`augmentation.jsonl`) was written by a script, not by a
language model; its first line and every row made from it say so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auris.completions import Message, ReplyLog
from auris.corpus.dialogues import wordings
from auris.corpus.grammar import SPLITS
from auris.errors import UserError
from auris.metrics.normalize import contains
from auris.text.tasks import TASKS

SHIPPED_REPLIES = Path(__file__).with_name("augmentation.jsonl")

_INSTRUCTION = (
    "You write training data for an assistant that hears audio. You are told what a label says about a recording. "
    "Write questions that a user could ask about the recording, worded differently, each with the assistant's answer: "
    "one short sentence that contains the label word for word. Reply with a JSON list of objects with the keys "
    '"question" and "answer", and with nothing else.'
)
_LIST = re.compile(r"\[.*\]", re.DOTALL)  # models often put a code fence or a few words around the list


@dataclass(frozen=True)
class WrittenQuestion:
    """A question and an answer that `model` wrote about rows of `task` with the label `label`."""

    task: str
    label: str
    question: str
    answer: str
    model: str

    def __repr__(self) -> str:
        # A rerun compares the hash of this text with the hash in instruct.json, so the text must not change.
        return (
            f"Written(task={self.task!r}, label={self.label!r}, question={self.question!r}, answer={self.answer!r}, "
            f"model={self.model!r})"
        )


def write_request(task: str, label: str, n_pairs: int) -> list[Message]:
    """Return the messages that request `n_pairs` pairs of a question and an answer about a label."""
    content = {"task": TASKS[task].name, "label": label, "pairs": n_pairs}
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": json.dumps(content, ensure_ascii=False)},
    ]


def write_questions(
    reply_log: ReplyLog, labels: Iterable[tuple[str, str]], n_pairs: int
) -> tuple[list[WrittenQuestion], Counter[str]]:
    """Ask a language model for questions about labels.

    Args:
        reply_log: Source of the replies.
        labels: The labels, as (task, label).
        n_pairs: Maximum number of questions for each label.

    Returns:
        The questions with their answers, and the number of rejected questions by reason.
    """
    questions: list[WrittenQuestion] = []
    rejections: Counter[str] = Counter()
    for task, label in labels:
        reply, model = reply_log.ask(write_request(task, label, n_pairs))
        try:
            entries = json.loads(match[0]) if (match := _LIST.search(reply)) else None
        except json.JSONDecodeError:
            entries = None
        if not isinstance(entries, list):
            rejections["the reply is no JSON list"] += 1
            continue
        for entry in entries[:n_pairs]:
            if problem := _find_problem(entry, label):
                rejections[problem] += 1
            else:
                questions.append(
                    WrittenQuestion(task, label, entry["question"].strip(), entry["answer"].strip(), model)
                )
    return questions, rejections


def _find_problem(entry: Any, label: str) -> str | None:
    """Return why a question and its answer cannot be used; None if they can."""
    question, answer = (entry.get("question"), entry.get("answer")) if isinstance(entry, Mapping) else (None, None)
    if not (isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip()):
        return "no question with an answer"
    if question.strip() in wordings.fixed_typed_questions():  # such a question already belongs to a split
        return "a template asks the same"
    if not contains(answer, label, "en"):
        return "the label is not in the answer"
    if contains(question, label, "en"):
        return "the question gives the label away"
    return None


def split_questions(written_questions: Sequence[WrittenQuestion]) -> dict[str, list[WrittenQuestion]]:
    """Assign questions to splits. Questions with equal texts belong to the same split, whatever their labels are.

    Raises:
        UserError: There are too few different questions for three splits.
    """
    questions = sorted({entry.question for entry in written_questions})
    if len(questions) < len(SPLITS):
        raise UserError(
            f"the model wrote {len(questions)} different questions, too few for three splits; to get more questions, "
            "raise llm.pairs"
        )
    split_by_question = {question: split for split in SPLITS for question in wordings.select_split(questions, split)}
    return {
        split: [entry for entry in written_questions if split_by_question[entry.question] == split] for split in SPLITS
    }
