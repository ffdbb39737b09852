"""The tokenizer of an embedded corpus: a byte-level BPE of its training text and of what its tasks' prompts say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from auris.files import read_jsonl
from auris.text.answer_formats import Language, Text
from auris.text.tasks import LANGUAGES, TASKS
from auris.text.tokenizer import Tokenizer

# Row fields whose words a model must read or write.
_FIELDS = ("text", "transcript", "content", "question")

# Every training row is read behind a prompt: so often does each wording of one count beside the corpus's lines.
_PROMPT_SHARE = 8


def train_tokenizer(corpus: Path, vocab_size: int) -> Path:
    """Train on the corpus's train split, once; returns the tokenizer's directory."""
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
        if not isinstance(task.answer, Text | Language):  # its answer is not one of the fields
            yield task.render(row, tags=False)
    for task in _PROMPT_SHARE * [task for code, task in TASKS.items() if code in codes]:
        for wording in task.wordings:
            for name in LANGUAGES.values():
                yield wording.replace("{target_language_name}", name).partition("<|")[0]
    yield from LANGUAGES.values()
