"""`auris prefer`: preference rows, from a model's own answers ranked by a metric or from people's files.

No row is lost on the way: one that gives no pair is counted under its reason, in the table and in the statistics beside
the pairs. Lengths are among them: from pairs whose better answers are the longer ones, a model learns to be long.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from auris import config
from auris.data import lengths
from auris.data.batches import by_length, pack
from auris.data.manifests import read_manifests
from auris.data.rows import EQUAL_ANSWERS, Row, are_equal, is_asked, language, row_seed
from auris.data.samples import ChatSamples
from auris.errors import AudioError, UserError
from auris.inference import load as pretrained
from auris.inference.load import AudioModel
from auris.metrics.judges.rating import Judge, Unrated
from auris.metrics.measures import bootstrap, measure, value
from auris.metrics.row_stats import for_language, row_stats
from auris.model.generation import Generation, generate
from auris.text.chat import map_audios

METRICS = ("wer", "accuracy", "contains", "judged")

# Why a row's answers make no pair.
TIE = "all answers are equally good"
CLOSE = "the best and the worst answer are closer than the margin"
EMPTY = "fewer than two answers are not empty"

# What a reader of rows finds in their messages, and a preference row has anew.
_READ = {"task", "text", "messages", "chosen", "rejected"}

_SHOWN = 20  # rows at fault that are named one by one


@dataclass(frozen=True)
class Pair:
    """Two answers to what a row asks. `facts` say how they were ranked: `metric`, and the `scores` of both; or nothing,
    where people did."""

    row: Row
    chosen: str
    rejected: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What became of all rows: pairs, how many gave none (by reason), and which cannot be used (id -> reason)."""

    pairs: Sequence[Pair]
    without: Mapping[str, int]
    problems: Mapping[str, str]


# --- a model's own answers ----------------------------------------------------------------------------------------


def sample_pairs(made: Mapping[str, Any], console: Console) -> Found:
    """The best and the worst of the model's answers to each chat row of `data.test`."""
    _check(made)
    judge = config.build(made["judge"])
    model = pretrained.load(made["checkpoint"], which=made["which"], device=made["accelerator"])
    model.check_answers()
    settings = model.settings(chat=True, **made["generation"])
    if not settings.do_sample:
        raise UserError("generation.do_sample=false: all answers to a row would be the same, expected true")
    console.print(f"{made['n_samples']} answers to each row by {settings}", highlight=False)
    test = made["data"]["test"]
    manifests = read_manifests(test if isinstance(test, list) else [test], key="data.test")
    rows = [row for manifest in manifests for row in manifest.rows]
    view = ChatSamples(
        tokenizer=model.tokenizer,
        prompt=model.dialogue,
        geometry=model.net.geometry,
        long_audio=made["long_audio"],
    )
    measured = lengths.measure(manifests, view, Path(model.recipe["data"]["cache_dir"]))
    problems = {rows[number].id: reason for number, reason in measured.problems.items()}
    for number in np.flatnonzero(measured.tokens):
        if not is_asked(rows[number]):
            problems[rows[number].id] = f"task {rows[number].labels['task']!r} asks nothing: expected dialogues"
            measured.tokens[number] = 0
        elif problem := _sharded(rows[number]):
            problems[rows[number].id] = problem
            measured.tokens[number] = 0
    pairs: dict[int, Pair] = {}
    without: Counter[str] = Counter()
    packs = by_length(measured, made["token_budget"])
    for numbers in track(packs, description="answering", console=console):
        batch = pack(rows, [(number, None) for number in numbers], view, prompt_only=True)
        problems |= dict(batch["skipped"])
        for number, answers in sample(model, batch, settings, made["n_samples"], made["seed"]).items():
            try:
                metric, scores = score(view.asked(rows[number]), answers, made["metric"], judge)
            except Unrated as error:
                problems[rows[number].id] = str(error)
                continue
            found = choose(answers, metric, scores, made["margin"])
            if any(map(math.isnan, scores)):
                problems[rows[number].id] = f"its right answer has nothing that {metric} counts"
            elif isinstance(found, str):
                without[found] += 1
            else:
                facts = {"metric": metric, "scores": [scores[n] for n in found], "answered_by": model.name}
                if judge is not None:
                    facts["judge"] = judge.signature
                pairs[number] = Pair(rows[number], *(answers[n] for n in found), facts)
    return Found([pairs[number] for number in sorted(pairs)], without, problems)


