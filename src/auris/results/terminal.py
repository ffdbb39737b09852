"""Output of `auris results`: progress, tables and comparisons on the terminal; tables and figures in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from auris.metrics.measures import ERROR_HEADINGS, ERROR_NOTE, MEASURES, format_value
from auris.results import cells, readings
from auris.results.cells import Line, frame_rows
from auris.results.figures import describe_provenance, plot_bars, plot_curves, save_figure
from auris.results.runs import costs, curves, join, list_runs, question, unevaluated, write_hparams
from auris.results.stages import find_stages, plot_stages
from auris.results.tables import (
    BEYOND_NOISE,
    DROP_NOTE,
    format_markdown,
    table,
    tabulate_errors_of_arms,
    verdicts,
    verdicts_in,
    without_details,
)
from auris.text.console import print_plain

UNBOUNDED = 10_000  # width of an imaginary terminal in which no table is wrapped


def show_study(root: Path, arms: Sequence[str] | None, against: str, x: str) -> None:
    """Print the table of a study, and write its tables and figures. If no run is evaluated, only write the curves.

    Args:
        root: The study's directory.
        arms: Arms to compare; None or empty: all evaluated arms.
        against: The arm with which the arms are compared, `first` or `previous` (see `tables.verdicts`).
        x: Horizontal axis of the curves (see `figures.plot_curves`).
    """
    console = Console()
    progress_lines, n_runs = unevaluated(root), len(list_runs(root))
    if progress_lines:
        print_plain(console, f"{len(progress_lines)} of {n_runs} runs are not evaluated yet:")
    for line in progress_lines:
        print_plain(console, f"  {line}")
    if not arms and len(progress_lines) == n_runs:
        paths = save_figure(plot_curves(root, arms, x), root / "curves") if len(curves(root)) else []
        print("\n".join(f"wrote {path}" for path in paths))
        return
    frame = table(root, arms)
    differences = verdicts_in(frame) if against == "first" else verdicts(root, arms, against)
    of_readings = readings.compare_readings(root, arms)
    paths = _write_files(root, frame, differences, x)
    if not of_readings.empty:
        paths += _write_readings(root, of_readings, frame.attrs["arms"])
    if text := question(root):
        print(text)
    show_table(console, frame, root.name)
    _show_verdicts(console, differences)
    if not of_readings.empty:
        _show_readings(console, of_readings)
    print("\n".join(["", *(f"wrote {path}" for path in paths)]))


def _write_files(root: Path, frame: pd.DataFrame, differences: pd.DataFrame, x: str) -> list[Path]:
    """Write tables, figures and the data of TensorBoard's HPARAMS page; return the paths of tables and figures."""
    arms = frame.attrs["arms"]
    paths = [root / name for name in ("table.csv", "table.md", "differences.csv", "costs.csv")]
    frame.to_csv(paths[0], index=False)
    write_text(paths[1], format_markdown(frame, verdicts_in(frame)))
    differences.to_csv(paths[2], index=False)
    costs(root).to_csv(paths[3], index=False)
    paths += save_figure(plot_bars(root, arms, frame), root / "bars")
    arms_with_events = set(curves(root)["arm"])
    if arms_with_events & set(arms):
        paths += save_figure(plot_curves(root, arms, x), root / "curves")
    if arms_without_events := [arm for arm in arms if arm not in arms_with_events]:
        frame.attrs["notes"].append(f"no curves for {join(arms_without_events)}: these runs have no TensorBoard events")
    write_hparams(root)
    return paths


def _write_readings(root: Path, frame: pd.DataFrame, arms: Sequence[str]) -> list[Path]:
    """Write the table and the figure of readings, and the curves of the stages; return their paths."""
    paths = [root / name for name in ("readings.csv", "readings.md")]
    frame.to_csv(paths[0], index=False)
    write_text(paths[1], readings.format_markdown(frame))
    if not readings.of_language(frame).all():
        paths += save_figure(readings.plot_readings(root, frame), root / "readings")
    if any(any(run.path.glob("events.out.tfevents*")) for run in find_stages(root, arms)):
        paths += save_figure(plot_stages(root, arms), root / "stages")
    return paths


