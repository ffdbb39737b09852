"""What a page says: gathered from a run's or a study's files, before any of it is HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auris import results
from auris.errors import UserError
from auris.evaluation import answer_cache
from auris.results.html import confusion, examples, recordings, tables
from auris.results.html.recordings import Players

if TYPE_CHECKING:
    import pandas as pd

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

    @property
    def benchmarks(self) -> dict[str, list[Section]]:
        """The sections of each benchmark."""
        names = dict.fromkeys(section.benchmark for section in self.sections)
        return {name: [section for section in self.sections if section.benchmark == name] for name in names}


def of_run(run: Path, worst: int, players: Players) -> Page:
    """Raises ValueError for a run that is not evaluated."""
    scores = results.scores(run)
    if not scores:
        raise UserError(f"{run} has no scores; evaluate it: auris evaluate checkpoint={run}")
    study, arm, seed = (scores[0][key] for key in ("study", "arm", "seed"))
    lines = results.predictions_of(run, arm, seed)
    names, signatures = {(arm, seed): "answer"}, _signatures(scores)
    sections, notes = _sections(lines, {(arm, seed): run}, names, [arm], signatures, worst, players)
    return Page(
        title=f"{study}: {arm}, seed {seed}",
        question=results.question(run.parent.parent),
        tables=tables.of_run(scores),
        sections=sections,
        notes=[*_skipped(run), *notes, *players.notes],
        script=results.reproduce(run) if (run / "recipe.yaml").is_file() else "",
    )


def of_study(root: Path, arms: Sequence[str] | None, worst: int, players: Players) -> Page:
    """Raises as `results.table`."""
    frame = results.table(root, arms)
    arms = frame.attrs["arms"]
    found = [(arm, seed, run) for arm, seed, run in results.runs_of(root) if arm in arms]
    runs = {(arm, seed): run for arm, seed, run in sorted(found, key=lambda one: (arms.index(one[0]), one[1]))}
    scores = [row for run in runs.values() for row in results.scores(run)]
    lines = results.predictions(root)
    lines = lines[lines["arm"].isin(arms)]
    seeds = lines["seed"].nunique()
    names = {(arm, seed): f"{arm}, seed {seed}" if seeds > 1 else arm for arm, seed in runs}
    sections, notes = _sections(lines, runs, names, arms, _signatures(scores), worst, players)
    states = results.status(root)
    waiting = [
        f"{row['arm']}, seed {row['seed']}, is not evaluated: {row['state']}, step {row['step']} of {row['of']}"
        for row in states[states["state"] != "evaluated"].to_dict("records")
    ]
    answered = set(zip(lines["arm"], lines["seed"], strict=True))
    return Page(
        title=f"Study {root.name}",
        question=results.question(root),
        tables=tables.of_study(frame),
        sections=sections,
        notes=[*waiting, *frame.attrs["notes"], *notes, *players.notes],
        systems=[names[key] for key in runs if key in answered],
    )


def _sections(
    lines: pd.DataFrame,
    runs: Mapping[tuple[str, int], Path],
    names: Mapping[tuple[str, int], str],
    arms: Sequence[str],
    signatures: Mapping[tuple[str, str, str], str],
    worst: int,
    players: Players,
) -> tuple[list[Section], list[str]]:
    if lines.empty:
        return [], ["no predictions are kept, so there are neither examples nor matrices"]
    chosen = {
        key: examples.choose(of_group, worst) for key, of_group in lines.groupby(["benchmark", "group"], sort=False)
    }
    rows, notes = _rows(lines, chosen, runs)
    sections = []
    for number, ((benchmark, group), ranked) in enumerate(chosen.items(), 1):
        of_group = lines[(lines["benchmark"] == benchmark) & (lines["group"] == group)]
        matrices = [
            confusion.matrix(of_group[of_group["arm"] == arm], arm, metric)
            for metric in confusion.METRICS
            if metric in set(of_group["metric"])
            for arm in arms
            if arm in set(of_group["arm"])
        ]
        shown = examples.show(of_group, ranked, rows[benchmark], names, players) if ranked else []
        signature = signatures.get((benchmark, group, ranked.metric), "") if ranked else ""
        sections.append(Section(f"task-{number}", benchmark, group, signature, matrices, ranked, shown))
    return sections, notes


def _rows(
    lines: pd.DataFrame, chosen: Mapping[tuple[str, str], examples.Worst | None], runs: Mapping[tuple[str, int], Path]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The chosen rows of each benchmark, found again through the first run that answered it."""
    rows: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for benchmark in lines["benchmark"].unique():
        first = lines[lines["benchmark"] == benchmark].iloc[0]
        ids = {name for key, ranked in chosen.items() if key[0] == benchmark and ranked for name in ranked.ids}
        rows[benchmark], said = recordings.find(runs[first["arm"], first["seed"]], benchmark, ids)
        if lost := len(ids - rows[benchmark].keys()):
            said.append(f"{benchmark}: {lost} of the {len(ids)} rows shown are not in the files that the run names")
        notes += said
    return rows, notes


def _signatures(scores: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], str]:
    return {(row["benchmark"], row["task"], row["metric"]): row["signature"] for row in scores}


def _skipped(run: Path) -> list[str]:
    """Rows that are not in every score, and why."""
    notes = []
    for name, evaluation in answer_cache.load_evaluations(run).items():
        skipped = evaluation.skipped
        notes += [f"{name}: {row} has no answer: {reason}" for row, reason in list(skipped.items())[:SKIPPED]]
        if len(skipped) > SKIPPED:
            notes.append(f"{name}: {len(skipped) - SKIPPED} more rows have no answer")
    return notes
