"""`auris report`: a page of a run or of a study, written beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from auris.errors import UserError
from auris.results import read_arguments
from auris.results.html import pages
from auris.results.html.recordings import Players
from auris.results.html.template import render

USAGE = """usage: auris report run=RUN
       auris report study=NAME [runs=runs] [arms=a,b]

Writes one HTML page that opens anywhere, also without a network: scores with intervals, confusion matrices, and the
rows that were answered worst, with their sound. Nothing is scored again.

  run       a run's directory, runs/<study>/<arm>/seed=<n>
  study     the study to read, as in runs/<study>/<arm>/seed=<n>/
  runs      the directory that holds the studies (default: runs)
  arms      the arms of a study, in this order; differences are to the first (default: all that are evaluated)
  worst     rows shown of each task (default: 5)
  audio_mb  megabytes of sound in the page at most (default: 16); what is left out is said (0: none)
  out       the page (default: report.html in the run's or the study's directory)"""

ACCEPTED = "run=RUN or study=NAME, runs=DIR, arms=a,b, worst=N, audio_mb=N, out=FILE"


def main(argv: Sequence[str] | None = None) -> None:
    """`auris report`; see `USAGE`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(USAGE)
        return
    try:
        print(f"wrote {_write(argv)}")
    except (ValueError, OSError) as error:  # the user's mistakes: one sentence, no traceback
        raise SystemExit(f"auris.results.html: {error}") from None


def _write(argv: Sequence[str]) -> Path:
    defaults = {"run": "", "study": "", "runs": "runs", "arms": "", "worst": "5", "audio_mb": "16", "out": ""}
    given = read_arguments(argv, defaults, ACCEPTED)
    if bool(given["run"]) == bool(given["study"]):
        raise UserError("which page? give run=RUN or study=NAME, one of the two")
    worst, megabytes = (_number(given, key) for key in ("worst", "audio_mb"))
    players = Players(megabytes)
    if given["run"]:
        root = Path(given["run"])
        page = pages.of_run(root, worst, players)
    else:
        root = Path(given["runs"]) / given["study"]
        page = pages.of_study(root, given["arms"].split(",") if given["arms"] else None, worst, players)
    out = Path(given["out"] or root / "report.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.tmp")
    partial.write_text(render(page), encoding="utf-8")
    partial.replace(out)
    return out


def _number(given: dict[str, str], key: str) -> int:
    if not given[key].isdecimal():
        raise UserError(f"{key}={given[key]}: expected a whole number, 0 or more")
    return int(given[key])
