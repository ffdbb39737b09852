"""The command line: `auris COMMAND [group=option] [key=value]`, also `python -m auris COMMAND`.

A command is a config in `configs/` and a function that takes the resolved config. Hydra composes the config here, and
the command's module is imported when that has succeeded: help and mistakes do not wait for torch.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import auris
from auris.errors import UsageError, UserError, did_you_mean, user_output

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Command:
    """A command of the table.

    Attributes:
        summary: what it does, in one line.
        function: `module:name` of a function that takes the resolved config. It returns an exit code (int), a metric
            to optimise (float), or None.
        output: the key of the path that is written.
    """

    summary: str
    function: str
    output: str = "out"


COMMANDS = {
    "train": Command("train a model, or all arms of a study", "auris.training.run:run", "run_dir"),
    "evaluate": Command("answer test rows and score the answers", "auris.evaluation.runner:run", "checkpoint"),
    "results": Command("compare the arms of a study: table, intervals, figures", "auris.results.command:run", "runs"),
    "report": Command("write a run or a study as an HTML page", "auris.results.html.command:run"),
    "export": Command("write a model as a directory for transformers or auris.load", "auris.inference.export:run"),
    "doctor": Command(
        "look at a checkpoint or at data, and say what is wrong", "auris.inference.inspect:run", "report"
    ),
    "chat": Command("talk to a model, or answer a file of dialogues", "auris.inference.chat:run", "output"),
    "prefer": Command("make preference pairs for DPO", "auris.evaluation.preferences:run"),
    "align": Command("find when each word of a transcript is said", "auris.inference.align:run"),
    "corpus": Command("make the synthetic corpus", "auris.corpus.command:run"),
    "instruct": Command("make synthetic dialogues and preferences from a corpus", "auris.corpus.instruct:run"),
    "prepare": Command("turn a published corpus into a manifest", "auris.data.prepare.convert:run"),
    "shards": Command("pack rows and their audio into Parquet files", "auris.data.shards:run"),
    "replay": Command("look at the rows of a step that was not finite", "auris.training.replay:run"),
}

FLAGS = {
    "--cfg, -c job": "print the composed config and stop",
    "--resolve": "with --cfg: fill its interpolations",
    "--package, -p KEY": "with --cfg: print a part of it",
    "--info, -i defaults": "print where the config comes from; also defaults-tree, searchpath, plugins, config, all",
    "--multirun, -m": "run every combination of values given as key=A,B; hydra/launcher=... says where",
    "--run, -r": "run once (the default)",
    "--config-dir, -cd DIR": "a directory of configs of your own, as DIR/experiment/NAME.yaml",
    "--config-name, -cn NAME": "another config than this command's",
    "--config-path, -cp DIR": "another directory than the one of auris's configs",
    "--hydra-help": "help about Hydra itself",
    "--debug": "show the traceback of every error, as AURIS_DEBUG=1 does",
    "--help, -h": "this text",
}
WIDTH, COLUMN = 100, 34  # of help: of a line, and where the second column starts

_EXIT_CODES = (
    "Exit codes: 0 done; 1 failed, or something is wrong with what was looked at; 2 the command line or a",
    "config is wrong, and nothing was started; 75 stopped by a signal: start the same command again.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 (failed), 2 (wrong usage) or 75 (start it again).

    A `UserError` is one line on stderr. Every other exception keeps its traceback, as does any with `--debug`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in given:
        given.remove("--debug")
        os.environ["AURIS_DEBUG"] = "1"
    try:
        name, *rest = given or ["--help"]
        if name in ("--help", "-h"):
            print(overview())
        elif name == "--version":
            print(f"auris {auris.__version__}")
        elif name not in COMMANDS:
            meant = did_you_mean(name, COMMANDS)
            raise UsageError(f"there is no command {name}; {meant}expected {', '.join(COMMANDS)}")
        elif {"--help", "-h"} & set(rest):
            print(command_help(name))
        else:
            _compose_and_run(name, name_data(rest) if name == "doctor" else rest)
    except UserError as error:
        return _report(error, code=2)
    except SystemExit as done:  # raised by a job, or by Hydra's argument parser
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _compose_and_run(name: str, arguments: Sequence[str]) -> None:
    import hydra
    from hydra.errors import ConfigCompositionException, OverrideParseException, SearchPathException

    from auris import config

    known = re.findall(r"(?<!\S)--?[a-z-]+", " ".join(FLAGS))
    for flag in (one.partition("=")[0] for one in arguments if one.startswith("-")):
        if flag not in known:
            raise UsageError(f"there is no flag {flag}; {did_you_mean(flag, known)}auris {name} --help lists the flags")
    overrides = [one for one in arguments if one[:1] == "~" or (one[:1] != "-" and "=" in one)]
    rest = [one for one in arguments if one not in overrides]  # Hydra's parser wants overrides in one piece
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
    before, sys.argv[1:] = sys.argv[1:], [f"hydra.job.name={name}", config.SEARCH_PATH, *overrides, *rest]
    try:
        hydra.main(config_path=str(config.CONFIGS), config_name=name, version_base="1.3")(partial(run_job, name))()
    except (ConfigCompositionException, OverrideParseException, SearchPathException) as error:
        raise config.explain(error, arguments, name) from error
    finally:
        sys.argv[1:] = before


def run_job(name: str, cfg: DictConfig) -> float | None:
    """Run a command with a composed config. Hydra calls this, in a process of its launcher's choice.

    Returns:
        The metric of a training run, which Hydra's sweepers optimise.
    """
    from auris import config
    from auris.metrics import optional_packages

    code = 2
    try:
        resolved = config.resolve(cfg)
        command = COMMANDS[name]
        run: Callable[[config.Config], int | float | None] = resolve_name(command.function)
        code = 1
        with user_output(command.output, resolved.get(command.output)):
            result = run(resolved)
    except UserError as error:
        raise SystemExit(_report(error, code=code)) from error
    except ModuleNotFoundError as error:
        explained = optional_packages.explain(error, f"auris {name}")
        if not isinstance(explained, UserError):
            raise
        raise SystemExit(_report(explained, code=1)) from error
    if isinstance(result, float):
        return result
    if result:
        raise SystemExit(result)
    return None


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


# --- help ---------------------------------------------------------------------------------------------------------


def overview() -> str:
    """Return what `auris` prints: the commands, where to read on, and the exit codes."""
    commands = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    lines = ["usage: auris COMMAND [group=option] [key=value]", "", "Commands:", *commands, ""]
    lines += ["`auris COMMAND --help` shows a command's examples, groups and keys. A first run: make demo", ""]
    return "\n".join([*lines, *_EXIT_CODES])


def command_help(name: str) -> str:
    """Return the help of a command, made from the text of its config: the comments there are the help."""
    from auris import config

    lines = (config.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    examples = [line for line in header if line.startswith("auris ")]
    about = textwrap.wrap(" ".join(line for line in header if line and not line.startswith("auris ")), WIDTH)
    entries = list(_entries(lines[len(header) :]))
    groups = {entry.key: entry for entry in entries if entry.in_defaults}
    page = [f"usage: auris {name} [group=option] [key=value]", "", *about, "", "Examples:"]
    for example in examples:
        page += textwrap.wrap(f"  {example}", WIDTH, subsequent_indent=" " * 6, break_on_hyphens=False)
    if groups:
        page += ["", "Groups (group=option), with their defaults:"]
    for group in groups.values():
        page += [*_row(f"  {group.key}={group.value}", group.comment), *_options(group.key)]
    page += ["", "Keys (key=value, and part.key=value for those below a part), with their defaults:"]
    for entry in entries:
        if not entry.in_defaults and (entry.indent or not entry.value or entry.key not in groups):
            page += _row(f"  {entry.indent}{entry.key}: {entry.value}".rstrip(), entry.comment)
    page += ["", "Flags:", *(line for flag, what in FLAGS.items() for line in _row(f"  {flag}", what)), ""]
    return "\n".join([*page, *_EXIT_CODES])


@dataclass
class _Entry:
    """A line of a config: `key: value  # comment`."""

    in_defaults: bool
    indent: str
    key: str
    value: str
    comment: str


def _entries(lines: Iterable[str]) -> Iterator[_Entry]:
    """Read the entries of a config's text, with the comments that follow them on lines of their own."""
    entry = None
    for line in lines:
        content, _, comment = line.partition(" #") if not line.lstrip().startswith("#") else ("", "", line.strip(" #"))
        match = re.fullmatch(r"(\s*)(- )?([\w/.]+):\s*(.*?)\s*", content)
        if match is None:
            if entry is not None and comment:
                entry.comment += f" {comment}"
            continue
        indent, item, key, value = match.groups()
        if entry is not None:
            yield entry
        entry = None
        if key not in ("hydra", "defaults"):
            entry = _Entry(bool(item), indent, key, value, comment.strip())
    if entry is not None:
        yield entry


def _options(group: str) -> list[str]:
    """Return the lines that list a group's options, and the groups of parts that those options choose."""
    from auris import config, files

    names = config.options(group)
    lines = textwrap.wrap(" | ".join(names), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    parts = {}
    for path in [config.CONFIGS / group / f"{name}.yaml" for name in names]:
        for default in (files.read_yaml(path) or {}).get("defaults", []) if path.is_file() else []:
            if isinstance(default, Mapping):
                parts |= {part: None for part in default if (config.CONFIGS / group / part).is_dir()}
    for part in parts:
        text = f"{group}/{part}=" + " | ".join(config.options(f"{group}/{part}"))
        lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 10)
    return lines


def _row(left: str, text: str) -> list[str]:
    """Return a line of two columns, wrapped; a left side that is too long has a line of its own."""
    right = [" " * COLUMN + line for line in textwrap.wrap(text, WIDTH - COLUMN)]
    if right and len(left) < COLUMN:
        return [left + right[0][len(left) :], *right[1:]]
    return [*textwrap.wrap(left, WIDTH, subsequent_indent=" " * 6), *right]
