"""`auris corpus out=DIR` makes the embedded corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from auris.corpus.build import build
from auris.corpus.recipes import RECIPES, mark
from auris.text.tasks import TASKS


def run(config: Mapping[str, Any]) -> None:
    """Build the corpus and print what is in it."""
    # Imported here because the worker processes import this module again, and must not load torch each.
    from auris.corpus.vocabulary import train_tokenizer

    arguments = dict(config)
    out, vocab_size = Path(arguments.pop("out")), arguments.pop("vocab_size")
    facts = build(out, scale=arguments.pop("fraction"), **arguments)
    train_tokenizer(out, vocab_size)
    table = Table("task", *facts["rows"], "grade", title=f"corpus {facts['hash']}")
    for task in RECIPES:
        counts = [rows.get(task, 0) for rows in facts["rows"].values()]
        if any(counts):
            table.add_row(mark(task) + task, *map(str, counts), TASKS[task].embedded)
    table.add_row("minutes", *(f"{seconds / 60:.1f}" for seconds in facts["seconds"].values()), "")
    rich.print(table)
