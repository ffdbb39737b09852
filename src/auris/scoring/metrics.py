"""Scores per task as additive statistics: a row gives a few counts, a corpus their sum, a formula the score of the sum.

So a score over a corpus, over bootstrap samples and over ranks is the same exact arithmetic (the formulas stand in
`auris.results`, which reads files only and needs them too). Edit distance is jiwer's, n-gram counts are sacrebleu's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version

import jiwer
import torch
import torchmetrics
from sacrebleu.metrics import BLEU

from auris.results import measure, value
from auris.scoring import normalize as norm

BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}  # evaluate_st.py of both releases; every other target language: 13a


def row_stats(
    metric: str,
    hypothesis: str | float | Mapping | None,
    reference: str | float | Mapping,
    language: str,
    classes: Sequence[str] | None = None,
) -> list[float]:
    """The statistics of one row, to be summed over rows and handed to `value`; `auris.results.MEASURES` names them.

    `wer` counts words, or characters in languages written without spaces (the field's habit of calling that WER too);
    `cer` counts characters everywhere, spaces between words included (jiwer). An empty reference adds its hypothesis
    as insertions and nothing to the reference length, as the official script does. `bleu` takes raw text and the
    *target* language. `accuracy` compares after strip and lower case, `accuracy_raw` as Qwen2-Audio's scripts do
    (`lstrip` only); `contains` asks whether the normalised reference stands in the normalised hypothesis, whole words
    where there are any, and counts no row whose reference normalises to nothing; `unparsed` counts answers outside
    `classes`. `slot_f1` and `intent_accuracy` take
    `{intent, slots: {name: value}}`, and None for an answer that could not be parsed. `prefers` takes
    log-probabilities: of the rejected answer as hypothesis, of the chosen one as reference. `judged` takes a judge's
    points as hypothesis (`auris.scoring.judge`; the judge has the signature).
    """
    measure(metric)  # an unknown name ends here
    match metric:
        case "wer" | "cer":
            count = (
                jiwer.process_words if metric == "wer" and norm.unit(language) == "word" else jiwer.process_characters
            )
            out = count(norm.normalize(reference, language), norm.normalize(hypothesis, language))
            errors = out.substitutions + out.deletions + out.insertions
            return [float(errors), float(out.hits + out.substitutions + out.deletions)]
        case "bleu":
            score = _bleu(language).sentence_score(hypothesis, [reference])
            return [float(x) for x in (*score.counts, *score.totals, score.sys_len, score.ref_len)]
        case "accuracy":
            return [float(_canonical(hypothesis) == _canonical(reference)), 1.0]
        case "contains":
            said, key = (norm.normalize(text, language) for text in (hypothesis, reference))
            space = " " if norm.unit(language) == "word" else ""  # whole words, where there are any
            if not key:  # nothing to look for, which every answer holds
                return [0.0, 0.0]
            return [float(f"{space}{key}{space}" in f"{space}{said}{space}"), 1.0]
        case "prefers":
            return [float(reference > hypothesis), 1.0]
        case "judged":
            return [float(hypothesis), 1.0]
        case "accuracy_raw":
            return [float(hypothesis.lstrip() == reference), 1.0]
        case "unparsed":
            if not classes:
                raise ValueError("metric 'unparsed' needs the task's closed set of classes, but got none")
            return [float(_canonical(hypothesis) not in {_canonical(c) for c in classes}), 1.0]
        case "slot_f1":
            said, true = _slots(hypothesis), _slots(reference)
            return [float(len(said & true)), float(len(said - true)), float(len(true - said))]
        case "intent_accuracy":
            said = None if hypothesis is None else hypothesis.get("intent")
            return [float(said is not None and _canonical(said) == _canonical(reference["intent"])), 1.0]
    raise AssertionError(f"{metric} is in MEASURES but has no statistics here")


def for_language(metric: str, language: str) -> str:
    """The metric under its honest name: WER of a language written without spaces is a character error rate."""
    return "cer" if metric == "wer" and norm.unit(language) == "char" else metric


def signature(metric: str, language: str) -> str:
    """How a number was made, to be printed beside it: normaliser, unit, tokenizer, library version."""
    measure(metric)
    match metric:
        case "wer":
            return f"wer|{norm.describe(language)}|jiwer{version('jiwer')}"
        case "cer":
            return f"cer|{norm.describe(language).rpartition('|')[0]}|char|jiwer{version('jiwer')}"
        case "bleu":
            tokenizer = _bleu(language).tokenizer_signature
            return f"bleu|nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:{version('sacrebleu')}"
        case "accuracy_raw":
            return "accuracy_raw|lstrip|exact"
        case "judged":
            raise ValueError("the signature of `judged` is its judge's: auris.scoring.judge")
        case "prefers":
            return "prefers|log p(chosen) > log p(rejected)|sums over tokens"
        case "contains":
            return f"contains|{norm.describe(language)}"
        case "slot_f1":
            return "slot_f1|strip+lower|name=value pairs, micro"
        case _:
            return f"{metric}|strip+lower|exact"


class TaskScore(torchmetrics.Metric):
    """One of the measures as a torchmetrics metric, for validation inside `fit`: its state is the sum of the rows'
    statistics, so that ranks add up to exactly what one process would give. NaN before the first update."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, metric: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.metric = metric
        zeros = torch.zeros(len(measure(metric).stats), dtype=torch.long)  # counts: exact
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool:
        return measure(self.metric).higher_is_better

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        languages: Sequence[str],
        classes: Sequence[str] | None = None,
    ) -> None:
        """Adds rows; ValueError if the three lists differ in length."""
        for row in zip(hypotheses, references, languages, strict=True):
            self.sums += torch.tensor(
                row_stats(self.metric, *row, classes), dtype=self.sums.dtype, device=self.sums.device
            )

    def compute(self) -> torch.Tensor:
        """The score of all rows so far: a fraction, or 0..100 for BLEU."""
        return torch.tensor(value(self.metric, self.sums.cpu().numpy()))


@cache
def _bleu(language: str) -> BLEU:
    # Effective order changes only the sentence's own score, which nobody reads here; without it sacrebleu warns.
    return BLEU(tokenize=BLEU_TOKENIZERS.get(norm.primary(language), "13a"), effective_order=True)


def _canonical(answer: str) -> str:
    return answer.strip().lower()


def _slots(parsed: Mapping | None) -> set[tuple[str, str]]:
    slots = {} if parsed is None else parsed.get("slots") or {}
    return {(_canonical(name), _canonical(str(filler))) for name, filler in slots.items()}
