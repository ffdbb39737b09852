"""Terminal output of `auris results`: progress of the runs, tables and comparisons; files written for the study."""

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
from auris.results.cells import Line, lines_of
from auris.results.figures import plot_bars, plot_curves, provenance, save
from auris.results.runs import costs, curves, join, list_runs, question, unevaluated, write_hparams
from auris.results.tables import BEYOND_NOISE, markdown, table, verdicts, verdicts_in
from auris.text.console import print_plain

UNBOUNDED = 10_000  # width of a terminal in which no table is wrapped


def show_study(root: Path, arms: Sequence[str] | None, against: str, x: str) -> None:
    """Print the table of a study and write its files. If no run is evaluated, write only the curves.

    Args:
        root: The study's directory.
        arms: Arms to compare; None or empty: all evaluated arms.
        against: What arms are compared with (see `tables.verdicts`).
        x: Horizontal axis of the curves (see `figures.plot_curves`).
    """
    console = Console()
    waiting, n_runs = unevaluated(root), len(list_runs(root))
    if waiting:
        print_plain(console, f"{len(waiting)} of {n_runs} runs are not evaluated yet:")
    for line in waiting:
        print_plain(console, f"  {line}")
    if not arms and len(waiting) == n_runs:
        written = save(plot_curves(root, arms, x), root / "curves") if len(curves(root)) else []
        print("\n".join(f"wrote {path}" for path in written))
        return
    frame = table(root, arms)
    differences = verdicts_in(frame) if against == "first" else verdicts(root, arms, against)
    written = _write(root, frame, differences, x)
    if text := question(root):
        print(text)
    show_table(console, frame, root.name)
    _show_verdicts(console, differences)
    print("\n".join(["", *(f"wrote {path}" for path in written)]))


def _write(root: Path, frame: pd.DataFrame, differences: pd.DataFrame, x: str) -> list[Path]:
    """Write tables, figures and TensorBoard's hyperparameters, and return the paths of tables and figures."""
    arms = frame.attrs["arms"]
    written = [root / name for name in ("table.csv", "table.md", "differences.csv", "costs.csv")]
    frame.to_csv(written[0], index=False)
    write_text(written[1], markdown(frame, verdicts_in(frame)))
    differences.to_csv(written[2], index=False)
    costs(root).to_csv(written[3], index=False)
    written += save(plot_bars(root, arms, frame), root / "bars")
    logged = set(curves(root)["arm"])
    if logged & set(arms):
        written += save(plot_curves(root, arms, x), root / "curves")
    if untrained := [arm for arm in arms if arm not in logged]:
        frame.attrs["notes"].append(f"no curves for {join(untrained)}: these runs have no TensorBoard events")
    write_hparams(root)
    return written


def _show_verdicts(console: Console, differences: pd.DataFrame) -> None:
    """Print how many differences have each verdict, and the ones that exceed the noise."""
    if differences.empty:
        return
    counts = ", ".join(f"{number} {verdict}" for verdict, number in differences["verdict"].value_counts().items())
    baseline = differences["against"].iloc[0] if differences["against"].nunique() == 1 else "the previous arm"
    print_plain(console, f"{len(differences)} differences to {baseline}: {counts}.")
    for row in lines_of(differences[differences["verdict"].isin(BEYOND_NOISE)]):
        point, low, high = (
            display(row["metric"], row[part], "+") for part in ("difference", "seeds low", "seeds high")
        )
        score = f"{row['benchmark']} {row['group']} {row['metric']}: {point}, over seeds [{low}, {high}]"
        print_plain(console, f"  {row['verdict']}: {row['arm']} - {row['against']}, {score}")


