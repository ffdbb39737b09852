"""`auris corpus`: write the embedded corpus and train its tokenizer."""

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
    """Build the corpus and its tokenizer, and print the numbers of rows."""
    # Imported here because worker processes import this module too and must not load torch.
    from auris.corpus.vocabulary import train_tokenizer

    arguments = dict(config)
    out, vocab_size = Path(arguments.pop("out")), arguments.pop("vocab_size")
    facts = build(out, scale=arguments.pop("fraction"), **arguments)
    train_tokenizer(out, vocab_size)
    table = Table("task", *facts["rows"], "grade", title=f"corpus {facts['hash']}")
    for task in RECIPES:
        counts = [rows.get(task, 0) for rows in facts["rows"].values()]
        if any(counts):
            table.add_row(id_prefix(task) + task, *map(str, counts), TASKS[task].embedded)
    table.add_row("minutes", *(f"{seconds / 60:.1f}" for seconds in facts["seconds"].values()), "")
    rich.print(table)
