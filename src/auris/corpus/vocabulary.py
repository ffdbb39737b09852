"""Tokenizer of a synthetic corpus: a byte-level BPE trained on its training text and on the prompts of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from auris.files import read_jsonl
from auris.text.answer_formats import Language, Text
from auris.text.tasks import LANGUAGES, TASKS
from auris.text.tokenizer import Tokenizer

# Row fields whose text a model has to read or write.
_FIELDS = ("text", "transcript", "content", "question")

# Number of times that each wording of a prompt occurs in the tokenizer's training text. Prompts are frequent, because
# every training row has one.
_PROMPT_REPETITIONS = 8


def train_tokenizer(corpus: Path, vocab_size: int) -> Path:
    """Train a tokenizer on the train split of `corpus`, unless it exists already; return the tokenizer's directory."""
    path = corpus / "tokenizer"
    if not path.is_dir():
        Tokenizer.train(_read_texts(corpus), vocab_size=vocab_size).save(path)
    return path


def _read_texts(corpus: Path) -> Iterator[str]:
    """Yield the texts on which the tokenizer is trained."""
    yield from (corpus / "text.txt").read_text(encoding="utf-8").splitlines()
    codes = set()
    for row in read_jsonl(corpus / "train.jsonl"):
        codes.add(row["task"])
        yield from (row[field] for field in _FIELDS if field in row)
        task = TASKS[row["task"]]
        # The fields above contain the answers that are texts, and the names of languages are added at the end.
        if not isinstance(task.answer, Text | Language):
            yield task.render(row, tags=False)
    for task in _PROMPT_REPETITIONS * [task for code, task in TASKS.items() if code in codes]:
        for wording in task.wordings:
            for name in LANGUAGES.values():
                yield wording.replace("{target_language_name}", name).partition("<|")[0]
    yield from LANGUAGES.values()
