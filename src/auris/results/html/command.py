"""`auris report`: write the HTML report of a run or a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from auris import files
from auris.errors import UsageError
from auris.results.html import pages
from auris.results.html.recordings import Players
from auris.results.html.template import render

if TYPE_CHECKING:
    from auris.config import Config


def run(config: Config) -> None:
    """Run `auris report`: write the page to `out`, by default `report.html` in the directory of the run or study."""
    if (config["run"] is None) == (config["study"] is None):
        raise UsageError(f"run={config['run']} and study={config['study']}: set either run=RUN or study=NAME")
    players = Players(config["audio_mb"])
    if config["run"] is not None:
        root = Path(config["run"])
        page = pages.build_run_page(root, config["worst"], players)
    else:
        root, arms = Path(config["runs"]) / str(config["study"]), config["arms"]
        page = pages.build_study_page(root, [arms] if isinstance(arms, str) else arms, config["worst"], players)
    out = Path(config["out"] or root / "report.html")
    files.write_text(out, render(page))
    print(f"wrote {out}")