def _sharded(row: Row) -> str | None:
    whole = all(isinstance(clip.path, Path) for clip in row.clips)
    return None if whole else "its sound is in a shard: a pair names its sound files"


def _check(made: Mapping[str, Any]) -> None:
    ranges = {
        "n_samples": (made["n_samples"], made["n_samples"] in range(2, 10**6), "2 or more: a pair has two answers"),
        "metric": (made["metric"], made["metric"] in METRICS, " or ".join(METRICS)),
        "margin": (made["margin"], isinstance(made["margin"], (int, float)) and made["margin"] >= 0, "0 or more"),
        "judge": (
            made["judge"],
            (made["metric"] == "judged") == (made["judge"] is not None),
            "judge=rule or judge=model with metric=judged, and null with any other",
        ),
        "data.test": (made["data"]["test"], bool(made["data"]["test"]), "[FILE.jsonl], dialogues to be answered"),
    }
    for name, (seen, holds, expected) in ranges.items():
        if not holds:
            raise UserError(f"{name}={seen}: expected {expected}")


def sample(
    model: AudioModel, batch: Mapping[str, Any], settings: Generation, n: int, seed: int
) -> dict[int, list[str]]:
    """`n` answers to each row of a pack of questions, by row number; the same in whatever pack a row stands."""
    batch = {key: entry.to(model.device) if torch.is_tensor(entry) else entry for key, entry in batch.items()}
    answers: dict[int, list[str]] = {number: [] for number in batch["rows"]}
    for draw in range(n):
        generator = torch.Generator().manual_seed(row_seed(seed, draw, ""))
        ids = generate(model.net, batch, settings, generator=generator)
        for number, answer in zip(batch["rows"], ids, strict=False):  # an empty pack holds one dummy row
            answers[number].append(model.tokenizer.decode(answer))
    return answers


def score(row: Row, answers: Sequence[str], metric: str, judge: Judge | None = None) -> tuple[str, list[float]]:
    """The metric under its honest name, and of each answer by itself; NaN where there is nothing to count.

    Raises Unrated where the judge gives an answer no points.
    """
    if judge is not None:
        return metric, [judge(row.labels, answer) for answer in answers]
    name = for_language(metric, language(row))
    right = row.labels["text"]
    if metric == "contains":
        right = row.labels.get("key") or right
    return name, [value(name, row_stats(name, answer, right, language(row))) for answer in answers]


def choose(answers: Sequence[str], metric: str, scores: Sequence[float], margin: float) -> tuple[int, int] | str:
    """Which answer is chosen and which rejected, of equally good ones the first; or why there is no pair.

    An empty answer is neither: a dialogue has no empty message.
    """
    said = [n for n, answer in enumerate(answers) if answer.strip()]
    if len(said) < 2:
        return EMPTY
    sign = 1 if measure(metric).higher_is_better else -1
    best, worst = (pick(said, key=lambda n: sign * scores[n]) for pick in (max, min))
    gap = abs(scores[best] - scores[worst])
    if gap == 0:
        return TIE
    if are_equal(answers[best], answers[worst]):  # but for a space that the metric counts
        return EQUAL_ANSWERS
    return (best, worst) if gap > margin or math.isclose(gap, margin) else CLOSE


# --- people's pairs -----------------------------------------------------------------------------------------------


def read_pairs(path: str | Path) -> Found:
    """The pairs of an annotated file, in any form that rows may have, with their audio looked at."""
    [manifest] = read_manifests([path], key="from")
    pairs: list[Pair] = []
    without: Counter[str] = Counter()
    problems: dict[str, str] = {}
    for row in manifest.rows:
        problem = row.problem or _foreign(row) or _sharded(row) or _unreadable(row)
        if problem is None:
            pairs.append(Pair(row, row.labels["chosen"], row.labels["rejected"], {}))
        elif problem.startswith(EQUAL_ANSWERS):
            without[EQUAL_ANSWERS] += 1
        else:
            problems[row.id] = problem
    return Found(pairs, without, problems)


def _foreign(row: Row) -> str | None:
    task = row.labels["task"]
    return None if task == "preference" else f"task {task!r} is no pair: expected `chosen` and `rejected`"


def _unreadable(row: Row) -> str | None:
    try:
        for clip in row.clips:
            clip.n_samples()
    except AudioError as error:
        return str(error)
    return None


# --- what is written and shown ------------------------------------------------------------------------------------


