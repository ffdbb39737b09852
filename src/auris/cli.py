"""The command line: `auris COMMAND [group=option] [key=value]`, also `python -m auris COMMAND`.

A command consists of a config in `configs/` and a function that takes the resolved config. Hydra composes the config
before the module of the command is imported. Help and errors in overrides therefore appear without importing torch.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import auris
from auris.errors import UsageError, UserError, did_you_mean, explain_write_errors

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Command:
    """A command of `auris`.

    Attributes:
        summary: Description in one line.
        function: A function as `module:name`. The function takes the resolved config and returns an exit code (int), a
            metric for Hydra's sweepers to optimise (float), or None.
        output: Config key of the path to which the command writes, for messages about failed writes.
    """

    summary: str
    function: str
    output: str = "out"


COMMANDS = {
    "train": Command("train a model, or all arms of a study", "auris.training.run:run", "run_dir"),
    "evaluate": Command("generate responses to test rows and score them", "auris.evaluation.runner:run", "checkpoint"),
    "results": Command("compare the arms of a study: table, intervals, figures", "auris.results.command:run", "runs"),
    "report": Command("write a run or a study as an HTML page", "auris.results.html.command:run"),
    "export": Command("export a model as a directory for transformers or auris.load", "auris.inference.export:run"),
    "doctor": Command("check a checkpoint or data, and report problems", "auris.inference.inspect:run", "report"),
    "chat": Command("chat with a model, or answer a file of dialogues", "auris.inference.chat:run", "output"),
    "prefer": Command("create preference pairs for DPO", "auris.evaluation.preferences:run"),
    "align": Command("find the time of each word of a transcript", "auris.inference.align:run"),
    "corpus": Command("create the synthetic corpus", "auris.corpus.command:run"),
    "instruct": Command("create synthetic dialogues and preference pairs from a corpus", "auris.corpus.instruct:run"),
    "prepare": Command("convert a published corpus to a manifest", "auris.data.prepare.convert:run"),
    "shards": Command("pack rows and their audio into Parquet files", "auris.data.shards:run"),
    "replay": Command("inspect the rows of a training step with a non-finite loss", "auris.training.replay:run"),
}

FLAGS = {
    "--cfg, -c job": "print the composed config and exit",
    "--resolve": "with --cfg: resolve interpolations",
    "--package, -p KEY": "with --cfg: print only this part",
    "--info, -i defaults": "print the sources of the config; also defaults-tree, searchpath, plugins, config, all",
    "--multirun, -m": "run all combinations of the values in key=A,B; hydra/launcher=... selects where they run",
    "--run, -r": "run once (default)",
    "--config-dir, -cd DIR": "add a directory with your own configs, as DIR/experiment/NAME.yaml",
    "--config-name, -cn NAME": "use another config instead of the command's config",
    "--config-path, -cp DIR": "use another config directory instead of auris's directory",
    "--hydra-help": "show Hydra's own help",
    "--debug": "show the traceback of every error, like AURIS_DEBUG=1",
    "--help, -h": "show this help",
}
# Environment variables of OpenMP, which torch reads when it is imported: threads that wait for others sleep. By default
# they spin, and on a machine with other work they take the cores from the threads that they wait for.
WAITING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# oneDNN keeps a program for each shape that it has computed, 1,024 by default. Packs have new shapes at every step, and
# these small blocks lie between freed tensors, whose memory then cannot be used again: 250 MB after 120 demo steps.
SMALL_PRIMITIVE_CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
WIDTH, COLUMN = 100, 34  # number of characters in a line of help, and position of the second column

_EXIT_CODES = (
    "Exit codes: 0 success; 1 failure, or a check found problems; 2 error in the command line or config",
    "(nothing was started); 75 stopped by a signal (Ctrl-C, SIGHUP, SIGTERM, SIGUSR1): start the same",
    "command again to resume; 130 ended by Ctrl-C: training and evaluation only by the second one.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    The exit code is 0, 1 (failure), 2 (usage error), 75 (stopped by a signal, can be resumed) or 130 (Ctrl-C).

    A `UserError` is printed as one line on stderr, without a traceback unless `--debug` is set. Other exceptions are
    not caught.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name, value in (WAITING_THREADS | SMALL_PRIMITIVE_CACHE).items():
        os.environ.setdefault(name, value)
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["AURIS_DEBUG"] = "1"
    try:
        name, *rest = arguments or ["--help"]
        if name in ("--help", "-h"):
            _print_page(overview())
        elif name == "--version":
            print(f"auris {auris.__version__}")
        elif name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS)
            raise UsageError(f"there is no command {name}; {hint}expected {', '.join(COMMANDS)}")
        elif {"--help", "-h"} & set(rest):
            _print_page(command_help(name))
        else:
            _compose_and_run(name, name_data(rest) if name == "doctor" else rest)
    except UserError as error:
        return _report(error, code=2)
    except SystemExit as error:  # raised by `run_job`, or by Hydra's argument parser
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        if _is_debugging():
            raise
        print("\nstopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT  # as in a shell
    return 0


def _print_page(text: str) -> None:
    """Print a page of help. It is not an error if a program such as `head` closes the pipe early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again when it exits


