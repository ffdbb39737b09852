"""What a page says: gathered from a run's or a study's files, before any of it is HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from auris.errors import UserError
from auris.metrics.records import ResultRow
from auris.results import runs
from auris.results.html import confusion, examples, recordings, tables
from auris.results.html.recordings import Players
from auris.results.runs import Scored
from auris.results.tables import table

SKIPPED = 20  # rows without an answer that are named; all are counted


@dataclass(frozen=True)
class Section:
    """One group of one benchmark."""

    anchor: str
    benchmark: str
    group: str
    signature: str
    matrices: list[confusion.Matrix]
    worst: examples.Worst | None
    examples: list[examples.Example]


@dataclass(frozen=True)
class Page:
    title: str
    question: str
    tables: list[tables.Table]
    sections: list[Section]
    notes: list[str]
    script: str = ""  # how to make a run again
    systems: list[str] = field(default_factory=list)


def of_run(run: Path, worst: int, players: Players) -> Page:
    """Raises ValueError for a run that is not evaluated."""
    scores = runs.scores(run)
    if not scores:
        raise UserError(f"{run} has no scores; evaluate it: auris evaluate checkpoint={run}")
    study, arm, seed = scores[0].study, scores[0].arm, scores[0].seed
    scored = runs.predictions_of(run, arm, seed)
    sections, notes = _sections(scored, {(arm, seed): run}, {(arm, seed): "answer"}, scores, worst, players)
    return Page(
        title=f"{study}: {arm}, seed {seed}",
        question=runs.question(run.parent.parent),
        tables=tables.of_run(scores),
        sections=sections,
        notes=[*_skipped(run), *notes, *players.notes],
        script=runs.reproduce(run) if (run / "recipe.yaml").is_file() else "",
    )


def of_study(root: Path, arms: Sequence[str] | None, worst: int, players: Players) -> Page:
    """Raises as `results.table`."""
    frame = table(root, arms)
    arms = frame.attrs["arms"]
    chosen = [(arm, seed, run) for arm, seed, run in runs.runs_of(root) if arm in arms]
    systems = {(arm, seed): run for arm, seed, run in sorted(chosen, key=lambda one: (arms.index(one[0]), one[1]))}
    scores = [row for run in systems.values() for row in runs.scores(run)]
    scored = [one for (arm, seed), run in systems.items() for one in runs.predictions_of(run, arm, seed)]
    several = len({one.seed for one in scored}) > 1
    names = {(arm, seed): f"{arm}, seed {seed}" if several else arm for arm, seed in systems}
    sections, notes = _sections(scored, systems, names, scores, worst, players)
    waiting = [f"not evaluated yet: {run}" for run in runs.unevaluated(root)]
    answered = {(one.arm, one.seed) for one in scored}
    return Page(
        title=f"Study {root.name}",
        question=runs.question(root),
        tables=tables.of_study(frame),
        sections=sections,
        notes=[*waiting, *frame.attrs["notes"], *notes, *players.notes],
        systems=[names[key] for key in systems if key in answered],
    )


def _sections(
    scored: Sequence[Scored],
    systems: Mapping[tuple[str, int], Path],
    names: Mapping[tuple[str, int], str],
    scores: Sequence[ResultRow],
    worst: int,
    players: Players,
) -> tuple[list[Section], list[str]]:
    if not scored:
        return [], ["no predictions are kept, so there are neither examples nor matrices"]
    signatures = {(row.benchmark, row.task, row.metric): row.signature for row in scores}
    sections: list[Section] = []
    notes: list[str] = []
    for benchmark in dict.fromkeys(one.benchmark for one in scored):
        groups: dict[str, list[Scored]] = {}
        for one in scored:
            if one.benchmark == benchmark:
                groups.setdefault(one.prediction.group, []).append(one)
        chosen = {group: examples.choose(of_group, worst) for group, of_group in groups.items()}
        ids = {name for ranked in chosen.values() if ranked for name in ranked.ids}
        first = next(one for one in scored if one.benchmark == benchmark)
        rows, hindrances = recordings.find(systems[first.arm, first.seed], benchmark, ids)
        notes += hindrances
        if lost := len(ids - rows.keys()):
            notes.append(f"{benchmark}: {lost} of the {len(ids)} rows shown are not in the files that the run names")
        for group, of_group in groups.items():
            by_arm = {arm: [one.prediction for one in of_group if one.arm == arm] for arm, _ in systems}
            matrices = [
                confusion.matrix(predictions, arm, metric)
                for metric in confusion.METRICS
                for arm, predictions in by_arm.items()
                if any(one.metric == metric for one in predictions)
            ]
            ranked = chosen[group]
            shown = examples.show(of_group, ranked, rows, names, players) if ranked else []
            signature = signatures.get((benchmark, group, ranked.metric), "") if ranked else ""
            anchor = f"task-{len(sections) + 1}"
            sections.append(Section(anchor, benchmark, group, signature, matrices, ranked, shown))
    return sections, notes


def _skipped(run: Path) -> list[str]:
    """Rows that are not in every score, and why."""
    from auris.evaluation import answer_cache

    notes = []
    for name, evaluation in answer_cache.load_evaluations(run).items():
        skipped = evaluation.skipped
        notes += [f"{name}: {row} has no answer: {reason}" for row, reason in list(skipped.items())[:SKIPPED]]
        if len(skipped) > SKIPPED:
            notes.append(f"{name}: {len(skipped) - SKIPPED} more rows have no answer")
    return notes
