"""Output on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def numbers_table(name: str, *numbers: str, **options: Any) -> Table:
    """Return an empty table with a column of names and right-aligned columns of numbers."""
    from rich.table import Column, Table

    return Table(name, *(Column(header, justify="right") for header in numbers), title_justify="left", **options)


def print_plain(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line literally: without markup in brackets, without colours for numbers, without line breaks.

    Characters that are not valid Unicode (lone surrogates in file names) are replaced.
    """
    console.print(text.encode(errors="replace").decode(), style=style, markup=False, highlight=False, soft_wrap=True)
