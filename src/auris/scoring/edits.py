"""Edits between two texts as jiwer counts them, after normalisation: what error rates are made of."""

from __future__ import annotations

import jiwer

from auris.scoring import normalize as norm


def count(hypothesis: str, reference: str, language: str, *, unit: str) -> list[float]:
    """Substitutions, deletions and insertions, and the length of the reference, in words or characters (`word`,
    `char`). An empty reference has its hypothesis as insertions and no length, as in the official script."""
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    out = process(norm.normalize(reference, language), norm.normalize(hypothesis, language))
    errors = out.substitutions + out.deletions + out.insertions
    return [float(errors), float(out.hits + out.substitutions + out.deletions)]
