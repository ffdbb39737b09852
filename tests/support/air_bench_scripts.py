"""Reimplementation of AIR-Bench's released scoring scripts, crashes included, as the reference for our scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from auris.metrics import choices
from auris.metrics.judges import air_bench
from auris.metrics.official import ScriptError

# --- AIR-Bench: score_foundation.py -------------------------------------------------------------------------------


@dataclass
class LetterCounts:
    """Counts of `score_foundation.py`.

    Attributes:
        total: Number of replies with an option letter, by task.
        correct: Number of correct replies, by task.
        dropped: Number of replies without a letter, which `total` excludes.
    """

    total: dict[str, int] = field(default_factory=dict)
    correct: dict[str, int] = field(default_factory=dict)
    dropped: int = 0

    def accuracy(self) -> dict[str, float]:
        return {task: self.correct[task] / total for task, total in self.total.items()}


def foundation(records: Sequence[Mapping[str, Any]]) -> LetterCounts:
    """Return the counts of the script for the entries of its input file. Unlike it, our metric `choice` drops no reply.

    Raises:
        ScriptError: The script would crash: a reply is null, a right answer is not an option, or all replies of a task
            are dropped.
    """
    counts, tasks = LetterCounts(), dict[str, None]()
    for record in records:
        if record["task_name"] is None:
            continue
        task = f"{record['task_name']}_{record['dataset_name']}"
        tasks[task] = None
        if record["response"] is None:
            raise ScriptError("AttributeError: 'NoneType' object has no attribute 'strip'")
        letter = choices.official_letter(record["response"])
        if letter is None:
            counts.dropped += 1
            continue
        options = [record.get(f"choice_{name}") for name in "abcd"]
        if record["answer_gt"] not in options:
            raise ScriptError("SystemExit: 1")
        counts.total[task] = counts.total.get(task, 0) + 1
        is_correct = letter == choices.LETTERS[options.index(record["answer_gt"])]
        counts.correct[task] = counts.correct.get(task, 0) + is_correct
    if unanswered := [task for task in tasks if task not in counts.total]:
        raise ScriptError(f"KeyError: {unanswered[0]!r}")
    return counts


# --- AIR-Bench: cal_score.py --------------------------------------------------------------------------------------

PARTS = tuple(dict.fromkeys(name.rpartition("/")[2] for name in air_bench.GROUPS.values()))


@dataclass
class VerdictCounts:
    """Counts of `cal_score.py`.

    Attributes:
        total: Number of judge replies that the script can parse, by part.
        wins: Number of replies in which the model's answer has the higher number, by part.
        first: Sum of the first numbers, by part.
        second: Sum of the second numbers, by part.
        failed: The number that the script prints as fail_num.
        counted: The number that the script prints as success_num.
    """

    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    wins: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    first: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    second: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    failed: int = 0
    counted: int = 0


def verdicts(records: Sequence[tuple[str, str | None]], order: int) -> VerdictCounts:
    """Return the counts of the script.

    A reply of two words that are not both integers up to 10 is in both `failed` and `counted`. An unknown task is
    counted under the part of the previous record.

    Args:
        records: Task and judge's reply of each row.
        order: 1 if the model's answer is presented first, otherwise 0.

    Raises:
        ScriptError: The script would crash: a reply is null, the first row has an unknown task, or a part has no reply
            that can be parsed.
    """
    counts, part = VerdictCounts(), None
    for task, reply in records:
        part = air_bench.GROUPS[task].rpartition("/")[2] if task in air_bench.GROUPS else part
        if part is None:
            raise ScriptError("NameError: name 'task_id' is not defined")
        if reply is None:
            raise ScriptError("AttributeError: 'NoneType' object has no attribute 'strip'")
        counts.counted += len(reply.strip().replace("\n", "").split(" ")) == 2
        numbers = air_bench.parse_reply(reply)
        if numbers is None:
            counts.failed += 1
            continue
        counts.total[part] += 1
        counts.wins[part] += numbers[1 - order] > numbers[order]
        counts.first[part] += numbers[0]
        counts.second[part] += numbers[1]
    if 0 in counts.total.values():
        raise ScriptError("ZeroDivisionError: division by zero")
    return counts
