"""`auris results`: the table of a study at any moment, with figures; and how to get a run once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from auris.errors import UsageError
from auris.metrics import statistics
from auris.metrics.measures import MEASURES, display
from auris.results.figures import plot_bars, plot_curves, provenance, save
from auris.results.runs import costs, curves, join, question, reproduce, status, studies_in, write_hparams
from auris.results.tables import BEYOND_NOISE, format_score, markdown, table, verdicts, verdicts_in

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text

UNBOUNDED = 10_000  # columns of a terminal in which every table is as wide as it wants


def run(config: Mapping[str, Any]) -> None:
    """Run `auris results`: the table of a study, or with `reproduce` how to get a run once more."""
    if config["reproduce"] is not None:
        print(reproduce(config["reproduce"]))
        return
    if config["study"] is None:
        raise UsageError(f"which study? give study=NAME; {studies_in(Path(config['runs']))}")
    root, arms, x = Path(config["runs"]) / str(config["study"]), config["arms"], config["x"]
    arms = [arms] if isinstance(arms, str) else arms
    _show_status(root)
    if not arms and not (status(root)["state"] == "evaluated").any():
        written = save(plot_curves(root, arms, x), root / "curves") if len(curves(root)) else []
        print("\n".join(f"wrote {path}" for path in written))
        return
    frame = table(root, arms)
    judged = verdicts_in(frame) if config["against"] == "first" else verdicts(root, arms, config["against"])
    written = _write(root, frame, judged, x)
    if said := question(root):
        print(said)
    _show(frame, config["study"])
    _show_verdicts(judged)
    print("\n".join(["", *(f"wrote {path}" for path in written)]))


def _write(root: Path, frame: pd.DataFrame, judged: pd.DataFrame, x: str) -> list[Path]:
    arms = frame.attrs["arms"]
    written = [root / name for name in ("table.csv", "table.md", "differences.csv", "costs.csv")]
    frame.to_csv(written[0], index=False)
    written[1].write_text(markdown(frame, verdicts_in(frame)), encoding="utf-8")
    judged.to_csv(written[2], index=False)
    costs(root).to_csv(written[3], index=False)
    written += save(plot_bars(root, arms), root / "bars")
    logged = set(curves(root)["arm"])
    if logged & set(arms):
        written += save(plot_curves(root, arms, x), root / "curves")
    if untrained := [arm for arm in arms if arm not in logged]:
        frame.attrs["notes"].append(f"no curves of {join(untrained)}: no TensorBoard events there")
    write_hparams(root)
    return written


def _show_status(root: Path) -> None:
    """Runs that are not evaluated yet, one line each."""
    from rich.console import Console

    console, found = Console(), status(root)
    under_way = found[found["state"] != "evaluated"]
    if len(under_way):
        console.print(f"{len(under_way)} of {len(found)} runs are not evaluated yet:", highlight=False)
    for row in under_way.to_dict("records"):
        line = f"  {row['arm']}, seed {row['seed']}: {row['state']}, step {row['step']} of {row['of']}"
        console.print(line, highlight=False, markup=False)


def _show_verdicts(judged: pd.DataFrame) -> None:
    """Differences that exceed both kinds of noise, and how many do not."""
    from rich.console import Console

    console = Console()
    if judged.empty:
        return
    counts = judged["verdict"].value_counts()
    several = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
    to = judged["against"].iloc[0] if judged["against"].nunique() == 1 else "the arm before"
    console.print(f"Differences to {to}, of {len(judged)}: {several}.", highlight=False, markup=False)
    for row in judged[judged["verdict"].isin(BEYOND_NOISE)].to_dict("records"):
        point, low, high = (
            display(row["metric"], row[part], "+") for part in ("difference", "seeds low", "seeds high")
        )
        line = f"{row['benchmark']} {row['group']} {row['metric']}"
        what = f"{row['arm']} - {row['against']}, {line}: {point}, over seeds [{low}, {high}]"
        console.print(f"  {row['verdict']}: {what}", highlight=False, markup=False)


def _show(frame: pd.DataFrame, study: str) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    console, arms = Console(), frame.attrs["arms"]
    for benchmark, of_benchmark in frame.groupby("benchmark", sort=False):
        rows = of_benchmark.to_dict("records")
        scored = [arm for arm in arms if of_benchmark[arm].notna().any()]
        drops = [
            name for name in (f"{arm} drop" for arm in scored) if name in frame and of_benchmark[name].notna().any()
        ]
        title = f"Study {study}, benchmark {benchmark}"
        beside = _beside(title, rows, scored, drops, arms[0])
        fits = Measurement.get(console, console.options.update(width=UNBOUNDED), beside).maximum <= console.width
        console.print(beside if fits else _below(title, rows, scored, drops, arms[0]))
    spread = "; ± standard deviation over seeds" if frame[[f"{arm} sd" for arm in arms]].notna().any(axis=None) else ""
    units = {name: MEASURES[name].unit for name in frame["metric"]}
    others = "".join(f", {name} {unit}" for name, unit in units.items() if unit != "%")
    drawn = "rows, or speakers or recordings where ten or more are known and shared"
    legend = f"Scores in %{others} [95 % bootstrap interval over {drawn}]{spread}; ↑ higher is better, ↓ lower."
    said = (legend, *_tested(frame), *_judges(frame), *_judged(frame), provenance(frame))
    for line in (*said, *(f"note: {note}" for note in frame.attrs["notes"])):
        console.print(line, highlight=False, markup=False)


def _beside(title: str, rows: Sequence[dict], arms: Sequence[str], drops: Sequence[str], first: str) -> Table:
    """A line for each score: the arms side by side, then their differences to the first one."""
    differences = [f"{arm} - {first}" for arm in arms if arm != first]
    shown = _empty(title, "n", *arms, *differences, *drops)
    for row in rows:
        cells = (_cell(row, name) for name in (*arms, *differences, *drops))
        shown.add_row(_line(row), str(row["n"]), *cells)
    return shown


def _below(title: str, rows: Sequence[dict], arms: Sequence[str], drops: Sequence[str], first: str) -> Table:
    """A line for each score of each arm, below what they are scores of."""
    shown = _empty(title, "score", f"difference to {first}", *["drop"][: len(drops)])
    for row in rows:
        shown.add_row(f"{_line(row)}, n={row['n']}")
        for arm in arms:
            names = (arm, f"{arm} - {first}", *[f"{arm} drop"][: len(drops)])
            shown.add_row(f"  {arm}", *("" if name == f"{first} - {first}" else _cell(row, name) for name in names))
    return shown


def _empty(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("task", overflow="fold")
    for column in columns:
        header = column.replace(" - ", "\n- ").replace(" to ", "\nto ")  # no wider than what stands below
        shown.add_column(header, justify="right", no_wrap=True)
    return shown


def _line(row: Mapping[str, Any]) -> str:
    return f"{row['group']}, {row['metric']} {'↑' if MEASURES[row['metric']].higher_is_better else '↓'}"


def _tested(frame: pd.DataFrame) -> Iterator[str]:
    """How many differences a test finds, each for itself and corrected for the number of arms."""
    first, *others = frame.attrs["arms"]
    alone, holm = (frame[[f"{arm} - {first} {kind}" for arm in others]].to_numpy(float) for kind in ("p", "p holm"))
    if n := np.count_nonzero(~np.isnan(alone)):
        found = [f"{np.count_nonzero(p < statistics.LEVEL)}" for p in (alone, holm)]
        corrected = f", {found[1]} corrected for the {len(others)} arms of a line (Holm)" if len(others) > 1 else ""
        yield (
            f"Paired permutation test: of {n} differences {found[0]} have p < {statistics.LEVEL}{corrected}; of "
            f"{n} that are none {statistics.LEVEL * n:.0f} would."
        )


def _judges(frame: pd.DataFrame) -> Iterator[str]:
    """Who gave points, in every table that shows some."""
    rows = frame[frame["metric"].str.startswith("judge")]
    yield from sorted({f"{row['metric']}: {row['signature']}" for row in rows.to_dict("records")})


def _judged(frame: pd.DataFrame) -> Iterator[str]:
    """How often a judge liked an arm's answer better than the first arm's."""
    first, *others = frame.attrs["arms"]
    for row in frame[frame["metric"] == "judged"].to_dict("records"):
        for arm in others:
            share, low, high = (100 * row[f"{arm} wins{part}"] for part in ("", " low", " high"))
            if not np.isnan(share):
                what = f"{arm} over {first}, {row['group']}, ties half"
                yield f"Win rate of {what}: {share:.1f} % [{low:.1f}, {high:.1f}] ({row['signature']})"


def _cell(row: Mapping[str, Any], column: str) -> Text:
    """A score, or a difference, in the colour of its direction where its interval leaves out 0."""
    from rich.text import Text

    text = Text(format_score(row, column))
    low, high = row[f"{column} low"], row[f"{column} high"]
    if " - " in column and not np.isnan(low) and not low <= 0 <= high:
        better = (low > 0) == MEASURES[row["metric"]].higher_is_better
        text.stylize(f"bold {'green' if better else 'red'}")
    return text