def _show_readings(console: Console, frame: pd.DataFrame) -> None:
    """Print the tables of readings and of controls of each arm, in brief."""
    for title, (head, rows) in (
        ("readings of the same rows, WER in %", readings.tabulate(frame, brief=True)),
        ("with other audio, WER in %", readings.tabulate_controls(frame, brief=True)),
        ("without audio", readings.tabulate_language(frame, brief=True)),
    ):
        for arm in dict.fromkeys(row[0] for row in rows):
            table = _build_empty_table(f"{arm}: {title}", *head[2:])
            for row in rows:
                if row[0] == arm:
                    table.add_row(*row[1:])
            console.print(table)
    print_plain(console, readings.NOTE)


def _show_verdicts(console: Console, differences: pd.DataFrame) -> None:
    """Print the number of differences for each verdict, and the differences with the verdict better or worse."""
    if differences.empty:
        return
    counts = ", ".join(f"{number} {verdict}" for verdict, number in differences["verdict"].value_counts().items())
    baseline = differences["against"].iloc[0] if differences["against"].nunique() == 1 else "the previous arm"
    print_plain(console, f"{len(differences)} differences to {baseline}: {counts}.")
    for row in frame_rows(differences[differences["verdict"].isin(BEYOND_NOISE)]):
        point, low, high = (
            format_value(row["metric"], row[part], "+") for part in ("difference", "seeds low", "seeds high")
        )
        score = f"{row['benchmark']} {row['group']} {row['metric']}: {point}, interval over seeds [{low}, {high}]"
        print_plain(console, f"  {row['verdict']}: {row['arm']} - {row['against']}, {score}")


def show_table(console: Console, frame: pd.DataFrame, study: str) -> None:
    """Print a table for each benchmark of a study, followed by a legend and notes."""
    all_arms = frame.attrs["arms"]
    has_drops = False
    error_rows = tabulate_errors_of_arms(frame)
    for benchmark, rows in without_details(frame).groupby("benchmark", sort=False):
        arms = [arm for arm in all_arms if rows[arm].notna().any()]
        arms_with_drop = [arm for arm in arms if f"{arm} drop" in frame and rows[f"{arm} drop"].notna().any()]
        has_drops |= bool(arms_with_drop)
        arguments = (f"Study {study}, benchmark {benchmark}", frame_rows(rows), arms, arms_with_drop, all_arms[0])
        wide_table = _build_wide_table(*arguments)
        fits = Measurement.get(console, console.options.update(width=UNBOUNDED), wide_table).maximum <= console.width
        console.print(wide_table if fits else _build_narrow_table(*arguments))
        if any(name == benchmark for name, _, _ in error_rows):
            console.print(_build_error_table(f"Speech tasks of {benchmark}, in %", error_rows, str(benchmark)))
    has_deviations = bool(frame[[f"{arm} sd" for arm in all_arms]].notna().to_numpy().any())
    deviations = "; ± standard deviation over seeds" if has_deviations else ""
    units = {metric: MEASURES[metric].unit for metric in frame["metric"]}
    other_units = "".join(f", {metric} {unit}" for metric, unit in units.items() if unit != "%")
    resampled = "rows, or over speakers or recordings if all are known and there are at least ten"
    legend = (
        f"Scores in %{other_units} [95 % bootstrap interval over {resampled}]{deviations}; ↑ higher is better, ↓ lower."
    )
    drops = [DROP_NOTE] if has_drops else []
    errors = [ERROR_NOTE] if error_rows else []
    notes = (f"note: {note}" for note in frame.attrs["notes"])
    for line in (
        legend,
        *drops,
        *errors,
        *_significance(frame),
        *_judges(frame),
        *_win_rates(frame),
        describe_provenance(frame),
        *notes,
    ):
        print_plain(console, line)


