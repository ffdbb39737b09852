"""What each test row contributes to its metrics; `auris.metrics.measures` makes scores of the contributions.

Edit distance is jiwer's, n-gram counts are sacrebleu's, times of speakers pyannote.metrics'. What a metric
compares has a form of its own, which a task reads out of an answer (`Task.compared`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
import torchmetrics
from sacrebleu.metrics import BLEU
from torchmetrics.utilities import dim_zero_cat

from auris.errors import UserError
from auris.metrics import captions, choices, edits, events, extras, speakers, timestamps
from auris.metrics import normalize as norm
from auris.metrics.judges import air_bench
from auris.metrics.measures import measure, score, value

BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}  # evaluate_st.py of both releases; every other target language: 13a

# By metric, the optional package that it is computed with.
_PACKAGES = {"der": "pyannote.metrics", "jer": "pyannote.metrics", "cpwer": "scipy.optimize"}


def row_stats(
    metric: str,
    hypothesis: Any,
    reference: Any,
    language: str,
    classes: Sequence[str] | None = None,
) -> list[Any]:
    """What a row contributes to a metric, as `auris.metrics.measures.MEASURES` names it. A hypothesis of None is an
    answer that could not be read: it holds nothing.

    Text:
    `wer` counts words, or characters in languages written without spaces (the field's habit of calling that WER too);
    `cer` counts characters everywhere, spaces between words included (jiwer). An empty reference adds its hypothesis
    as insertions and nothing to the reference length, as the official script does. `bleu` takes raw text and the
    *target* language, `cider` captions, of which the reference may be a list. `accuracy` compares `normalize.canonical`
    forms, `accuracy_raw` as Qwen2-Audio's scripts do (`lstrip` only), `macro_f1` as `accuracy`; `contains` asks whether
    the normalised reference stands in the normalised hypothesis, whole words where there are any, and counts
    no row whose reference normalises to nothing; `unparsed` counts answers outside `classes`; `choice` and
    its like take the options of the question as `classes` (`auris.metrics.choices`).
    Structures:
    `slot_f1` takes {intent, slots: {name: value}} or a list of {type, value}, `intent_accuracy` the former; `map` lists
    of classes; `pitch_accuracy`, `chroma_accuracy` and `velocity_accuracy` MIDI numbers, `instrument_accuracy` text;
    `event_f1` lists of {label, start, end}, `der` and `jer` of {speaker, start, end}, `cpwer` of all that each speaker
    says; `aas_ms` and `word_coverage` lists of {word, start, end}, `aas_official` the published form as text
    (`auris.metrics.timestamps`).
    Scores: `prefers` takes log-probabilities, of the rejected answer as hypothesis, of the chosen one as reference;
    `eer` a score that is higher the more the row should be accepted, and whether it should be; `judged` a judge's
    points as hypothesis (`auris.metrics.judges.rating`; the judge has the signature); those of
    `auris.metrics.judges.air_bench` the judge's replies in both orders, and the name of the row's task.
    """
    measure(metric)  # an unknown name ends here
    match metric:
        case "wer" | "cer":
            return edits.count(hypothesis, reference, language, unit=unit(metric, language))
        case "cpwer":
            return speakers.permuted_word_errors(hypothesis or [], reference, language)
        case "bleu":
            found = _bleu(language).sentence_score(hypothesis, [reference])
            return [float(x) for x in (*found.counts, *found.totals, found.sys_len, found.ref_len)]
        case "cider":
            references = [reference] if isinstance(reference, str) else reference
            return [captions.split(hypothesis, language), [captions.split(text, language) for text in references]]
        case "accuracy" | "instrument_accuracy":
            return [float(norm.canonical(hypothesis) == norm.canonical(reference)), 1.0]
        case "pitch_accuracy" | "velocity_accuracy":
            return [float(hypothesis == reference), 1.0]
        case "chroma_accuracy":
            return [float(hypothesis is not None and hypothesis % 12 == reference % 12), 1.0]
        case "macro_f1":
            return [norm.canonical(hypothesis), norm.canonical(reference)]
        case "contains":
            if not norm.normalize(reference, language):  # nothing to look for
                return [0.0, 0.0]
            return [float(norm.contains(hypothesis, reference, language)), 1.0]
        case "accuracy_raw":
            return [float(hypothesis.lstrip() == reference), 1.0]
        case "choice" | "choice_official" | "choice_unparsed":
            if not classes:
                raise UserError(f"metric {metric!r} needs the options of the question, but got none")
            return choices.count(metric, hypothesis, reference, classes)
        case "unparsed":
            if not classes:
                raise UserError("metric 'unparsed' needs the task's closed set of classes, but got none")
            return [float(norm.canonical(hypothesis) not in {norm.canonical(c) for c in classes}), 1.0]
        case "slot_f1":
            said, true = _slots(hypothesis), _slots(reference)
            return [float(count.total()) for count in (said & true, said - true, true - said)]
        case "intent_accuracy":
            said = None if hypothesis is None else hypothesis.get("intent")
            return [float(said is not None and norm.canonical(said) == norm.canonical(reference["intent"])), 1.0]
        case "map":
            return [sorted({norm.canonical(name) for name in side or []}) for side in (hypothesis, reference)]
        case "event_f1":
            return events.count(hypothesis or [], reference)
        case "der":
            return speakers.diarization_error(hypothesis or [], reference)
        case "jer":
            return speakers.jaccard_error(hypothesis or [], reference)
        case "aas_ms":
            return list(timestamps.shift(hypothesis or [], reference, language))
        case "word_coverage":
            return list(timestamps.coverage(hypothesis or [], reference, language))
        case "aas_official":
            return list(timestamps.official_shift(hypothesis, reference))
        case "prefers":
            return [float(reference > hypothesis), 1.0]
        case "eer":
            return [float(hypothesis), float(reference)]
        case "judged":
            return [float(hypothesis), 1.0]
        case _ if metric in air_bench.METRICS:
            return air_bench.count(metric, hypothesis, reference)
    raise AssertionError(f"{metric} is in MEASURES but has no statistics here")


def for_language(metric: str, language: str) -> str:
    """The metric under its honest name: WER of a language written without spaces is a character error rate."""
    return "cer" if metric == "wer" and norm.unit(language) == "char" else metric


def signature(metric: str, language: str) -> str:
    """How a number was made, to be printed beside it: normaliser, unit, tokenizer, policy, library version."""
    return f"{metric}|{_signature(metric, language)}"


def _signature(metric: str, language: str) -> str:
    measure(metric)
    match metric:
        case "wer":
            return f"{norm.describe(language)}|jiwer{version('jiwer')}"
        case "cer":
            return f"{norm.describe(language).rpartition('|')[0]}|char|jiwer{version('jiwer')}"
        case "cpwer":
            return f"{norm.describe(language)}|best pairing of speakers|jiwer{version('jiwer')}"
        case "bleu":
            tokenizer = _bleu(language).tokenizer_signature
            return f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:{version('sacrebleu')}"
        case "cider":
            return f"cider-d|n:4|sigma:6|idf:references of all rows|{captions.describe(language)}"
        case "accuracy_raw":
            return "lstrip|exact"
        case "choice" | "choice_unparsed":
            return "letter, or text of one option|no option: wrong"
        case "choice_official":
            return "score_foundation.py|first or last but one character|no letter: left out"
        case "macro_f1":
            return "strip+lower|exact|mean over the references' classes"
        case _ if metric == "judged" or metric in air_bench.METRICS:
            raise UserError(f"the signature of `{metric}` is its judge's: see auris.metrics.judges")
        case "prefers":
            return "log p(chosen) > log p(rejected)|sums over tokens"
        case "eer":
            return "log p(yes) - log p(no)|sums over tokens|nearest threshold"
        case "contains":
            return norm.describe(language)
        case "slot_f1":
            return "strip+lower|name=value pairs, micro"
        case "map":
            return "strip+lower|named or not|mean over the references' classes"
        case "pitch_accuracy" | "velocity_accuracy":
            return "midi number|exact"
        case "chroma_accuracy":
            return "midi number modulo 12|exact"
        case "event_f1":
            return f"event-based|micro|collar:{events.COLLAR:g}s|end:max(collar,{events.SHARE:.0%})"
        case "der" | "jer":
            return f"collar:0|overlap:scored|{extras.described('pyannote.metrics')}"
        case "aas_ms":
            return f"{norm.describe(language)}|mean of start and end|matched words"
        case "word_coverage":
            return f"{norm.describe(language)}|words with times that match"
        case "aas_official":
            return "evaluate_srwt.py|sum of start and end|first word of an answer left out"
        case _:
            return "strip+lower|exact"


def check(metric: str, language: str) -> None:
    """Raises ValueError if a package that the metric needs is not installed: before answers are made, not after."""
    _check_package(metric)
    if metric in ("wer", "cer", "cpwer", "contains", "aas_ms", "word_coverage"):
        norm.check(language)


def _check_package(metric: str) -> None:
    measure(metric)
    if package := _PACKAGES.get(metric):
        extras.require(package, f"metric {metric!r}")


class TaskScore(torchmetrics.Metric):
    """One of the measures as a torchmetrics metric, for validation inside `fit`: ranks together give what one process
    would. Its state is the sum of the rows' statistics, or, of a measure of all rows at once, the rows themselves. NaN
    before the first update."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, metric: str, **kwargs) -> None:
        super().__init__(**kwargs)
        _check_package(metric)
        self.metric = metric
        self.additive = measure(metric).formula is not None
        if self.additive:
            zeros = torch.zeros(len(measure(metric).stats), dtype=torch.float64)  # counts are exact, seconds are sums
            self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        else:
            self.add_state("rows", default=[], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool:
        return measure(self.metric).higher_is_better

    def update(
        self,
        hypotheses: Sequence[Any],
        references: Sequence[Any],
        languages: Sequence[str],
        classes: Sequence[str] | None = None,
    ) -> None:
        """Adds rows; ValueError if the three lists differ in length."""
        for row in zip(hypotheses, references, languages, strict=True):
            stats = row_stats(self.metric, *row, classes)
            if self.additive:
                self.sums += torch.tensor(stats, dtype=self.sums.dtype, device=self.sums.device)
            else:
                # Ranks exchange tensors only: the bytes of a line of JSON, in the type that torchmetrics gives to the
                # nothing of a rank without rows (every byte is exact in it).
                line = torch.tensor(list(json.dumps(stats).encode() + b"\n"), dtype=self.dtype, device=self.device)
                self.rows.append(line)

    def compute(self) -> torch.Tensor:
        """The score of all rows so far: a fraction, or 0..100 for BLEU."""
        if self.additive:
            return torch.tensor(value(self.metric, self.sums.cpu().numpy()))
        lines = bytes(dim_zero_cat(self.rows).to(torch.uint8).tolist()) if len(self.rows) else b""
        return torch.tensor(score(self.metric, [json.loads(line) for line in lines.splitlines()]))


@cache
def _bleu(language: str) -> BLEU:
    # Effective order changes only the sentence's own score, which nobody reads here; without it sacrebleu warns.
    return BLEU(tokenize=BLEU_TOKENIZERS.get(norm.primary(language), "13a"), effective_order=True)


def unit(metric: str, language: str) -> str:
    """What an error rate counts in a language: `word` or `char`."""
    return norm.unit(language) if metric == "wer" else "char"


def _slots(parsed: Mapping | Sequence[Mapping] | None) -> Counter[tuple[str, str]]:
    """Pairs of name and value, how often each: an entity of a type may occur more than once."""
    if isinstance(parsed, Mapping):
        pairs = (parsed.get("slots") or {}).items()
    else:
        pairs = ((entity["type"], entity["value"]) for entity in parsed or [])
    return Counter((norm.canonical(name), norm.canonical(str(filler))) for name, filler in pairs)
