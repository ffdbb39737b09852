"""`python -m auris.corpus out=DIR` makes the embedded corpus."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import rich
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from auris.corpus.build import build

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
    table = Table("split", *facts["rows"]["train"], "minutes", title=f"corpus {facts['hash']}")
    for split, counts in facts["rows"].items():
        table.add_row(split, *map(str, counts.values()), f"{facts['seconds'][split] / 60:.1f}")
    rich.print(table)


if __name__ == "__main__":
    main()
