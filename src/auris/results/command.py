"""`auris results`: the table and figures of a study, or the commands that reproduce a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from auris.errors import UsageError
from auris.results.runs import list_studies, reproduce

if TYPE_CHECKING:
    from auris.config import Config


def run(config: Config) -> None:
    """Run `auris results`: show a study, or with `reproduce=RUN` print the commands that repeat a run."""
    if config["reproduce"] is not None:
        print(reproduce(config["reproduce"]))
        return
    if config["study"] is None:
        raise UsageError(f"expected study=NAME; {list_studies(Path(config['runs']))}")
    from auris.results import terminal  # imported here because importing pandas and matplotlib takes a second

    arms = [config["arms"]] if isinstance(config["arms"], str) else config["arms"]
    terminal.show_study(Path(config["runs"]) / str(config["study"]), arms, config["against"], config["x"])
