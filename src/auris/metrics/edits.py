"""Edits between two normalised texts, found by jiwer, as error rates count them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from auris.metrics import normalize as norm

if TYPE_CHECKING:
    import jiwer

RATES = ("wer", "cer")  # metrics that are counts of edits


def unit_of(metric: str, language: str) -> str:
    """Return what one of `RATES` counts in a language: `word` or `char`."""
    return norm.unit(language) if metric == "wer" else "char"


class Edit(NamedTuple):
    """A word or character of an alignment: `kind` is equal, substitute, delete or insert, and a side that has nothing
    there is empty."""

    kind: str
    reference: str
    hypothesis: str


def count(hypothesis: str, reference: str, language: str, *, unit: str) -> list[float]:
    """Substitutions, deletions and insertions, and the length of the reference, in words or characters (`word`,
    `char`). An empty reference has its hypothesis as insertions and no length, as in the official script."""
    out = _process(hypothesis, reference, language, unit)
    errors = out.substitutions + out.deletions + out.insertions
    return [float(errors), float(out.hits + out.substitutions + out.deletions)]


def align(hypothesis: str, reference: str, language: str, *, unit: str) -> list[Edit]:
    """The edits that `count` counts, and what is equal, in their order."""
    out = _process(hypothesis, reference, language, unit)
    true, said = out.references[0], out.hypotheses[0]
    edits = []
    for chunk in out.alignments[0]:
        left = true[chunk.ref_start_idx : chunk.ref_end_idx]
        right = said[chunk.hyp_start_idx : chunk.hyp_end_idx]
        length = max(len(left), len(right))  # one side is empty, or both are as long
        pairs = zip(left or [""] * length, right or [""] * length, strict=True)
        edits += [Edit(chunk.type, *pair) for pair in pairs]
    return edits


def _process(hypothesis: str, reference: str, language: str, unit: str) -> jiwer.WordOutput | jiwer.CharacterOutput:
    import jiwer

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    return process(norm.normalize(reference, language), norm.normalize(hypothesis, language))