def _build_wide_table(
    title: str, lines: Sequence[Line], arms: Sequence[str], arms_with_drop: Sequence[str], first: str
) -> Table:
    """Return a table whose columns are the arms, the differences to the first arm, and the drops, in this order."""
    columns = [*arms, *(f"{arm} - {first}" for arm in arms if arm != first), *(f"{arm} drop" for arm in arms_with_drop)]
    table = _build_empty_table(title, "n", *columns)
    for line in lines:
        table.add_row(_row_heading(line), str(line["n"]), *(_format_cell(line, column) for column in columns))
    return table


def _build_narrow_table(
    title: str, lines: Sequence[Line], arms: Sequence[str], arms_with_drop: Sequence[str], first: str
) -> Table:
    """Return a table with a row for each arm, grouped by task and metric."""
    table = _build_empty_table(title, "score", f"difference to {first}", *(["drop"] if arms_with_drop else []))
    for line in lines:
        table.add_row(f"{_row_heading(line)}, n={line['n']}")
        for arm in arms:
            difference = "" if arm == first else _format_cell(line, f"{arm} - {first}")
            drop = [_format_cell(line, f"{arm} drop") if arm in arms_with_drop else ""] if arms_with_drop else []
            table.add_row(f"  {arm}", _format_cell(line, arm), difference, *drop)
    return table


def _build_error_table(title: str, error_rows: Mapping[tuple[str, str, str], Sequence[str]], benchmark: str) -> Table:
    """Return a table of error rates and their details with a row for each arm, grouped by task."""
    table = _build_empty_table(title, *ERROR_HEADINGS)
    last_task = ""
    for (name, task, arm), texts in error_rows.items():
        if name != benchmark:
            continue
        if task != last_task:
            table.add_row(task)
        table.add_row(f"  {arm}", *texts)
        last_task = task
    return table


def _build_empty_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("task", overflow="fold")
    for column in columns:
        header = column.replace(" - ", "\n- ").replace(" to ", "\nto ")  # line breaks keep headers as narrow as cells
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _row_heading(line: Line) -> str:
    return f"{line['group']}, {line['metric']} {cells.direction_arrow(line['metric'])}"


def _format_cell(line: Line, column: str) -> Text:
    """Return the text of a cell. Differences whose interval excludes 0 are green for improvements, otherwise red."""
    text = Text(cells.format_score(line, column))
    low, high = line[f"{column} low"], line[f"{column} high"]
    if " - " in column and not np.isnan(low) and not low <= 0 <= high:
        is_better = (low > 0) == MEASURES[line["metric"]].higher_is_better
        text.stylize(f"bold {'green' if is_better else 'red'}")
    return text


def _significance(frame: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence about the number of significant differences, with and without correction for several arms."""
    first, *others = frame.attrs["arms"]
    p, p_holm = (frame[[f"{arm} - {first} {suffix}" for arm in others]].to_numpy(float) for suffix in ("p", "p holm"))
    if n := np.count_nonzero(~np.isnan(p)):
        n_significant, n_after_holm = (np.count_nonzero(values < statistics.LEVEL) for values in (p, p_holm))
        corrected = f", {n_after_holm} after Holm's correction for {len(others)} arms" if len(others) > 1 else ""
        yield (
            f"Paired permutation test: {n_significant} of {n} differences are significant at p < {statistics.LEVEL}"
            f"{corrected}; about {statistics.LEVEL * n:.0f} are expected by chance."
        )


def _judges(frame: pd.DataFrame) -> Iterator[str]:
    """Yield the signatures of the metrics that a judge computes."""
    rows = frame[frame["metric"].str.startswith("judge")]
    yield from sorted({f"{row['metric']}: {row['signature']}" for row in frame_rows(rows)})


def _win_rates(frame: pd.DataFrame) -> Iterator[str]:
    """Yield sentences about how often a judge gave an arm's answer more points than the first arm's answer."""
    first, *others = frame.attrs["arms"]
    for line in frame_rows(frame[frame["metric"] == "judged"]):
        for arm in others:
            share, low, high = (100 * line[f"{arm} wins{part}"] for part in ("", " low", " high"))
            if not np.isnan(share):
                pair = f"{arm} over {first}, {line['group']}, ties count half"
                yield f"Win rate of {pair}: {share:.1f} % [{low:.1f}, {high:.1f}] ({line['signature']})"
