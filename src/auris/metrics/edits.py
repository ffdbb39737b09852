"""Edits between two normalised texts, for word and character error rates, and signs of hallucinated transcripts.

The texts are aligned by jiwer.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from auris.metrics import normalize as norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jiwer

RATES = ("wer", "cer")  # metrics that count edits

# Metrics that are computed together with an error rate. The first three add up to it.
DETAILS = ("insertions", "deletions", "substitutions", "empty", "runaway")

# Ratio of a text's size to its compressed size above which a text is repetitive. Whisper treats such a transcript as a
# failure of decoding (compression_ratio_threshold in whisper/transcribe.py; Radford et al. 2022, section 4.5).
MAX_COMPRESSION_RATIO = 2.4


def unit_of(metric: str, language: str) -> str:
    """Return what a metric in `RATES` counts in a language: `word` or `char`."""
    return norm.counted_unit(language) if metric == "wer" else "char"


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


def count_edits(
    hypothesis: str, reference: str, language: str, *, unit: str, kinds: Sequence[str] = DETAILS[:3]
) -> list[float]:
    """Return the number of edits and the length of the reference, in words or characters.

    If the reference is empty, its length is 0 and every word of the hypothesis is an insertion, as in the script
    `evaluate_asr.py` of Qwen2-Audio.

    Args:
        hypothesis: The response.
        reference: The correct text.
        language: The language of the hypothesis and the reference.
        unit: `word` or `char`.
        kinds: The kinds of edits to count: insertions, deletions, substitutions.
    """
    output = _process(hypothesis, reference, language, unit)
    n_edits = sum(getattr(output, kind) for kind in kinds)
    return [float(n_edits), float(output.hits + output.substitutions + output.deletions)]


def is_repetitive(text: str) -> bool:
    """Return whether a text repeats itself so often that it compresses by more than MAX_COMPRESSION_RATIO."""
    content = text.encode()
    return len(content) > MAX_COMPRESSION_RATIO * len(zlib.compress(content))


def align_texts(hypothesis: str, reference: str, language: str, *, unit: str) -> list[Edit]:
    """Return the alignment whose edits `count_edits` counts, in text order and including equal items."""
    output = _process(hypothesis, reference, language, unit)
    reference_items, hypothesis_items = output.references[0], output.hypotheses[0]
    edits = []
    for chunk in output.alignments[0]:
        reference_part = reference_items[chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis_part = hypothesis_items[chunk.hyp_start_idx : chunk.hyp_end_idx]
        length = max(len(reference_part), len(hypothesis_part))  # the parts are equally long, or one of them is empty
        pairs = zip(reference_part or [""] * length, hypothesis_part or [""] * length, strict=True)
        edits += [Edit(chunk.type, *pair) for pair in pairs]
    return edits


@lru_cache(maxsize=1)  # several metrics count the edits of the same row one after another
def _process(hypothesis: str, reference: str, language: str, unit: str) -> jiwer.WordOutput | jiwer.CharacterOutput:
    import jiwer

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    return process(norm.normalize(reference, language), norm.normalize(hypothesis, language))
