"""Responses to dialogues to predictions that a judge makes, in addition to those of the tasks' own metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import Progress, track

from auris.data.rows import language
from auris.errors import UserError
from auris.evaluation.answer_cache import Response
from auris.evaluation.predictions import prediction
from auris.metrics.judges import air_bench
from auris.metrics.judges.rating import Judge, Unrated
from auris.metrics.measures import row_stats
from auris.metrics.records import Prediction
from auris.text.console import print_plain

AnyJudge = Judge | air_bench.Judge

AVERAGE = "average"  # of AIR-Bench's four groups


def rate(responses: Sequence[Response], judge: AnyJudge, console: Console) -> tuple[list[Prediction], dict[str, str]]:
    """Return the predictions of the judge's points, and by row id why some responses have none."""
    if isinstance(judge, air_bench.Judge):
        return _compare(responses, judge, console)
    predictions, unrated = [], {}
    for row, text, _ in track(responses, description="rating", console=console):
        try:
            stats = row_stats("judged", judge(row.labels, text), "", language(row))
        except Unrated as error:
            unrated[row.id] = str(error)
            continue
        predictions.append(prediction(row, "judged", stats, text, row.labels["text"]))
    return predictions, unrated


def signatures(judge: AnyJudge | None) -> dict[str, str]:
    """Return by metric how a judge's scores are computed."""
    if isinstance(judge, air_bench.Judge):
        return judge.signatures
    return {} if judge is None else {"judged": judge.signature}


# --- AIR-Bench's chat protocol ------------------------------------------------------------------------------------


def _compare(
    responses: Sequence[Response], judge: air_bench.Judge, console: Console
) -> tuple[list[Prediction], dict[str, str]]:
    """Rate the responses against the reference, in both orders.

    Raises:
        UserError: No row belongs to AIR-Bench's chat part.
    """
    problems = {response.row.id: air_bench.problem(response.row.labels) for response in responses}
    unrated = {name: problem for name, problem in problems.items() if problem}
    usable = [response for response in responses if response.row.id not in unrated]
    if not usable:
        raise UserError(
            f"no dialogue is one of AIR-Bench's chat part ({next(iter(unrated.values()), 'there are none')}): "
            "judge=model rates any dialogue"
        )
    answers = [(response.row.labels, response.content) for response in usable]
    estimate = judge.estimate(answers)
    print_plain(console, f"judge: {estimate}")
    with Progress(console=console) as progress:
        task = progress.add_task("judging", total=estimate.requests)
        all_replies = judge.judge(answers, done=lambda: progress.advance(task))
    names = {response.row.labels["task_name"] for response in usable}
    is_complete = {air_bench.GROUPS[name] for name in names} == set(air_bench.GROUPS.values())
    predictions = []
    for (row, text, _), replies in zip(usable, all_replies, strict=True):
        failures = [air_bench.failure(reply) for reply in replies]
        name = row.labels["task_name"]
        for metric in air_bench.METRICS:
            one = prediction(row, metric, air_bench.count(metric, replies, name), text, row.labels["answer_gt"])
            one = replace(one, replies=list(replies), failures=failures)
            predictions += [replace(one, group=group) for group in _groups(name, is_complete)]
    for line in _summary(predictions):
        print_plain(console, line)
    return predictions, unrated


def _groups(task_name: str, is_complete: bool) -> list[str]:
    """Return the groups that a row counts in; the average only if no group is missing in the data."""
    group, _, part = air_bench.GROUPS[task_name].partition("/")
    names = dict.fromkeys((group, part, AVERAGE) if is_complete else (group, part))
    return [f"chat {name}" for name in names]


def _summary(predictions: Sequence[Prediction]) -> list[str]:
    """Return how many replies failed and why, and how often the order of the answers changes the verdict."""
    by_row = {one.id: one for one in predictions if one.metric == "judge_flips"}
    failures = Counter(failure for one in by_row.values() for failure in one.failures if failure)
    kinds = ", ".join(f"{kind} {n}" for kind, n in failures.most_common())
    flipped, read = (int(sum(one.stats[k] for one in by_row.values())) for k in (0, 1))
    return [
        f"judge: {failures.total()} of {len(air_bench.ORDERS) * len(by_row)} replies without points"
        + (f": {kinds}" if kinds else ""),
        f"judge: the order of the two answers turns the verdict on {flipped} of {read} rows read in both",
    ]
