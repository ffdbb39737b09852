"""`auris corpus`: write the synthetic corpus and train its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from auris.corpus.build import build
from auris.corpus.recipes import RECIPES, id_prefix
from auris.text.tasks import TASKS


def run(config: Mapping[str, Any]) -> None:
    """Build the corpus and its tokenizer, and print the number of rows and the grade (`tasks.GRADES`) of each task."""
    # Imported here because worker processes import this module too and must not load torch.
    from auris.corpus.vocabulary import train_tokenizer

    arguments = dict(config)
    out, vocab_size = Path(arguments.pop("out")), arguments.pop("vocab_size")
    metadata = build(out, scale=arguments.pop("fraction"), **arguments)
    train_tokenizer(out, vocab_size)
    table = Table("task", *metadata["rows"], "grade", title=f"corpus {metadata['hash']}")
    for task in RECIPES:
        counts = [rows.get(task, 0) for rows in metadata["rows"].values()]
        if any(counts):
            table.add_row(id_prefix(task) + task, *map(str, counts), TASKS[task].synthetic_grade)
    table.add_row("minutes", *(f"{seconds / 60:.1f}" for seconds in metadata["seconds"].values()), "")
    rich.print(table)
