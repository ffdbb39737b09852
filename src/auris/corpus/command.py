"""`auris corpus out=DIR` makes the embedded corpus."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import rich
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from auris.corpus.build import build
from auris.corpus.recipes import RECIPES, mark
from auris.text.tasks import TASKS

HERE = Path(__file__).resolve().parents[1]
CONFIGS = next(path for path in (HERE / "configs", HERE.parents[1] / "configs") if path.is_dir())


@hydra.main(config_path=str(CONFIGS), config_name="corpus", version_base="1.3")
def main(config: DictConfig) -> None:
    """Build the corpus and print what is in it."""
    # Imported here because the worker processes import this module again, and must not load torch each.
    from auris.corpus.vocabulary import train_tokenizer

    if OmegaConf.is_missing(config, "out"):
        sys.exit("error: expected out=DIR, the directory that the corpus goes to")
    arguments = OmegaConf.to_container(config, resolve=True)
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


if __name__ == "__main__":
    main()
