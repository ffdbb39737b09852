"""A study on the terminal: how far its runs are, its table, and the figures and files that are written next to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from auris.files import write_text
from auris.metrics import statistics
from auris.metrics.measures import MEASURES, display
from auris.results import cells
from auris.results.cells import Line
from auris.results.figures import plot_bars, plot_curves, provenance, save
from auris.results.runs import costs, curves, join, question, runs_of, unevaluated, write_hparams
from auris.results.tables import BEYOND_NOISE, markdown, table, verdicts, verdicts_in
from auris.text.console import print_plain

UNBOUNDED = 10_000  # columns of a terminal in which every table is as wide as it wants


def show_study(root: Path, arms: Sequence[str] | None, against: str, x: str) -> None:
    """Print the table of a study and write its files; for a study without an evaluated run only its curves.

    Args:
        root: directory of the study.
        arms: those to compare; None or none: all that are evaluated.
        against: what arms are compared with, as `tables.verdicts` takes it.
        x: horizontal axis of the curves, as `figures.plot_curves` takes it.
    """
    console = Console()
    waiting, n_runs = unevaluated(root), len(runs_of(root))
    if waiting:
        print_plain(console, f"{len(waiting)} of {n_runs} runs are not evaluated yet:")
    for line in waiting:
        print_plain(console, f"  {line}")
    if not arms and len(waiting) == n_runs:
        written = save(plot_curves(root, arms, x), root / "curves") if len(curves(root)) else []
        print("\n".join(f"wrote {path}" for path in written))
        return
    frame = table(root, arms)
    judged = verdicts_in(frame) if against == "first" else verdicts(root, arms, against)
    written = _write(root, frame, judged, x)
    if said := question(root):
        print(said)
    show_table(console, frame, root.name)
    _show_verdicts(console, judged)
    print("\n".join(["", *(f"wrote {path}" for path in written)]))


def _write(root: Path, frame: pd.DataFrame, judged: pd.DataFrame, x: str) -> list[Path]:
    arms = frame.attrs["arms"]
    written = [root / name for name in ("table.csv", "table.md", "differences.csv", "costs.csv")]
    frame.to_csv(written[0], index=False)
    write_text(written[1], markdown(frame, verdicts_in(frame)))
    judged.to_csv(written[2], index=False)
    costs(root).to_csv(written[3], index=False)
    written += save(plot_bars(root, arms, frame), root / "bars")
    logged = set(curves(root)["arm"])
    if logged & set(arms):
        written += save(plot_curves(root, arms, x), root / "curves")
    if untrained := [arm for arm in arms if arm not in logged]:
        frame.attrs["notes"].append(f"no curves of {join(untrained)}: no TensorBoard events there")
    write_hparams(root)
    return written


def _show_verdicts(console: Console, judged: pd.DataFrame) -> None:
    """Print the differences that exceed both kinds of noise, and how many do not."""
    if judged.empty:
        return
    counts = ", ".join(f"{number} {verdict}" for verdict, number in judged["verdict"].value_counts().items())
    to = judged["against"].iloc[0] if judged["against"].nunique() == 1 else "the arm before"
    print_plain(console, f"Differences to {to}, of {len(judged)}: {counts}.")
    for row in judged[judged["verdict"].isin(BEYOND_NOISE)].to_dict("records"):
        point, low, high = (
            display(row["metric"], row[part], "+") for part in ("difference", "seeds low", "seeds high")
        )
        score = f"{row['benchmark']} {row['group']} {row['metric']}: {point}, over seeds [{low}, {high}]"
        print_plain(console, f"  {row['verdict']}: {row['arm']} - {row['against']}, {score}")


def show_table(console: Console, frame: pd.DataFrame, study: str) -> None:
    """Print a table for each benchmark, and below them what their numbers are."""
    for benchmark, of_benchmark in frame.groupby("benchmark", sort=False):
        lines = of_benchmark.to_dict("records")
        arms = [arm for arm in frame.attrs["arms"] if of_benchmark[arm].notna().any()]
        dropped = [arm for arm in arms if f"{arm} drop" in frame and of_benchmark[f"{arm} drop"].notna().any()]
        given = (f"Study {study}, benchmark {benchmark}", lines, arms, dropped, frame.attrs["arms"][0])
        wide = _one_line_per_score(*given)
        fits = Measurement.get(console, console.options.update(width=UNBOUNDED), wide).maximum <= console.width
        console.print(wide if fits else _one_line_per_arm(*given))
    spread = "; ± standard deviation over seeds" if frame[[f"{arm} sd" for arm in arms]].notna().any(axis=None) else ""
    units = {name: MEASURES[name].unit for name in frame["metric"]}
    others = "".join(f", {name} {unit}" for name, unit in units.items() if unit != "%")
    drawn = "rows, or speakers or recordings where ten or more are known and shared"
    legend = f"Scores in %{others} [95 % bootstrap interval over {drawn}]{spread}; ↑ higher is better, ↓ lower."
    notes = (f"note: {note}" for note in frame.attrs["notes"])
    for line in (legend, *_tested(frame), *_judges(frame), *_win_rates(frame), provenance(frame), *notes):
        print_plain(console, line)


def _one_line_per_score(
    title: str, lines: Sequence[Line], arms: Sequence[str], dropped: Sequence[str], first: str
) -> Table:
    """The arms side by side, then their differences to the first one."""
    columns = [*arms, *(f"{arm} - {first}" for arm in arms if arm != first), *(f"{arm} drop" for arm in dropped)]
    table = _empty(title, "n", *columns)
    for line in lines:
        table.add_row(_name(line), str(line["n"]), *(_cell(line, column) for column in columns))
    return table


def _one_line_per_arm(
    title: str, lines: Sequence[Line], arms: Sequence[str], dropped: Sequence[str], first: str
) -> Table:
    """The arms of a score below each other."""
    table = _empty(title, "score", f"difference to {first}", *(["drop"] if dropped else []))
    for line in lines:
        table.add_row(f"{_name(line)}, n={line['n']}")
        for arm in arms:
            difference = "" if arm == first else _cell(line, f"{arm} - {first}")
            lost = [_cell(line, f"{arm} drop") if arm in dropped else ""] if dropped else []
            table.add_row(f"  {arm}", _cell(line, arm), difference, *lost)
    return table


def _empty(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("task", overflow="fold")
    for column in columns:
        header = column.replace(" - ", "\n- ").replace(" to ", "\nto ")  # no wider than what stands below
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _name(line: Line) -> str:
    return f"{line['group']}, {line['metric']} {cells.arrow(line['metric'])}"


def _cell(line: Line, column: str) -> Text:
    """A score, or a difference in the colour of its direction if its interval leaves out 0."""
    text = Text(cells.score(line, column))
    low, high = line[f"{column} low"], line[f"{column} high"]
    if " - " in column and not np.isnan(low) and not low <= 0 <= high:
        better = (low > 0) == MEASURES[line["metric"]].higher_is_better
        text.stylize(f"bold {'green' if better else 'red'}")
    return text


def _tested(frame: pd.DataFrame) -> Iterator[str]:
    """How many differences are significant, each for itself and corrected for the number of arms."""
    first, *others = frame.attrs["arms"]
    alone, holm = (frame[[f"{arm} - {first} {kind}" for arm in others]].to_numpy(float) for kind in ("p", "p holm"))
    if n := np.count_nonzero(~np.isnan(alone)):
        found = [np.count_nonzero(p < statistics.LEVEL) for p in (alone, holm)]
        corrected = f", {found[1]} corrected for the {len(others)} arms of a line (Holm)" if len(others) > 1 else ""
        yield (
            f"Paired permutation test: {found[0]} of {n} differences are significant at p < {statistics.LEVEL}"
            f"{corrected}; about {statistics.LEVEL * n:.0f} are expected by chance."
        )


def _judges(frame: pd.DataFrame) -> Iterator[str]:
    """Who gave points, in every table that shows some."""
    rows = frame[frame["metric"].str.startswith("judge")]
    yield from sorted({f"{row['metric']}: {row['signature']}" for row in rows.to_dict("records")})


def _win_rates(frame: pd.DataFrame) -> Iterator[str]:
    """How often a judge preferred an arm's answer to the first arm's."""
    first, *others = frame.attrs["arms"]
    for line in frame[frame["metric"] == "judged"].to_dict("records"):
        for arm in others:
            share, low, high = (100 * line[f"{arm} wins{part}"] for part in ("", " low", " high"))
            if not np.isnan(share):
                what = f"{arm} over {first}, {line['group']}, ties half"
                yield f"Win rate of {what}: {share:.1f} % [{low:.1f}, {high:.1f}] ({line['signature']})"
