"""Content of a page. It is collected from the files of a run or study and then rendered as HTML (`template`)."""

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

MAX_SKIPPED = 20  # maximum number of rows without a response that the notes list


@dataclass(frozen=True)
class Section:
    """Part of a page about one group of test rows of a benchmark.

    Attributes:
        anchor: Anchor of the section on the page.
        benchmark: The benchmark.
        group: The group of rows, such as `asr en`.
        signature: How the metric that ranks the rows is computed; empty if it is unknown.
        matrices: Confusion matrices, one for each arm and accuracy.
        worst: The rows with the worst scores; None if the metric has no scores of individual rows.
        examples: These rows with their responses.
    """

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
        question: The question that the study asks.
        tables: Tables of scores.
        sections: Confusion matrices and examples, for each group of rows.
        notes: Sentences about what is missing or cannot be compared.
        script: On the page of a run, a shell script that reproduces it.
        systems: On the page of a study, the names of the evaluated systems.
    """

    title: str
    question: str
    tables: list[tables.Table]
    sections: list[Section]
    notes: list[str]
    script: str = ""
    systems: list[str] = field(default_factory=list)


def build_run_page(run: Path, n_worst: int, players: Players) -> Page:
    """Return the page of a run.

    Args:
        run: The run's directory.
        n_worst: Number of rows to show for each group.
        players: Collection to which the audio of the page is added.

    Raises:
        UserError: The run is not evaluated.
    """
    scores = runs.read_results(run)
    if not scores:
        raise UserError(f"{run} has no scores; evaluate it: auris evaluate checkpoint={run}")
    study, arm, seed = scores[0].study, scores[0].arm, scores[0].seed
    predictions = runs.read_predictions(run, arm, seed)
    sections, notes = _sections(predictions, {(arm, seed): run}, {(arm, seed): "answer"}, scores, n_worst, players)
    return Page(
        title=f"{study}: {arm}, seed {seed}",
        question=runs.question(run.parent.parent),
        tables=tables.build_run_tables(scores),
        sections=sections,
        notes=[*_skipped_row_notes(run), *notes, *players.notes],
        script=runs.reproduce(run) if (run / "recipe.yaml").is_file() else "",
    )


def build_study_page(root: Path, arms: Sequence[str] | None, n_worst: int, players: Players) -> Page:
    """Return the page of a study.

    Args:
        root: The study's directory.
        arms: Arms to compare; None: all arms with predictions.
        n_worst: Number of rows to show for each group.
        players: Collection to which the audio of the page is added.

    Raises:
        UserError: An arm has no predictions.
    """
    frame = table(root, arms)
    arm_names: list[str] = frame.attrs["arms"]
    all_runs = [(arm_names.index(arm), seed, run) for arm, seed, run in runs.list_runs(root) if arm in arm_names]
    run_dirs = {(arm_names[arm_index], seed): run for arm_index, seed, run in sorted(all_runs)}
    scores = [row for run in run_dirs.values() for row in runs.read_results(run)]
    predictions = [row for (arm, seed), run in run_dirs.items() for row in runs.read_predictions(run, arm, seed)]
    has_several_seeds = len({row.seed for row in predictions}) > 1
    names = {(arm, seed): f"{arm}, seed {seed}" if has_several_seeds else arm for arm, seed in run_dirs}
    sections, notes = _sections(predictions, run_dirs, names, scores, n_worst, players)
    progress_notes = [f"not evaluated yet: {line}" for line in runs.unevaluated(root)]
    evaluated = {(row.arm, row.seed) for row in predictions}
    return Page(
        title=f"Study {root.name}",
        question=runs.question(root),
        tables=tables.build_study_tables(frame),
        sections=sections,
        notes=[*progress_notes, *frame.attrs["notes"], *notes, *players.notes],
        systems=[names[key] for key in run_dirs if key in evaluated],
    )


def _sections(
    predictions: Sequence[RunPrediction],
    run_dirs: Mapping[tuple[str, int], Path],
    names: Mapping[tuple[str, int], str],
    scores: Sequence[ResultRow],
    n_worst: int,
    players: Players,
) -> tuple[list[Section], list[str]]:
    """Return the sections of a page, and notes about rows that cannot be found.

    Args:
        predictions: All predictions of the systems.
        run_dirs: The run directory of each system by arm and seed.
        names: Names of the systems by arm and seed.
        scores: All result rows of the systems.
        n_worst: Number of rows to show for each group.
        players: Collection to which the audio of the page is added.
    """
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
        chosen = {group: examples.choose_worst_rows(members, n_worst) for group, members in groups.items()}
        ids = {row_id for worst_rows in chosen.values() if worst_rows for row_id in worst_rows.ids}
        first = next(row for row in predictions if row.benchmark == benchmark)
        rows, problems = recordings.find_rows(run_dirs[first.arm, first.seed], benchmark, ids)
        notes += problems
        if n_missing := len(ids - rows.keys()):
            notes.append(f"{benchmark}: {n_missing} of the {len(ids)} rows shown are not in the manifests of the run")
        for group, members in groups.items():
            by_arm = {arm: [row.prediction for row in members if row.arm == arm] for arm, _ in run_dirs}
            matrices = [
                confusion.build_matrix(arm_predictions, arm, metric)
                for metric in confusion.METRICS
                for arm, arm_predictions in by_arm.items()
                if any(prediction.metric == metric for prediction in arm_predictions)
            ]
            worst_rows = chosen[group]
            shown = examples.build_examples(members, worst_rows, rows, names, players) if worst_rows else []
            signature = signatures.get((benchmark, group, worst_rows.metric), "") if worst_rows else ""
            anchor = f"task-{len(sections) + 1}"
            sections.append(Section(anchor, benchmark, group, signature, matrices, worst_rows, shown))
    return sections, notes


def _skipped_row_notes(run: Path) -> list[str]:
    """Return notes about the rows of a run that have no response."""
    from auris.evaluation import answer_cache

    notes = []
    for name, evaluation in answer_cache.load_evaluations(run).items():
        skipped = evaluation.skipped
        notes += [f"{name}: {row_id} has no response: {why}" for row_id, why in list(skipped.items())[:MAX_SKIPPED]]
        if len(skipped) > MAX_SKIPPED:
            notes.append(f"{name}: {len(skipped) - MAX_SKIPPED} more rows have no response")
    return notes