def preference(pair: Pair, folder: Path) -> dict[str, Any]:
    """A pair as a row of a manifest in `folder`: what was asked, both answers, and what else the row says."""
    labels = pair.row.labels
    asked = labels["messages"][:-1] if labels["task"] == "chat" else labels["messages"]  # without the right answer
    clips = iter(pair.row.clips)
    return {
        "id": pair.row.id,
        "messages": map_audios(lambda _: os.path.relpath(next(clips).path, folder), asked),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        **{key: entry for key, entry in labels.items() if key not in _READ},
        **pair.facts,
    }


def statistics(found: Found) -> dict[str, Any]:
    """Counts of rows; of the pairs, their answers' lengths and scores.

    `chosen_longer` is the share of pairs whose chosen answer is the longer one, equal ones counted half, with a 95 %
    interval: away from a half, length alone tells which answer was chosen.
    """
    pairs = found.pairs
    counts = {"pairs": len(pairs), "without_pair": dict(found.without), "unusable": len(found.problems)}
    counts = {"rows": len(pairs) + sum(found.without.values()) + len(found.problems), **counts}
    if not pairs:
        return counts
    characters = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs], dtype=float)  # (P, 2)
    chosen, rejected = characters.T
    longer = np.where(chosen == rejected, 0.5, chosen > rejected)
    low, high = bootstrap(np.stack([longer, np.ones_like(longer)], axis=1), "accuracy")
    scores: dict[str, list[list[float]]] = {}
    # A judge, a person, or a rule that stands in for one.
    rankers = (pair.facts.get("judge") if pair.facts else pair.row.labels.get("annotator") for pair in pairs)
    for pair in pairs:
        if pair.facts:
            scores.setdefault(pair.facts["metric"], []).append(pair.facts["scores"])
    return {
        **counts,
        "ranked_by": dict(Counter(map(str, filter(None, rankers)))),
        "characters": _means(characters),
        "chosen_longer": {"value": float(longer.mean()), "low": low, "high": high},
        "scores": {metric: _means(np.array(of_metric)) for metric, of_metric in scores.items()},
    }


def _means(values: np.ndarray) -> dict[str, float]:
    """(P, 2) -> the mean of each column."""
    return dict(zip(("chosen", "rejected"), map(float, values.mean(0)), strict=True))


def show(console: Console, found: Found, counted: Mapping[str, Any]) -> None:
    table = Table("rows", str(counted["rows"]), title="preference pairs", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("pairs", str(counted["pairs"]))
    for reason, number in counted["without_pair"].items():
        table.add_row(f"no pair: {reason}", str(number))
    table.add_row("rows that cannot be used", str(counted["unusable"]))
    if found.pairs:
        table.add_section()
        table.add_row("characters, chosen / rejected", "{chosen:.1f} / {rejected:.1f}".format(**counted["characters"]))
        share = (100 * counted["chosen_longer"][key] for key in ("value", "low", "high"))
        table.add_row("the chosen answer is the longer one", "{:.1f} % [{:.1f}, {:.1f}]".format(*share))
        for name, number in counted["ranked_by"].items():
            table.add_row(f"ranked by {name}", str(number))
        for metric, means in counted["scores"].items():
            table.add_row(f"{metric}, chosen / rejected", "{chosen:.3f} / {rejected:.3f}".format(**means))
    console.print(table)
    for name, reason in list(found.problems.items())[:_SHOWN]:
        console.print(f"  {name}: {reason}", markup=False, highlight=False, soft_wrap=True)


def prefer(made: Mapping[str, Any]) -> dict[str, Any]:
    """Write the pairs to `out`, their statistics beside them; returns the statistics."""
    console = Console()
    out = Path(made["out"])
    if (made["checkpoint"] is None) == (made["from"] is None):
        raise UserError(
            f"checkpoint={made['checkpoint']} and from={made['from']}: expected one of them, checkpoint=RUN whose "
            "answers are ranked or from=FILE.jsonl of annotated pairs"
        )
    if out.exists():
        raise UserError(f"out={out} is there already: expected the name of a new file")
    found = sample_pairs(made, console) if made["from"] is None else read_pairs(made["from"])
    counted = statistics(found)
    show(console, found, counted)
    if not found.pairs:
        raise UserError("there is no pair to write; of a model's answers, more n_samples or less margin give more")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps(preference(pair, out.parent), ensure_ascii=False) for pair in found.pairs)
    out.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    beside = out.with_suffix(".statistics.json")
    beside.write_text(json.dumps(counted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"wrote {out} and {beside.name}", markup=False, highlight=False, soft_wrap=True)
    return counted


def run(made: config.Config) -> None:
    """Run `auris prefer`."""
    prefer(made)
