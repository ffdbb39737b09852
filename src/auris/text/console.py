"""Printing on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def numbers_table(name: str, *numbers: str, **options: Any) -> Table:
    """Return an empty table: a column of names on the left, and columns of numbers, aligned on the right."""
    from rich.table import Column, Table

    return Table(name, *(Column(header, justify="right") for header in numbers), title_justify="left", **options)


def print_plain(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line as it is: brackets are no markup, numbers get no colours, long lines are not broken.

    Characters that are no valid Unicode (lone surrogates in file names) are replaced.
    """
    console.print(text.encode(errors="replace").decode(), style=style, markup=False, highlight=False, soft_wrap=True)
