"""Output on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def numbers_table(name_header: str, *number_headers: str, **options: Any) -> Table:
    """Return an empty table with a column of names and right-aligned columns of numbers.

    Args:
        name_header: Header of the column of names.
        *number_headers: Headers of the columns of numbers.
        **options: Arguments of `rich.table.Table`.
    """
    from rich.table import Column, Table

    number_columns = (Column(header, justify="right") for header in number_headers)
    return Table(name_header, *number_columns, title_justify="left", **options)


def print_plain(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line as it is: brackets are not markup, numbers are not coloured, and long lines are not wrapped.

    Characters that are not valid Unicode (lone surrogates in file names) are replaced.
    """
    console.print(text.encode(errors="replace").decode(), style=style, markup=False, highlight=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, such as "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:,.1f} h"
