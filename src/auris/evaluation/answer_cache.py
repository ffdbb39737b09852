"""Answers that a model has given, kept in its run directory as soon as they are given.

An evaluation that was stopped goes on, one that is done again asks nothing, and `rescore=RUN` needs no model. Answers
are known by the weights, the prompt and the decoding (a file for each), and in it by the row and its sound.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from auris.data.lengths import wordings
from auris.data.rows import Clip, Row
from auris.data.samples import Samples
from auris.errors import MissingFileError
from auris.model.weights import checkpoint_dir

FOLDER = "answers"  # of a run directory


class Answer(NamedTuple):
    """What was said to a row, as it was asked: a text, or the log-probabilities of a preference's two answers;
    `odds`: of a verdict, log p(yes) - log p(no)."""

    row: Row
    said: Any
    odds: float | None = None


class Answers:
    """A file of answers, of which the first line says what they depend on."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]):
        self.path = folder / f"{facts['kind']}-{_digest(facts)}.jsonl"
        self.facts, self._lines = facts, dict[str, dict[str, Any]]()
        if self.path.is_file():
            with in_turn(folder):
                self._mend()
                whole = self.path.read_text(encoding="utf-8")
            self._lines = {line["key"]: line for line in map(json.loads, whole.split("\n")[1:-1])}

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __getitem__(self, key: str) -> Answer:
        line = self._lines[key]
        return Answer(_row(line["row"]), line["said"], line["odds"])

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Keep these, by their keys."""
        new = {
            key: {"key": key, "row": _fields(answer.row), "said": answer.said, "odds": answer.odds}
            for key, answer in answers.items()
        }
        self._lines |= new
        with in_turn(self.path.parent):
            head = [] if self._mend() else [self.facts]
            with self.path.open("a", encoding="utf-8") as file:
                file.write(
                    "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in (*head, *new.values()))
                )

    def _mend(self) -> int:
        """Cut off a line that was being written when a process ended; returns how long the file is."""
        if not self.path.is_file():
            return 0
        with self.path.open("rb+") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - 1))
            if file.read() not in (b"\n", b""):
                file.seek(0)
                length = file.truncate(file.read().rfind(b"\n") + 1)
            return length


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """While no other process writes what evaluations of this run write: several may be under way, and one that was
    killed may have left processes that go on."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)  # ends with the file's being closed, or with the process
        except OSError as error:  # file systems that have no locks
            warnings.warn(f"{file.name} cannot be locked ({error}): one evaluation of a run at a time", stacklevel=3)
        yield


def weights_of(net: nn.Module) -> str:
    """A checksum of all that a net's answers are computed with."""
    total = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().contiguous().reshape(-1).cpu().view(torch.uint8).numpy())
    return total.hexdigest()


def prompt_of(view: Samples) -> str:
    """A checksum of how rows are put into tokens."""
    facts = [type(view).__name__, view.long_audio, repr(view.geometry), *wordings(view)]
    return _digest([*facts, view.tokenizer.fast.backend_tokenizer.to_str()])


def key_of(row: Row) -> str:
    """What a row says and what is heard with it, by the size and the time of its files."""
    return _digest([row.id, _fields(row), [_stamp(clip) for clip in row.clips]])


def _stamp(clip: Clip) -> list[int]:
    if not isinstance(clip.path, str | Path):
        return [clip.path.samples or 0]
    try:
        found = os.stat(clip.path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def note(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Which answers an evaluation was made of, for `rescore`."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint_dir.replace(folder / f"{name}.json", json.dumps(facts, ensure_ascii=False, indent=1, default=str))


def noted(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The evaluations of a run by their names. Raises FileNotFoundError if it has kept none."""
    files = sorted((run_dir / FOLDER).glob("*.json"), key=lambda path: path.stem)
    if not files:
        raise MissingFileError(
            f"rescore={run_dir}: no answers are kept there; auris evaluate checkpoint=... makes some"
        )
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def read(file: Path) -> Answers:
    """The answers of a file, by its own facts."""
    with file.open(encoding="utf-8") as lines:
        return Answers(file.parent, json.loads(lines.readline()))


def rows(run_dir: Path, name: str) -> dict[str, Row]:
    """The rows of an evaluation that were answered, by their ids, with what was heard of each; of files that a running
    evaluation may be writing, and of which nothing is changed. Empty for an evaluation that has kept none."""
    file = run_dir / FOLDER / f"{name}.json"
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.is_file() else []
    found = {}
    for part in parts:
        answers, wanted = run_dir / FOLDER / part["file"], set(part["keys"])
        whole = answers.read_bytes().rpartition(b"\n")[0].decode() if answers.is_file() else ""
        for line in map(json.loads, whole.split("\n")[1:]):
            if line["key"] in wanted:
                row = _row(line["row"])
                found[row.id] = row
    return found


def _fields(row: Row) -> dict[str, Any]:
    clips = [[str(clip.path), clip.offset, clip.duration] for clip in row.clips]
    return {"id": row.id, "clips": clips, "labels": dict(row.labels)}


def _row(fields: Mapping[str, Any]) -> Row:
    clips = tuple(Clip(Path(path), offset, duration) for path, offset, duration in fields["clips"])
    return Row(fields["id"], clips, fields["labels"])


def _digest(facts: Mapping[str, Any] | Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
