"""`auris results`: the table of a study at any moment, with figures; and how to get a run once more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from auris.errors import UsageError
from auris.results.runs import reproduce, studies_in

if TYPE_CHECKING:
    from auris.config import Config


def run(config: Config) -> None:
    """Run `auris results`: the table of a study, or with `reproduce` how to get a run once more."""
    if config["reproduce"] is not None:
        print(reproduce(config["reproduce"]))
        return
    if config["study"] is None:
        raise UsageError(f"which study? give study=NAME; {studies_in(Path(config['runs']))}")
    from auris.results import terminal  # here, as pandas and matplotlib take a second

    arms = [config["arms"]] if isinstance(config["arms"], str) else config["arms"]
    terminal.show_study(Path(config["runs"]) / str(config["study"]), arms, config["against"], config["x"])
