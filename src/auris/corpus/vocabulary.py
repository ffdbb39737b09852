"""Tokenizer of an embedded corpus: a byte-level BPE trained on its training text and on the prompts of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from auris.files import read_jsonl
from auris.text.answer_formats import Language, Text
from auris.text.tasks import LANGUAGES, TASKS
from auris.text.tokenizer import Tokenizer

# Row fields with text that a model has to read or write.
_FIELDS = ("text", "transcript", "content", "question")

# How often each wording of a prompt is repeated in the training text, because every training row has a prompt.
_PROMPT_REPETITIONS = 8


def train_tokenizer(corpus: Path, vocab_size: int) -> Path:
    """Train a tokenizer on the train split unless it exists already; return its directory."""
    path = corpus / "tokenizer"
    if not path.is_dir():
        Tokenizer.train(_texts(corpus), vocab_size=vocab_size).save(path)
    return path


def _texts(corpus: Path) -> Iterator[str]:
    yield from (corpus / "text.txt").read_text(encoding="utf-8").splitlines()
    codes = set()
    for row in read_jsonl(corpus / "train.jsonl"):
        codes.add(row["task"])
        yield from (row[field] for field in _FIELDS if field in row)
        task = TASKS[row["task"]]
        if not isinstance(task.answer, Text | Language):  # these answers are already among the fields
            yield task.render(row, tags=False)
    for task in _PROMPT_REPETITIONS * [task for code, task in TASKS.items() if code in codes]:
        for wording in task.wordings:
            for name in LANGUAGES.values():
                yield wording.replace("{target_language_name}", name).partition("<|")[0]
    yield from LANGUAGES.values()
