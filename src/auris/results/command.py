"""`python -m auris.results`: the table of a study at any moment, with figures; and how to get a run once more."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from auris import statistics
from auris.measures import MEASURES, display
from auris.results.figures import plot_bars, plot_curves, provenance, save
from auris.results.runs import costs, curves, join, question, reproduce, status, studies_in, write_hparams
from auris.results.tables import KEY, format_score, markdown, table, verdicts_in

if TYPE_CHECKING:
    import pandas as pd

USAGE = """usage: python -m auris.results study=NAME [runs=runs] [arms=a,b] [x=steps]
       python -m auris.results reproduce=RUN

Prints the table of a study and writes into RUNS/NAME/: table.csv, table.md (to paste), differences.csv (which exceed
the noise of rows and of seeds), costs.csv, bars and curves as PNG, PDF and SVG, and what TensorBoard's HPARAMS page
compares. At any moment: what is not there yet is said. With reproduce=, prints a run's command, commit and data
instead.

  study   the study to read, as in runs/<study>/<arm>/seed=<n>/
  runs    the directory that holds the studies (default: runs)
  arms    the arms to compare, in this order; differences are to the first (default: all that are evaluated,
          as the study has them)
  x       what curves stand over: steps, hours (of audio heard) or flops (useful ones)
  reproduce  a run's directory, runs/<study>/<arm>/seed=<n>"""


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m auris.results`; see `USAGE`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(USAGE)
        return
    try:
        given = _parse(argv)
        if given["reproduce"]:
            print(reproduce(given["reproduce"]))
            return
        root = Path(given["runs"]) / given["study"]
        _show_status(root)
        arms = given["arms"].split(",") if given["arms"] else None
        if not arms and not (status(root)["state"] == "evaluated").any():
            written = save(plot_curves(root, arms, given["x"]), root / "curves") if len(curves(root)) else []
            print("\n".join(f"wrote {path}" for path in written))
            return
        frame = table(root, arms)
        judged = verdicts_in(frame)
        written = _write(root, frame, judged, given["x"])
    except (ValueError, FileNotFoundError) as error:  # the user's mistakes: one sentence, no traceback
        raise SystemExit(f"auris.results: {error}") from None
    if said := question(root):
        print(said)
    _show(frame, given["study"])
    _show_verdicts(judged, frame.attrs["arms"][0])
    print("\n".join(["", *(f"wrote {path}" for path in written)]))


def _parse(argv: Sequence[str]) -> dict[str, str]:
    accepted = "study=NAME, runs=DIR, arms=a,b, x=AXIS, reproduce=RUN"
    given = read_arguments(argv, {"study": "", "runs": "runs", "arms": "", "x": "steps", "reproduce": ""}, accepted)
    if not given["study"] and not given["reproduce"]:
        raise ValueError(f"which study? give study=NAME; {studies_in(Path(given['runs']))}")
    return given


def read_arguments(argv: Sequence[str], given: Mapping[str, str], accepted: str) -> dict[str, str]:
    """Arguments of the form key=value over their defaults. Raises ValueError, naming the accepted ones, for others."""
    found = dict(given)
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals or key not in found:
            raise ValueError(f"cannot read {argument!r}; accepted: {accepted} (see --help)")
        found[key] = text
    return found


def _write(root: Path, frame: pd.DataFrame, judged: pd.DataFrame, x: str) -> list[Path]:
    arms = frame.attrs["arms"]
    written = [root / name for name in ("table.csv", "table.md", "differences.csv", "costs.csv")]
    frame.to_csv(written[0], index=False)
    written[1].write_text(markdown(frame, judged), encoding="utf-8")
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


def _show_verdicts(judged: pd.DataFrame, first: str) -> None:
    """Differences that exceed both kinds of noise, and how many do not."""
    from rich.console import Console

    console = Console()
    if judged.empty:
        return
    counts = judged["verdict"].value_counts()
    several = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
    console.print(f"Differences to {first}, of {len(judged)}: {several}.", highlight=False, markup=False)
    for row in judged[judged["verdict"].isin(["better", "worse"])].to_dict("records"):
        point, low, high = (
            display(row["metric"], row[part], "+") for part in ("difference", "seeds low", "seeds high")
        )
        what = f"{row['arm']}, {row['benchmark']} {row['group']} {row['metric']}: {point}, over seeds [{low}, {high}]"
        console.print(f"  {row['verdict']}: {what}", highlight=False, markup=False)


def _show(frame: pd.DataFrame, study: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    arms = frame.attrs["arms"]
    several = frame["benchmark"].nunique() > 1
    title = f"Study {study}" if several else f"Study {study}, benchmark {frame['benchmark'].iloc[0]}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    plain = KEY if several else KEY[1:]
    for column in plain:
        shown.add_column(column, no_wrap=True)
    wide = len(arms) <= 3  # more of them stand below each other
    drops = [f"{arm} drop" for arm in arms] if any(f"{arm} drop" in frame for arm in arms) else []
    beside = [*arms, *(f"{arm} - {arms[0]}" for arm in arms[1:]), *drops]
    below = ["arm", "score", f"difference to {arms[0]}", *["drop"][: len(drops)]]
    for column in ("n", *(beside if wide else below)):
        shown.add_column(column, justify="left" if column == "arm" else "right", no_wrap=not wide)
    for row in frame.to_dict("records"):
        arrow = "↑" if MEASURES[row["metric"]].higher_is_better else "↓"
        cells = [f"{row[column]} {arrow}" if column == "metric" else row[column] for column in plain]
        cells.append(str(row["n"]))
        scores = [format_score(row, arm) for arm in arms]
        differences = ["", *(_coloured(row, f"{arm} - {arms[0]}") for arm in arms[1:])]
        dropped = [escape(format_score(row, name)) if name in frame else "-" for name in drops]
        if wide:
            shown.add_row(*cells, *scores, *differences[1:], *dropped)
            continue
        for number, line in enumerate(zip(arms, scores, differences, *[dropped][: len(drops)], strict=True)):
            shown.add_row(*(cells if number == 0 else [""] * len(cells)), *line)
    console = Console()
    console.print(shown)
    spread = "; ± standard deviation over seeds" if frame[[f"{arm} sd" for arm in arms]].notna().any(axis=None) else ""
    units = {name: MEASURES[name].unit for name in frame["metric"]}
    others = "".join(f", {name} {unit}" for name, unit in units.items() if unit != "%")
    drawn = "rows, or speakers or recordings where ten or more are known and shared"
    legend = f"Scores in %{others} [95 % bootstrap interval over {drawn}]{spread}; ↑ higher is better, ↓ lower."
    said = (legend, *_tested(frame), *_judges(frame), *_judged(frame), provenance(frame))
    for line in (*said, *(f"note: {note}" for note in frame.attrs["notes"])):
        console.print(line, highlight=False, markup=False)


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


def _coloured(row: dict, column: str) -> str:
    from rich.markup import escape

    text, low, high = escape(format_score(row, column)), row[f"{column} low"], row[f"{column} high"]
    if low <= 0 <= high or np.isnan(low):
        return text
    better = (low > 0) == MEASURES[row["metric"]].higher_is_better
    return f"[bold {'green' if better else 'red'}]{text}[/]"
