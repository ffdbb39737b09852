"""What a page says: gathered from a run's or a study's files, before any of it is HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auris import kept, reporting, results, statistics
from auris.measures import MEASURES, display
from auris.report import confusion, examples, recordings
from auris.report.recordings import Players
from auris.results import format_score

if TYPE_CHECKING:
    import pandas as pd

SKIPPED = 20  # rows without an answer that are named; all are counted


@dataclass(frozen=True)
class Table:
    """`lines`: groups of rows that belong together. A cell is its text, or its text and what it is (better, worse)."""

    caption: str
    head: list[str]
    lines: list[list[list[str | tuple[str, str]]]]
    said: str = ""


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
    tables: list[Table]
    sections: list[Section]
    notes: list[str]
    script: str = ""  # how to make a run again
    systems: list[str] = field(default_factory=list)


def of_run(run: Path, worst: int, players: Players) -> Page:
    """Raises ValueError for a run that is not evaluated."""
    scores = results.scores(run)
    if not scores:
        raise ValueError(f"{run} has no scores; evaluate it: python -m auris.evaluate checkpoint={run}")
    study, arm, seed = (scores[0][key] for key in ("study", "arm", "seed"))
    lines = results.predictions_of(run, arm, seed)
    names, signatures = {(arm, seed): "answer"}, _signatures(scores)
    sections, notes = _sections(lines, {(arm, seed): run}, names, [arm], signatures, worst, players)
    return Page(
        title=f"{study}: {arm}, seed {seed}",
        question=results.question(run.parent.parent),
        tables=_score_tables(scores),
        sections=sections,
        notes=[*_skipped(run), *notes, *players.notes],
        script=results.reproduce(run) if (run / "recipe.yaml").is_file() else "",
    )


def of_study(root: Path, arms: Sequence[str] | None, worst: int, players: Players) -> Page:
    """Raises as `results.table`."""
    frame = results.table(root, arms)
    arms = frame.attrs["arms"]
    runs = {(arm, seed): run for arm, seed, run in results.runs_of(root) if arm in arms}
    scores = [row for run in runs.values() for row in results.scores(run)]
    lines = results.predictions(root)
    lines = lines[lines["arm"].isin(arms)]
    seeds = lines["seed"].nunique()
    names = {(arm, seed): f"{arm}, seed {seed}" if seeds > 1 else arm for arm, seed in runs}
    sections, notes = _sections(lines, runs, names, arms, _signatures(scores), worst, players)
    found = results.status(root)
    waiting = [
        f"{row['arm']}, seed {row['seed']}, is not evaluated: {row['state']}, step {row['step']} of {row['of']}"
        for row in found[found["state"] != "evaluated"].to_dict("records")
    ]
    return Page(
        title=f"Study {root.name}",
        question=results.question(root),
        tables=[_study_table(frame)],
        sections=sections,
        notes=[*waiting, *frame.attrs["notes"], *notes, *players.notes],
        systems=[names[key] for key in runs if key in set(zip(lines["arm"], lines["seed"], strict=True))],
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


def _score_tables(scores: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A run's own result rows, as its evaluations wrote them."""
    dropped = {(row["benchmark"], row["task"], row["metric"]): row for row in scores if row["split"] == "drop"}
    tables = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in scores):
        has_drops = any(key[0] == benchmark for key in dropped)
        head = ["task", "metric", "score", "95 % interval", *["lost"][:has_drops], "rows", "shows"]
        lines = []
        for row in scores:
            if row["benchmark"] != benchmark or row["split"] == "drop":
                continue
            metric, units = row["metric"], row.get("units", "")
            value, low, high = (_shown(metric, row[part]) for part in ("value", "low", "high"))
            lost = _lost(dropped.get((benchmark, row["task"], metric)))
            n = str(row["n"]) if not units or units.endswith(" rows") else f"{row['n']} ({units})"
            cells = [row["task"], _labelled(metric), f"{value} {MEASURES[metric].unit}", f"{low} to {high}"]
            cells += [*[lost][:has_drops], n, _shown(metric, row.get("detectable"))]
            lines.append([[*cells, row["provenance"], row["signature"]]])
        tables.append(Table(f"Benchmark {benchmark}", [*head, "provenance", "made by"], lines, reporting.SHOWS))
    return tables


def _study_table(frame: pd.DataFrame) -> Table:
    """A line of `results.table` is as many rows as there are arms."""
    first, *others = frame.attrs["arms"]
    judged = {tuple(row[:4]): row["verdict"] for _, row in results.verdicts_in(frame).iterrows()}
    has_drops = any(f"{arm} drop" in frame for arm in (first, *others))
    head = ["benchmark", "task", "metric", "rows", "arm", "score", *["lost"][:has_drops]]
    head += [f"difference to {first}", "p", "p (Holm)", "verdict"] if others else []
    lines = []
    for row in frame.to_dict("records"):
        line = []
        for arm in (first, *others):
            name, lost = f"{arm} - {first}", f"{arm} drop"
            cells = [row["benchmark"], row["group"], _labelled(row["metric"]), str(row["n"]), arm]
            cells += [format_score(row, arm), *[format_score(row, lost) if lost in row else "-"][:has_drops]]
            if arm == first:
                cells += [""] * 4 if others else []
            else:
                verdict = judged.get((row["benchmark"], row["group"], row["metric"], arm), "")
                kind = verdict if verdict in ("better", "worse") else ""
                cells += [(format_score(row, name), kind), *(_p(row[f"{name} {what}"]) for what in ("p", "p holm"))]
                cells.append((verdict, kind))
            line.append(cells)
        lines.append(line)
    said = (
        "Scores with 95 % bootstrap intervals over rows (speakers or recordings where known), ± standard deviation "
        "over seeds. p: paired permutation test; of twenty differences that are none, "
        f"{20 * statistics.LEVEL:.0f} has p < {statistics.LEVEL}; p (Holm) is corrected for the arms of a line. A "
        "verdict of better or worse needs several seeds: a difference beyond the noise of rows and of seeds."
    )
    return Table(f"Study, arms against {first}" if others else "Study", head, lines, said)


def _labelled(metric: str) -> str:
    known = MEASURES[metric]
    return f"{known.label} ({known.unit}) {'↑' if known.higher_is_better else '↓'}"


def _shown(metric: str, value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else display(metric, value)


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _lost(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    value, low, high = (display(row["metric"], row[part], "+") for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}], p {_p(row['p'])}"


def _skipped(run: Path) -> list[str]:
    """Rows that are not in every score, and why."""
    notes = []
    for name, facts in (kept.noted(run) if any((run / kept.FOLDER).glob("*.json")) else {}).items():
        skipped = facts["skipped"]
        notes += [f"{name}: {row} has no answer: {reason}" for row, reason in list(skipped.items())[:SKIPPED]]
        if len(skipped) > SKIPPED:
            notes.append(f"{name}: {len(skipped) - SKIPPED} more rows have no answer")
    return notes