def _compose_and_run(name: str, arguments: Sequence[str]) -> None:
    import hydra
    from hydra.errors import ConfigCompositionException, OverrideParseException, SearchPathException

    from auris import config

    flags = re.findall(r"(?<!\S)--?[a-z-]+", " ".join(FLAGS))
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("-")):
        if flag not in flags:
            raise UsageError(f"there is no flag {flag}; {did_you_mean(flag, flags)}see auris {name} --help")
    overrides = [arg for arg in arguments if arg[:1] == "~" or (arg[:1] != "-" and "=" in arg)]
    other_arguments = [arg for arg in arguments if arg not in overrides]  # Hydra's parser needs contiguous overrides
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints exceptions instead of raising them
    overrides = [f"hydra.job.name={name}", config.search_path(), *config.to_hydra(overrides)]
    argv, sys.argv[1:] = sys.argv[1:], [*overrides, *other_arguments]

    def run_composed(cfg: DictConfig) -> float | None:
        sys.argv[1:] = [name, *arguments]  # Lightning starts the processes of other devices with these arguments
        return run_job(name, cfg)

    try:
        hydra.main(config_path=str(config.CONFIGS), config_name=name, version_base="1.3")(run_composed)()
    except (ConfigCompositionException, OverrideParseException, SearchPathException) as error:
        raise config.explain(error, arguments, name) from error
    finally:
        sys.argv[1:] = argv


def run_job(name: str, cfg: DictConfig) -> float | None:
    """Run a command with a composed config. Hydra calls this function; some launchers call it in another process.

    Returns:
        The metric of a training run, which Hydra's sweepers optimise; None for other commands.
    """
    from auris import config
    from auris.metrics import optional_packages

    code = 2  # for errors in the config
    try:
        resolved = config.resolve(cfg, name)
        command = COMMANDS[name]
        run: Callable[[config.Config], int | float | None] = resolve_name(command.function)
        code = 1  # for errors while the command runs
        with explain_write_errors(command.output, resolved.get(command.output)):
            result = run(resolved)
    except UserError as error:
        raise SystemExit(_report(error, code=code)) from error
    except ModuleNotFoundError as error:
        explained = optional_packages.explain_missing_module(error, f"auris {name}")
        if not isinstance(explained, UserError):
            raise
        raise SystemExit(_report(explained, code=1)) from error
    is_metric = isinstance(result, float)
    if result and not is_metric:
        raise SystemExit(result)
    return result if is_metric else None


def _report(error: UserError, *, code: int) -> int:
    """Print an error in one line and return the exit code; in debug mode, raise it."""
    if _is_debugging():
        raise error
    code = 2 if isinstance(error, UsageError) else code
    if code != 2 or os.environ.get("LOCAL_RANK", "0") == "0":  # a usage error is the same on all ranks
        print(f"error: {error}", file=sys.stderr)
    return code


def _is_debugging() -> bool:
    return os.environ.get("AURIS_DEBUG", "0") not in ("", "0")


