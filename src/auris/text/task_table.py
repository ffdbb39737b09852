"""The task table for people: `auris doctor show=tasks` prints it on a terminal, or as Markdown into a file.

The Markdown is the table of the README.
"""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table

from auris.errors import UserError
from auris.text import tasks
from auris.text.answer_formats import Labels
from auris.text.tasks import GRADES, Task

COLUMNS = ("task", "family", "hours", "`task`", "labels", "tags", "instruction", "answer", "scored by", "grade")
UNPUBLISHED = "*"  # marks prompts that are not published

# Labels for the answers in the table. In Chinese, each timed word is one character.
CHINESE = {"language": "zh", "words": [{"word": "面", "start": 0.54, "end": 0.86}]}
EXAMPLE: Labels = {
    "text": "hello",
    "language": "en",
    "target_language": "de",
    "dialect": "Scottish English",
    "question": "Is it raining?",
    "intent": "play_music",
    "slots": {"artist": "abba"},
    "entities": [{"type": "place", "value": "new york"}],
    "texts": ["hello", "good morning"],
    "words": [{"word": "hello", "start": 0.0, "end": 0.42}, {"word": "there", "start": 0.5, "end": 1.0}],
    "events": [{"label": "dog bark", "start": 0.5, "end": 1.2}],
    "turns": [{"speaker": "ann", "start": 0.0, "end": 3.2}],
    "notes": {"pitch": 60, "velocity": 100, "instrument": "guitar", "sonic": ["bright"]},
}

NOTES = (
    f"Hours are from Qwen-Audio's Table 1. Prompts marked with {UNPUBLISHED} are not published and were written for "
    "auris. Answers are shown in natural language; with tags, times and fields are control tokens.",
    "Grades describe evaluation data: the best that exists before the slash, the embedded corpus after it. "
    + "; ".join(f"{grade}: {meaning}" for grade, meaning in GRADES.items())
    + ".",
)


def rows() -> list[tuple[str, ...]]:
    """Return the cells of the table's 31 rows, with code in backticks."""
    return [(name, *_cells(name, task)) for name, task in tasks.published()]


def _cells(name: str, task: Task) -> tuple[str, ...]:
    optional = (f"[`{label}`]" for label in (*task.optional, *task.uses))
    return (
        task.family,
        task.hours[name],
        f"`{task.code}`",
        " ".join([*(f"`{label}`" for label in task.needs), *optional]) + (" 2 clips" if task.clips == 2 else ""),
        _mark(f"`{_without_brackets(task.tags)}`", task.tags_source),
        _mark(f"`{_without_brackets(task.natural)}`", task.natural_source),
        f"`{_answer(task, CHINESE if name.endswith('zh') else EXAMPLE)}`",
        " ".join(f"`{metric}`" for metric in task.metrics),
        f"{task.grade}/{task.embedded}",
    )


def _answer(task: Task, example: Labels) -> str:
    if task.choices:
        return " / ".join(task.choices)
    return "{text}" if task.is_text else task.render(example, tags=False).replace("\n", " ⏎ ")


def _without_brackets(template: str) -> str:
    """Return a template in a readable form: `<|en|><|keyword|>` as `en keyword`."""
    return re.sub(r"\s+", " ", re.sub(r"<\|(.*?)\|>", r" \1 ", template).replace("_tag}", "}")).strip()


def _mark(cell: str, source: str) -> str:
    return cell if source.startswith("published") else cell + UNPUBLISHED


def markdown() -> str:
    """Return the table and its notes as in the README."""
    lines = (COLUMNS, ("---",) * len(COLUMNS), *rows())
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([table, *NOTES]) + "\n"


def show(what: str, console: Console | None = None) -> None:
    """Print the table, or one task.

    Args:
        what: `tasks` for the table, or the code of a task.
        console: Where to print; standard output by default.

    Raises:
        UserError: `what` is neither.
    """
    console = console or Console()
    if what != "tasks":
        if what not in tasks.TASKS:
            raise UserError(f"show={what}: expected tasks, or one of {', '.join(tasks.TASKS)}")
        console.file.write(_describe(tasks.find(what)))
    elif console.is_terminal:
        console.print(_narrow_table())
        for note in NOTES:
            console.print(note, highlight=False)
    else:
        console.file.write(markdown())


def _narrow_table() -> Table:
    """Return the table with the same cells in half the number of columns, for a narrow terminal."""
    table = Table("task", "labels, answer", "tags, instruction", "scored by", "grade", show_lines=True)
    for line in rows():
        name, family, hours, code, labels, tags, instruction, answer, scored, grade = (
            cell.replace("`", "").replace("[", r"\[") for cell in line
        )
        cells = (
            (name, f"task: {code}", f"{family}, {hours} h"),
            (labels, f"-> {answer}"),
            (tags, instruction),
            scored.split(),
            (grade,),
        )
        table.add_row(*("\n".join(lines) for lines in cells))
    return table


def _describe(task: Task) -> str:
    """Return a description of a task with all its wordings and both forms of its answer."""
    lines = [f"{task.code}: {task.name}"]
    if task.hours:
        hours = ", ".join(f"{name} {hours} h" for name, hours in task.hours.items())
        grades = f"{GRADES[task.grade]}; the embedded corpus: {GRADES[task.embedded]}"
        lines += [f"in Qwen-Audio's Table 1 ({task.family}): {hours}", f"evaluation data: {grades}"]
    lines += [f"needs: {', '.join(task.needs)}" + (f", and {task.clips} clips" if task.clips > 1 else "")]
    lines += [f"optional: {label} (default {value})" for label, value in task.optional.items()]
    lines += [f"optional: {label}" for label in task.uses]
    if task.natural:
        lines += [f"scored by: {', '.join(task.metrics)}"]
        lines += [f"tags ({task.tags_source}): {task.tags}", f"answer with tags: {task.render(EXAMPLE)}"]
        lines += [f"instruction ({task.natural_source}): {task.natural}"]
        lines += [f"answer in natural language: {task.render(EXAMPLE, tags=False)}", "other wordings:"]
        lines += [f"  {wording}" for wording in task.paraphrases]
    return "\n".join(lines) + "\n"
