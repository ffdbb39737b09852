"""The printed task table is complete on every kind of output and equal to the one in the README."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from auris import cli
from auris.text import task_table
from auris.text.tasks import TASKS

README = Path(__file__).resolve().parents[2] / "README.md"


def printed(task: str, *, terminal: bool, width: int = 110) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    task_table.show(task, console)
    return out.getvalue()


def test_the_readme_has_the_table():
    """If this fails, update the README with the output of `auris doctor show=tasks`."""
    assert task_table.format_markdown() in README.read_text(encoding="utf-8")


def test_every_row_of_the_table_has_a_cell_in_each_column():
    lines = task_table.format_markdown().split("\n\n")[0].splitlines()
    assert len(lines) == 2 + 31
    assert {line.count("|") for line in lines} == {len(task_table.COLUMNS) + 1}


@pytest.mark.parametrize("width", [110, 200])
def test_a_terminal_shows_every_task_and_metric(width):
    output = printed("tasks", terminal=True, width=width)
    for task in TASKS.values():
        if task.hours:
            assert f"task: {task.code}" in output
            assert task.natural.split()[0] in output
    assert "[caption_style]" in output.replace("\n", "")
    assert "speech, 30k h" in output


@pytest.mark.parametrize("code", TASKS)
def test_a_task_is_shown_with_all_its_wordings(code):
    task, output = TASKS[code], printed(code, terminal=False)
    assert output.startswith(f"{code}: {task.name}\n")
    assert all(wording in output for wording in (task.tags, *task.wordings))


def test_the_doctor_prints_the_table_and_needs_no_checkpoint(capsys):
    assert cli.main(["doctor", "show=tasks"]) == 0
    assert capsys.readouterr().out == task_table.format_markdown()
    assert cli.main(["doctor", "show=srwt"]) == 0
    assert "hello<|0.42|><|sil|><|0.50|>there<|1.00|>" in capsys.readouterr().out


def test_the_error_for_an_unknown_task_lists_the_tasks(capsys):
    assert cli.main(["doctor", "show=opera"]) == 1
    assert (
        "error: show=opera: expected tasks for the table, or the code of a task: asr, s2tt" in capsys.readouterr().err
    )
