"""The command line: `auris COMMAND [group=option] [key=value]`, also `python -m auris COMMAND`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "train": "auris.training.run",
    "evaluate": "auris.evaluation.runner",
    "results": "auris.results.command",
    "report": "auris.results.html.command",
    "export": "auris.inference.export",
    "doctor": "auris.inference.inspect",
    "chat": "auris.inference.chat",
    "prefer": "auris.evaluation.preferences",
    "align": "auris.inference.align",
    "corpus": "auris.corpus.command",
    "instruct": "auris.corpus.instruct",
    "prepare": "auris.data.prepare.convert",
    "shards": "auris.data.parquet.pack",
    "replay": "auris.training.replay",
}


def main() -> None:
    """Run the command that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: auris COMMAND [group=option] [key=value]; commands: {', '.join(COMMANDS)}")
    import_module(COMMANDS[sys.argv.pop(1)]).main()
