"""The task table in readable form, as `auris doctor show=tasks` prints it.

If the output is not a terminal, the table is printed as Markdown, as it is in the README.
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
UNPUBLISHED_MARK = "*"  # follows prompts that are not published

# Labels from which the example answers in the table are rendered. In Chinese, each timed word is one character.
CHINESE_EXAMPLE: Labels = {"language": "zh", "words": [{"word": "面", "start": 0.54, "end": 0.86}]}
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
    f"Hours are from Qwen-Audio's Table 1. Prompts marked with {UNPUBLISHED_MARK} are not published and were written "
    "for auris. Answers are shown in natural language; with tags, times and fields are control tokens.",
    "Grades describe evaluation data. The grade before the slash is for the best existing data, the grade after it for "
    "the synthetic corpus that `auris corpus` writes. "
    + "; ".join(f"{grade}: {meaning}" for grade, meaning in GRADES.items())
    + ".",
)


def table_rows() -> list[tuple[str, ...]]:
    """Return the cells of the table's 31 rows. Code is in backticks."""
    return [(name, *_cells(name, task)) for name, task in tasks.published_rows()]


def _cells(name: str, task: Task) -> tuple[str, ...]:
    optional_labels = (f"[`{label}`]" for label in (*task.optional, *task.uses))
    return (
        task.family,
        task.hours[name],
        f"`{task.code}`",
        " ".join([*(f"`{label}`" for label in task.needs), *optional_labels]) + (" 2 clips" if task.clips == 2 else ""),
        _mark_unpublished(f"`{_drop_brackets(task.tags)}`", task.tags_source),
        _mark_unpublished(f"`{_drop_brackets(task.natural)}`", task.natural_source),
        f"`{_format_answer(task, CHINESE_EXAMPLE if name.endswith('zh') else EXAMPLE)}`",
        " ".join(f"`{metric}`" for metric in task.metrics),
        f"{task.grade}/{task.synthetic_grade}",
    )


def _format_answer(task: Task, example: Labels) -> str:
    if task.choices:
        return " / ".join(task.choices)
    return "{text}" if task.is_text else task.render(example, tags=False).replace("\n", " ⏎ ")


def _drop_brackets(template: str) -> str:
    """Return a template in a readable form, such as `en keyword` for `<|en|><|keyword|>`."""
    return re.sub(r"\s+", " ", re.sub(r"<\|(.*?)\|>", r" \1 ", template).replace("_tag}", "}")).strip()


def _mark_unpublished(cell: str, source: str) -> str:
    return cell if source.startswith("published") else cell + UNPUBLISHED_MARK


def format_markdown() -> str:
    """Return the table and its notes as Markdown, as in the README."""
    all_rows = (COLUMNS, ("---",) * len(COLUMNS), *table_rows())
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in all_rows)
    return "\n\n".join([table, *NOTES]) + "\n"


def show(name: str, console: Console | None = None) -> None:
    """Print the table, or the description of one task.

    Args:
        name: `tasks` for the table, or the code of a task.
        console: Where to print; standard output by default.

    Raises:
        UserError: `name` is neither `tasks` nor the code of a task.
    """
    console = console or Console()
    if name != "tasks":
        if name not in tasks.TASKS:
            raise UserError(
                f"show={name}: expected tasks for the table, or the code of a task: {', '.join(tasks.TASKS)}"
            )
        console.file.write(_describe(tasks.get_task(name)))
    elif console.is_terminal:
        console.print(_narrow_table())
        for note in NOTES:
            console.print(note, highlight=False)
    else:
        console.file.write(format_markdown())


def _narrow_table() -> Table:
    """Return the table for a narrow terminal: it has the same content in half as many columns."""
    table = Table("task", "labels, answer", "tags, instruction", "scored by", "grade", show_lines=True)
    for cells in table_rows():
        name, family, hours, code, labels, tags, instruction, answer, metrics, grade = (
            cell.replace("`", "").replace("[", r"\[") for cell in cells
        )
        narrow_cells = (
            (name, f"task: {code}", f"{family}, {hours} h"),
            (labels, f"-> {answer}"),
            (tags, instruction),
            metrics.split(),
            (grade,),
        )
        table.add_row(*("\n".join(lines) for lines in narrow_cells))
    return table


def _describe(task: Task) -> str:
    """Return a description of a task with all wordings of its prompt and both forms of its answer."""
    lines = [f"{task.code}: {task.name}"]
    if task.hours:
        hours = ", ".join(f"{name} {hours} h" for name, hours in task.hours.items())
        grades = f"{GRADES[task.grade]}; the synthetic corpus: {GRADES[task.synthetic_grade]}"
        lines += [f"in Qwen-Audio's Table 1 ({task.family}): {hours}", f"evaluation data: {grades}"]
    lines += [f"needs: {', '.join(task.needs)}" + (f", and {task.clips} clips" if task.clips > 1 else "")]
    lines += [f"optional: {label} (default {value})" for label, value in task.optional.items()]
    lines += [f"optional: {label} (no default; used for scoring)" for label in task.uses]
    if task.natural:
        lines += [f"scored by: {', '.join(task.metrics)}"]
        lines += [f"tags ({task.tags_source}): {task.tags}", f"answer with tags: {task.render(EXAMPLE)}"]
        lines += [f"instruction ({task.natural_source}): {task.natural}"]
        lines += [f"answer in natural language: {task.render(EXAMPLE, tags=False)}", "other wordings:"]
        lines += [f"  {wording}" for wording in task.paraphrases]
    return "\n".join(lines) + "\n"
