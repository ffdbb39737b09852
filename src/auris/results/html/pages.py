"""Content of a page, collected from the files of a run or study before it is rendered as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from auris.errors import UserError
from auris.metrics.records import ResultRow
from auris.results import runs
from auris.results.html import confusion, examples, recordings, tables
from auris.results.html.recordings import Players
from auris.results.runs import RunPrediction
from auris.results.tables import table

MAX_SKIPPED = 20  # rows without a response that are listed


@dataclass(frozen=True)
class Section:
    """Content about one group of one benchmark."""

    anchor: str
    benchmark: str
    group: str
    signature: str
    matrices: list[confusion.Matrix]
    worst: examples.WorstRows | None
    examples: list[examples.Example]


@dataclass(frozen=True)
class Page:
    """Content of a page.

    Attributes:
        title: The title.
        question: The study's question.
        tables: Tables of scores.
        sections: Confusion matrices and examples by group.
        notes: Sentences about what is missing or cannot be compared.
        script: Shell script that reproduces a run.
        systems: Names of the systems of a study.
    """

    title: str
    question: str
    tables: list[tables.Table]
    sections: list[Section]
    notes: list[str]
    script: str = ""
    systems: list[str] = field(default_factory=list)


def build_run_page(run: Path, worst: int, players: Players) -> Page:
    """Return the page of a run.

    Args:
        run: The run's directory.
        worst: Number of rows to show for each group.
        players: The audio of the page.

    Raises:
        UserError: The run is not evaluated.
    """
    scores = runs.read_results(run)
    if not scores:
        raise UserError(f"{run} has no scores; evaluate it: auris evaluate checkpoint={run}")
    study, arm, seed = scores[0].study, scores[0].arm, scores[0].seed
    predictions = runs.read_predictions(run, arm, seed)
    sections, notes = _sections(predictions, {(arm, seed): run}, {(arm, seed): "answer"}, scores, worst, players)
    return Page(
        title=f"{study}: {arm}, seed {seed}",
        question=runs.question(run.parent.parent),
        tables=tables.build_run_tables(scores),
        sections=sections,
        notes=[*_skipped(run), *notes, *players.notes],
        script=runs.reproduce(run) if (run / "recipe.yaml").is_file() else "",
    )


def build_study_page(root: Path, arms: Sequence[str] | None, worst: int, players: Players) -> Page:
    """Return the page of a study.

    Args:
        root: The study's directory.
        arms: Arms to compare; None: all arms with predictions.
        worst: Number of rows to show for each group.
        players: The audio of the page.

    Raises:
        UserError: An arm has no predictions.
    """
    frame = table(root, arms)
    names_of_arms: list[str] = frame.attrs["arms"]
    all_runs = [
        (names_of_arms.index(arm), seed, run) for arm, seed, run in runs.list_runs(root) if arm in names_of_arms
    ]
    systems = {(names_of_arms[arm], seed): run for arm, seed, run in sorted(all_runs)}
    scores = [row for run in systems.values() for row in runs.read_results(run)]
    predictions = [row for (arm, seed), run in systems.items() for row in runs.read_predictions(run, arm, seed)]
    has_seeds = len({row.seed for row in predictions}) > 1
    names = {(arm, seed): f"{arm}, seed {seed}" if has_seeds else arm for arm, seed in systems}
    sections, notes = _sections(predictions, systems, names, scores, worst, players)
    waiting = [f"not evaluated yet: {run}" for run in runs.unevaluated(root)]
    evaluated = {(row.arm, row.seed) for row in predictions}
    return Page(
        title=f"Study {root.name}",
        question=runs.question(root),
        tables=tables.build_study_tables(frame),
        sections=sections,
        notes=[*waiting, *frame.attrs["notes"], *notes, *players.notes],
        systems=[names[key] for key in systems if key in evaluated],
    )


def _sections(
    predictions: Sequence[RunPrediction],
    systems: Mapping[tuple[str, int], Path],
    names: Mapping[tuple[str, int], str],
    scores: Sequence[ResultRow],
    worst: int,
    players: Players,
) -> tuple[list[Section], list[str]]:
    """Return the sections of a page, and notes about rows that cannot be found."""
    if not predictions:
        return [], ["there are no predictions, so the page has neither examples nor confusion matrices"]
    signatures = {(row.benchmark, row.task, row.metric): row.signature for row in scores}
    sections: list[Section] = []
    notes: list[str] = []
    for benchmark in dict.fromkeys(row.benchmark for row in predictions):
        groups: dict[str, list[RunPrediction]] = {}
        for row in predictions:
            if row.benchmark == benchmark:
                groups.setdefault(row.prediction.group, []).append(row)
        chosen = {group: examples.choose(members, worst) for group, members in groups.items()}
        ids = {name for ranked in chosen.values() if ranked for name in ranked.ids}
        first = next(row for row in predictions if row.benchmark == benchmark)
        rows, problems = recordings.find(systems[first.arm, first.seed], benchmark, ids)
        notes += problems
        if lost := len(ids - rows.keys()):
            notes.append(f"{benchmark}: {lost} of the {len(ids)} rows shown are not in the run's manifests")
        for group, members in groups.items():
            by_arm = {arm: [row.prediction for row in members if row.arm == arm] for arm, _ in systems}
            matrices = [
                confusion.build_matrix(own, arm, metric)
                for metric in confusion.METRICS
                for arm, own in by_arm.items()
                if any(prediction.metric == metric for prediction in own)
            ]
            ranked = chosen[group]
            shown = examples.build_examples(members, ranked, rows, names, players) if ranked else []
            signature = signatures.get((benchmark, group, ranked.metric), "") if ranked else ""
            anchor = f"task-{len(sections) + 1}"
            sections.append(Section(anchor, benchmark, group, signature, matrices, ranked, shown))
    return sections, notes


def _skipped(run: Path) -> list[str]:
    """Return notes about rows that are not in every score."""
    from auris.evaluation import answer_cache

    notes = []
    for name, evaluation in answer_cache.load_evaluations(run).items():
        skipped = evaluation.skipped
        notes += [f"{name}: {row} has no response: {reason}" for row, reason in list(skipped.items())[:MAX_SKIPPED]]
        if len(skipped) > MAX_SKIPPED:
            notes.append(f"{name}: {len(skipped) - MAX_SKIPPED} more rows have no response")
    return notes