def name_data(arguments: Sequence[str]) -> list[str]:
    """Replace `data=FILE.jsonl` and `data=[A,B]` of `auris doctor` by overrides that Hydra accepts."""
    from auris import config

    options = config.options("data")
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "data" or value in options or not value:
            overrides.append(argument)
        else:
            overrides += ["data=manifest", f"+data.files={value if value.startswith('[') else f'[{value}]'}"]
    return overrides


# --- help ---------------------------------------------------------------------------------------------------------


def overview() -> str:
    """Return the output of `auris` without a command: a list of commands, a hint at their help, and exit codes."""
    commands = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    lines = ["usage: auris COMMAND [group=option] [key=value]", "", "Commands:", *commands, ""]
    lines += ["`auris COMMAND --help` shows the examples, groups and keys of a command. For a first run: make demo", ""]
    return "\n".join([*lines, *_EXIT_CODES])


def command_help(name: str) -> str:
    """Return the help of a command, which is generated from the keys and comments of its config."""
    from auris import config

    lines = (config.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    examples = [line for line in header if line.startswith("auris ")]
    about = textwrap.wrap(" ".join(line for line in header if line and not line.startswith("auris ")), WIDTH)
    entries = list(_parse_entries(lines[len(header) :]))
    groups = {entry.key: entry for entry in entries if entry.in_defaults}
    page = [f"usage: auris {name} [group=option] [key=value]", "", *about, "", "Examples:"]
    for example in examples:
        page += textwrap.wrap(f"  {example}", WIDTH, subsequent_indent=" " * 6, break_on_hyphens=False)
    if groups:
        page += ["", "Groups (group=option), with their defaults:"]
    for group in groups.values():
        page += [*_two_columns(f"  {group.key}={group.value}", group.comment), *_option_lines(group.key)]
    page += ["", "Keys (key=value, or section.key=value for indented keys), with their defaults:"]
    section = ""
    for entry in entries:
        section = section if entry.indent else f"{entry.key}."
        # A key that has a value and is also a group is already on the page.
        if not entry.in_defaults and (entry.indent or not entry.value or entry.key not in groups):
            allowed = config.allowed_values(f"{section}{entry.key}" if entry.indent else entry.key, name) or ""
            # Comments list the allowed words, but not the allowed numbers (`a number ...`, `an integer ...`).
            text = f"{entry.comment} ({allowed})" if allowed.startswith("a") else entry.comment
            page += _two_columns(f"  {entry.indent}{entry.key}: {entry.value}".rstrip(), text.strip())
    page += ["", "Flags:", *(line for flag, text in FLAGS.items() for line in _two_columns(f"  {flag}", text)), ""]
    return "\n".join([*page, *_EXIT_CODES])


@dataclass
class _Entry:
    """An entry of a config: `key: value  # comment`."""

    in_defaults: bool
    indent: str
    key: str
    value: str
    comment: str


def _parse_entries(lines: Iterable[str]) -> Iterator[_Entry]:
    """Parse the entries of a config's text. Comment lines after an entry belong to it."""
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


def _option_lines(group: str) -> list[str]:
    """Return lines of help with the options of a group, and of the subgroups in the defaults of these options."""
    from auris import config, files

    names = config.options(group)
    lines = textwrap.wrap(" | ".join(names), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    subgroups = {}
    for path in [config.CONFIGS / group / f"{name}.yaml" for name in names]:
        for default in (files.read_yaml(path) or {}).get("defaults", []) if path.is_file() else []:
            if isinstance(default, Mapping):
                subgroups |= {name: None for name in default if (config.CONFIGS / group / name).is_dir()}
    for subgroup in subgroups:
        text = f"{group}/{subgroup}=" + " | ".join(config.options(f"{group}/{subgroup}"))
        lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 10)
    return lines


def _two_columns(left: str, text: str) -> list[str]:
    """Return two texts as columns of wrapped lines. If the left text is too long, it gets separate lines."""
    right = [" " * COLUMN + line for line in textwrap.wrap(text, WIDTH - COLUMN)]
    if right and len(left) < COLUMN:
        return [left + right[0][len(left) :], *right[1:]]
    return [*textwrap.wrap(left, WIDTH, subsequent_indent=" " * 6), *right]
