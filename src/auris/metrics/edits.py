"""Edits between two normalised texts, as error rates count them; jiwer aligns the texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from auris.metrics import normalize as norm

if TYPE_CHECKING:
    import jiwer

RATES = ("wer", "cer")  # metrics that count edits


def unit_of(metric: str, language: str) -> str:
    """Return what one of `RATES` counts in a language: `word` or `char`."""
    return norm.unit(language) if metric == "wer" else "char"


class Edit(NamedTuple):
    """One word or character of an alignment.

    Attributes:
        kind: equal, substitute, delete or insert.
        reference: Empty for an insertion.
        hypothesis: Empty for a deletion.
    """

    kind: str
    reference: str
    hypothesis: str


def count(hypothesis: str, reference: str, language: str, *, unit: str) -> list[float]:
    """Return the number of edits and the length of the reference, in words or characters.

    An empty reference has the length 0, and its hypothesis counts as insertions, as in the official script.

    Args:
        hypothesis: The response.
        reference: The correct text.
        language: The language of both.
        unit: `word` or `char`.
    """
    out = _process(hypothesis, reference, language, unit)
    errors = out.substitutions + out.deletions + out.insertions
    return [float(errors), float(out.hits + out.substitutions + out.deletions)]


def align(hypothesis: str, reference: str, language: str, *, unit: str) -> list[Edit]:
    """Return the alignment that `count` is based on, equal words or characters included, in order."""
    out = _process(hypothesis, reference, language, unit)
    reference_items, hypothesis_items = out.references[0], out.hypotheses[0]
    edits = []
    for chunk in out.alignments[0]:
        left = reference_items[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis_items[chunk.hyp_start_idx : chunk.hyp_end_idx]
        length = max(len(left), len(right))  # either both have this length, or one is empty
        pairs = zip(left or [""] * length, right or [""] * length, strict=True)
        edits += [Edit(chunk.type, *pair) for pair in pairs]
    return edits


def _process(hypothesis: str, reference: str, language: str, unit: str) -> jiwer.WordOutput | jiwer.CharacterOutput:
    import jiwer

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    return process(norm.normalize(reference, language), norm.normalize(hypothesis, language))
