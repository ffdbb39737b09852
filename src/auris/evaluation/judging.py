"""What a judge makes of the answers to dialogues, as predictions beside those of the tasks' own scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, track

from auris.data.rows import Row, language
from auris.errors import UserError
from auris.metrics.judges import air_bench
from auris.metrics.judges.rating import Judge, Unrated
from auris.metrics.row_stats import row_stats

Answered = Mapping[str, tuple[Row, str]]
Found = tuple[list[dict[str, Any]], dict[str, str]]  # predictions, and by row why it has none
About = Callable[[Row, str], dict[str, Any]]  # what a prediction of a row and a metric begins with

AVERAGE = "average"  # of AIR-Bench's four groups


def rate(answered: Answered, judge: Judge | air_bench.Judge, about: About, console: Console) -> Found:
    """The judge's points of the answers, and why some have none."""
    if isinstance(judge, air_bench.Judge):
        return compare(answered, judge, about, console)
    predictions, unrated = [], {}
    for row, answer in track(answered.values(), description="rating", console=console):
        try:
            stats = row_stats("judged", judge(row.labels, answer), "", language(row))
        except Unrated as error:
            unrated[row.id] = str(error)
            continue
        facts = {"stats": stats, "hypothesis": answer, "reference": row.labels["text"]}
        predictions.append(about(row, "judged") | facts)
    return predictions, unrated


def signatures(judge: Judge | air_bench.Judge | None) -> dict[str, str]:
    """By metric, how a judge's numbers were made."""
    if isinstance(judge, air_bench.Judge):
        return judge.signatures
    return {} if judge is None else {"judged": judge.signature}


def compare(answered: Answered, judge: air_bench.Judge, about: About, console: Console) -> Found:
    """AIR-Bench's chat protocol: on the lines of its groups, of their parts, and of the average of all four.

    Raises ValueError if no row is one of AIR-Bench's chat part.
    """
    problems = {name: air_bench.problem(row.labels) for name, (row, _) in answered.items()}
    unrated = {name: problem for name, problem in problems.items() if problem}
    names = [name for name in answered if name not in unrated]
    if not names:
        raise UserError(
            f"no dialogue is one of AIR-Bench's chat part ({next(iter(unrated.values()), 'there are none')}): "
            "judge=model rates any dialogue"
        )
    answers = [(answered[name][0].labels, answered[name][1]) for name in names]
    estimate = judge.estimate(answers)
    console.print(f"judge: {estimate}", markup=False, highlight=False, soft_wrap=True)
    with Progress(console=console) as progress:
        task = progress.add_task("judging", total=estimate.requests)
        replies = judge.judge(answers, done=lambda: progress.advance(task))
    predictions = []
    for name, said in zip(names, replies, strict=True):
        row, answer = answered[name]
        kept = {"replies": list(said), "failures": [air_bench.failure(reply) for reply in said]}
        facts = {"id": name, "hypothesis": answer, "reference": row.labels["answer_gt"], **kept}
        for metric in air_bench.METRICS:
            stats = air_bench.count(metric, said, row.labels["task_name"])
            predictions.append(about(row, metric) | facts | {"stats": stats})
    predictions = _on_lines(predictions, {name: answered[name][0].labels["task_name"] for name in names})
    for sentence in _told(predictions):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return predictions, unrated


def _on_lines(predictions: Sequence[Mapping[str, Any]], tasks: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each prediction on the lines that it counts in: an average of four groups is none while one is missing."""
    complete = {air_bench.GROUPS[task] for task in tasks.values()} == set(air_bench.GROUPS.values())
    placed = []
    for prediction in predictions:
        group, _, part = air_bench.GROUPS[tasks[prediction["id"]]].partition("/")
        lines = dict.fromkeys((group, part, AVERAGE) if complete else (group, part))
        placed += [{**prediction, "group": f"chat {line}"} for line in lines]
    return placed


def _told(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many replies failed and by what, and how many verdicts the order turned."""
    rows = {prediction["id"]: prediction for prediction in predictions if prediction["metric"] == "judge_flips"}
    failures = Counter(failure for row in rows.values() for failure in row["failures"] if failure)
    said = ", ".join(f"{kind} {n}" for kind, n in failures.most_common())
    flipped, read = (int(sum(row["stats"][k] for row in rows.values())) for k in (0, 1))
    return [
        f"judge: {failures.total()} of {len(air_bench.ORDERS) * len(rows)} replies without points"
        + (f": {said}" if said else ""),
        f"judge: the order of the two answers turns the verdict on {flipped} of {read} rows read in both",
    ]