def show_table(console: Console, frame: pd.DataFrame, study: str) -> None:
    """Print a table for each benchmark, and a legend below."""
    all_arms = frame.attrs["arms"]
    for benchmark, rows in frame.groupby("benchmark", sort=False):
        arms = [arm for arm in all_arms if rows[arm].notna().any()]
        dropped = [arm for arm in arms if f"{arm} drop" in frame and rows[f"{arm} drop"].notna().any()]
        arguments = (f"Study {study}, benchmark {benchmark}", lines_of(rows), arms, dropped, all_arms[0])
        wide = _one_line_per_score(*arguments)
        fits = Measurement.get(console, console.options.update(width=UNBOUNDED), wide).maximum <= console.width
        console.print(wide if fits else _one_line_per_arm(*arguments))
    has_spread = bool(frame[[f"{arm} sd" for arm in all_arms]].notna().to_numpy().any())
    spread = "; ± standard deviation over seeds" if has_spread else ""
    units = {name: MEASURES[name].unit for name in frame["metric"]}
    other_units = "".join(f", {name} {unit}" for name, unit in units.items() if unit != "%")
    drawn = "rows, or over speakers or recordings if known and at least ten"
    legend = f"Scores in %{other_units} [95 % bootstrap interval over {drawn}]{spread}; ↑ higher is better, ↓ lower."
    notes = (f"note: {note}" for note in frame.attrs["notes"])
    for line in (legend, *_significance(frame), *_judges(frame), *_win_rates(frame), provenance(frame), *notes):
        print_plain(console, line)


def _one_line_per_score(
    title: str, lines: Sequence[Line], arms: Sequence[str], dropped: Sequence[str], first: str
) -> Table:
    """Return a table with the arms side by side, followed by their differences to the first one."""
    columns = [*arms, *(f"{arm} - {first}" for arm in arms if arm != first), *(f"{arm} drop" for arm in dropped)]
    table = _empty(title, "n", *columns)
    for line in lines:
        table.add_row(_name(line), str(line["n"]), *(_cell(line, column) for column in columns))
    return table


def _one_line_per_arm(
    title: str, lines: Sequence[Line], arms: Sequence[str], dropped: Sequence[str], first: str
) -> Table:
    """Return a table with the arms of a score below each other."""
    table = _empty(title, "score", f"difference to {first}", *(["drop"] if dropped else []))
    for line in lines:
        table.add_row(f"{_name(line)}, n={line['n']}")
        for arm in arms:
            difference = "" if arm == first else _cell(line, f"{arm} - {first}")
            drop = [_cell(line, f"{arm} drop") if arm in dropped else ""] if dropped else []
            table.add_row(f"  {arm}", _cell(line, arm), difference, *drop)
    return table


def _empty(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("task", overflow="fold")
    for column in columns:
        header = column.replace(" - ", "\n- ").replace(" to ", "\nto ")  # no wider than the cells
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _name(line: Line) -> str:
    return f"{line['group']}, {line['metric']} {cells.arrow(line['metric'])}"


def _cell(line: Line, column: str) -> Text:
    """Return a score. A difference whose interval excludes 0 is green if it is an improvement, otherwise red."""
    text = Text(cells.score(line, column))
    low, high = line[f"{column} low"], line[f"{column} high"]
    if " - " in column and not np.isnan(low) and not low <= 0 <= high:
        is_better = (low > 0) == MEASURES[line["metric"]].higher_is_better
        text.stylize(f"bold {'green' if is_better else 'red'}")
    return text


def _significance(frame: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence about the number of significant differences, also corrected for the number of arms."""
    first, *others = frame.attrs["arms"]
    single, holm = (frame[[f"{arm} - {first} {kind}" for arm in others]].to_numpy(float) for kind in ("p", "p holm"))
    if n := np.count_nonzero(~np.isnan(single)):
        significant = [np.count_nonzero(p < statistics.LEVEL) for p in (single, holm)]
        corrected = f", {significant[1]} after Holm's correction for {len(others)} arms" if len(others) > 1 else ""
        yield (
            f"Paired permutation test: {significant[0]} of {n} differences are significant at p < {statistics.LEVEL}"
            f"{corrected}; about {statistics.LEVEL * n:.0f} are expected by chance."
        )


def _judges(frame: pd.DataFrame) -> Iterator[str]:
    """Yield the signatures of the judges."""
    rows = frame[frame["metric"].str.startswith("judge")]
    yield from sorted({f"{row['metric']}: {row['signature']}" for row in lines_of(rows)})


def _win_rates(frame: pd.DataFrame) -> Iterator[str]:
    """Yield sentences about how often a judge preferred an arm's answer to the first arm's."""
    first, *others = frame.attrs["arms"]
    for line in lines_of(frame[frame["metric"] == "judged"]):
        for arm in others:
            share, low, high = (100 * line[f"{arm} wins{part}"] for part in ("", " low", " high"))
            if not np.isnan(share):
                pair = f"{arm} over {first}, {line['group']}, ties half"
                yield f"Win rate of {pair}: {share:.1f} % [{low:.1f}, {high:.1f}] ({line['signature']})"
