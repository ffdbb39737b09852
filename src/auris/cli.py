"""The command line: `auris COMMAND [group=option] [key=value]`, also `python -m auris COMMAND`.

A command is a config in `configs/` and a function that takes the resolved config. Hydra composes the config here, and
the command's module is imported when that has succeeded: help and mistakes do not wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from auris.errors import UsageError, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Command:
    """A command of the table.

    Attributes:
        summary: what it does, in one line.
        function: `module:name` of a function that takes the resolved config; it returns an exit code, or None for 0.
    """

    summary: str
    function: str


COMMANDS = {
    "train": Command("train a model, or all arms of a study", "auris.training.run:run"),
    "evaluate": Command("answer test rows and score the answers", "auris.evaluation.runner:run"),
    "results": Command("compare the arms of a study: table, intervals, figures", "auris.results.command:run"),
    "report": Command("write a run or a study as an HTML page", "auris.results.html.command:run"),
    "export": Command("write a model as a directory for transformers or auris.load", "auris.inference.export:run"),
    "doctor": Command("look at a checkpoint or at data, and say what is wrong", "auris.inference.inspect:run"),
    "chat": Command("talk to a model, or answer a file of dialogues", "auris.inference.chat:run"),
    "prefer": Command("make preference pairs for DPO", "auris.evaluation.preferences:run"),
    "align": Command("find when each word of a transcript is said", "auris.inference.align:run"),
    "corpus": Command("make the synthetic corpus", "auris.corpus.command:run"),
    "instruct": Command("make synthetic dialogues and preferences from a corpus", "auris.corpus.instruct:run"),
    "prepare": Command("turn a published corpus into a manifest", "auris.data.prepare.convert:run"),
    "shards": Command("pack rows and their audio into Parquet files", "auris.data.parquet.pack:run"),
    "replay": Command("look at the rows of a step that was not finite", "auris.training.replay:run"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 (failed), 2 (wrong usage) or 75 (start it again).

    A `UserError` is one line on stderr. Every other exception keeps its traceback, as does any with `--debug`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in given:
        given.remove("--debug")
        os.environ["AURIS_DEBUG"] = "1"
    try:
        if not given or given[0] in ("-h", "--help"):
            print(f"usage: auris COMMAND [group=option] [key=value]; commands: {', '.join(COMMANDS)}")
            return 0
        name, *given = given
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name}: expected {', '.join(COMMANDS)}")
        _compose_and_run(name, name_data(given) if name == "doctor" else given)
    except UserError as error:
        return _report(error, code=2)
    except SystemExit as done:  # raised by a job, or by Hydra's argument parser
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _compose_and_run(name: str, arguments: Sequence[str]) -> None:
    import hydra
    from hydra.errors import ConfigCompositionException, OverrideParseException, SearchPathException

    from auris import config

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
    before, sys.argv[1:] = sys.argv[1:], config.quote_arguments(arguments)
    try:
        hydra.main(config_path=str(config.CONFIGS), config_name=name, version_base="1.3")(partial(run_job, name))()
    except (ConfigCompositionException, OverrideParseException, SearchPathException) as error:
        raise config.explain(error, arguments, name) from error
    finally:
        sys.argv[1:] = before


def run_job(name: str, cfg: DictConfig) -> None:
    """Run a command with a composed config. Hydra calls this, in a process of its launcher's choice."""
    from auris import config

    code: int | None = 2
    try:
        resolved = config.resolve(cfg)
        module, _, function = COMMANDS[name].function.partition(":")
        run: Callable[[config.Config], int | None] = getattr(import_module(module), function)
        code = 1
        code = run(resolved)
    except UserError as error:
        raise SystemExit(_report(error, code=code)) from error
    if code:
        raise SystemExit(code)


def _report(error: UserError, *, code: int) -> int:
    """Print a user's mistake in one line, or with a traceback in debug mode; returns the exit code."""
    if os.environ.get("AURIS_DEBUG", "0") not in ("", "0"):
        raise error
    code = 2 if isinstance(error, UsageError) else code
    if code != 2 or os.environ.get("LOCAL_RANK", "0") == "0":  # each rank makes the same mistake of usage
        print(f"error: {error}", file=sys.stderr)
    return code


def name_data(arguments: Sequence[str]) -> list[str]:
    """Turn the doctor's `data=FILE.jsonl` and `data=[A,B]` into what Hydra takes: an option of the group, and paths."""
    from auris import config

    options = config.options("data")
    named = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "data" or value in options or not value:
            named.append(argument)
        else:
            named += ["data=manifest", f"+data.files={value if value.startswith('[') else f'[{value}]'}"]
    return named
