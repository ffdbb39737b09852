"""A small synthetic corpus with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRAIN_ROWS = {
    "asr": {"en": 12, "zh": 6},
    "s2tt": {"de-en": 4, "en-de": 4},
    "lid": 7,
    "sgc": 4,
    "ks": 10,
    "sec": 10,
    "mic": 8,
    "aqa": 6,
}


def build_corpus(path: Path, held_out: dict[str, Any]) -> Path:
    """Build a synthetic corpus with a tokenizer.

    Args:
        path: New directory.
        held_out: Number of rows by task, for each of valid and test.
    """
    from auris.corpus.build import build
    from auris.corpus.vocabulary import train_tokenizer

    sizes = {"train": TRAIN_ROWS, "valid": held_out, "test": held_out}
    build(path, sizes=sizes, seed=1, processes=1, text_lines=200, scale=1.0)
    train_tokenizer(path, 600)
    return path
