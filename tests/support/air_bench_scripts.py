"""What AIR-Bench's released scripts count, including where they stop: the reference for our scores of the replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from auris.metrics import choices
from auris.metrics.judges import air_bench
from auris.metrics.official import ScriptError

# --- AIR-Bench: score_foundation.py -------------------------------------------------------------------------------


@dataclass
class Letters:
    """By task: replies with a letter and how many were right; and how many had none and are in no denominator."""

    total: dict[str, int] = field(default_factory=dict)
    correct: dict[str, int] = field(default_factory=dict)
    dropped: int = 0

    def accuracy(self) -> dict[str, float]:
        return {task: self.correct[task] / total for task, total in self.total.items()}


def foundation(records: Sequence[Mapping[str, Any]]) -> Letters:
    """Return what the script counts. (The metric `choice` drops nothing.)

    Raises:
        ScriptError: The script crashes, at a null reply, a key that is not an option or a task without replies.
    """
    found, tasks = Letters(), dict[str, None]()
    for record in records:
        if record["task_name"] is None:
            continue
        task = f"{record['task_name']}_{record['dataset_name']}"
        tasks[task] = None
        if record["response"] is None:
            raise ScriptError("AttributeError: 'NoneType' object has no attribute 'strip'")
        letter = choices.official_letter(record["response"])
        if letter is None:
            found.dropped += 1
            continue
        options = [record.get(f"choice_{name}") for name in "abcd"]
        if record["answer_gt"] not in options:
            raise ScriptError("SystemExit: 1")
        found.total[task] = found.total.get(task, 0) + 1
        right = letter == choices.LETTERS[options.index(record["answer_gt"])]
        found.correct[task] = found.correct.get(task, 0) + right
    if lost := [task for task in tasks if task not in found.total]:
        raise ScriptError(f"KeyError: {lost[0]!r}")
    return found


# --- AIR-Bench: cal_score.py --------------------------------------------------------------------------------------

PARTS = tuple(dict.fromkeys(name.rpartition("/")[2] for name in air_bench.GROUPS.values()))


@dataclass
class Verdicts:
    """By part: replies that the script reads, how often the model's answer won, and sums of the first and the second
    number; `failed` and `counted` are what it prints as fail_num and success_num."""

    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    wins: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    first: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    second: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    failed: int = 0
    counted: int = 0


def verdicts(records: Sequence[tuple[str, str | None]], order: int) -> Verdicts:
    """What the script counts of (task, the judge's reply) in one order; `order` 1 has the model's answer first.

    A reply of two parts that are no numbers, or one above 10, is in both `failed` and `counted`; an unknown task is
    counted where the row before it was.

    Raises:
        ScriptError: The script crashes, at a null reply, a first row with an unknown task or a part without any reply
            that can be parsed.
    """
    found, part = Verdicts(), None
    for task, reply in records:
        part = air_bench.GROUPS[task].rpartition("/")[2] if task in air_bench.GROUPS else part
        if part is None:
            raise ScriptError("NameError: name 'task_id' is not defined")
        if reply is None:
            raise ScriptError("AttributeError: 'NoneType' object has no attribute 'strip'")
        found.counted += len(reply.strip().replace("\n", "").split(" ")) == 2
        numbers = air_bench.parse(reply)
        if numbers is None:
            found.failed += 1
            continue
        found.total[part] += 1
        found.wins[part] += numbers[1 - order] > numbers[order]
        found.first[part] += numbers[0]
        found.second[part] += numbers[1]
    if 0 in found.total.values():
        raise ScriptError("ZeroDivisionError: division by zero")
    return found
