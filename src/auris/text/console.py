"""Output on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Item = TypeVar("Item")


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


def track(
    items: Iterable[Item], description: str, *, console: Console, total: int | None = None, disable: bool = False
) -> Iterator[Item]:
    """Yield items while a progress bar shows how long the rest takes; in a log file, one line a minute says so.

    Args:
        items: The items. Each is finished when the next one is asked for.
        description: What is done with the items.
        console: Where progress is shown.
        total: Number of items; None: their length.
        disable: Show nothing.
    """
    from rich import progress

    total = len(cast("Sized", items)) if total is None else total
    if disable or console.is_terminal or console.is_jupyter:
        yield from progress.track(items, description, total=total, console=console, disable=disable)
        return
    start = last_line = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last_line > 60 and number < total:
            last_line, left = now, format_duration((now - start) / number * (total - number))
            print_plain(console, f"{description}: {number} of {total}, about {left} left")


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, such as "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:,.1f} h"
