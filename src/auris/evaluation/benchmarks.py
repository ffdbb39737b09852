"""Benchmarks by name (`configs/benchmark`): where their rows lie, which part of one a row belongs to, what the released
scripts print of the same replies, and whole tables of the papers beside ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from auris import config
from auris.data.rows import Row, language
from auris.errors import MissingFileError, UserError
from auris.metrics import official, published, timestamps


def members(benchmark: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The benchmarks of a group, each read from its file and with the group's folder; one that is no group is alone."""
    if "members" not in benchmark:
        return [dict(benchmark)]
    found = []
    for name in benchmark["members"]:
        path = config.CONFIGS / "benchmark" / f"{name}.yaml"
        if not path.is_file():
            raise UserError(f"benchmark.members: no benchmark {name!r} at {path}")
        found.append({**yaml.safe_load(path.read_text(encoding="utf-8")), "root": benchmark["root"]})
    return found


def check(found: Iterable[Mapping[str, Any]]) -> None:
    """That all rows are there: before a model is loaded, and all that is missing at once."""
    missing = []
    for benchmark in found:
        try:
            sources(benchmark)
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise MissingFileError("\n".join(missing))


def asked_otherwise(made: Mapping[str, Any], version: str) -> list[str]:
    """What of a published benchmark's own wording and decoding the command line has changed: part of the signatures, as
    such numbers do not compare."""
    wording, decoding = (made["benchmark"].get(part, {}).get(version) for part in ("prompt", "generation"))
    changed = [f"prompt:{made['prompt']['_target_'].rpartition('.')[2]}"] if made["prompt"] and wording else []
    if decoding is None:
        return changed
    own = {"do_sample": False, **decoding}
    given = {key: value for key, value in made["generation"].items() if value is not None}
    return changed + [f"{key}:{value}" for key, value in given.items() if own.get(key) != value]


BINARY = ("yes", "no")  # ClothoAQA's binary questions, told by their answers (evaluate_aqa.py)


def sources(benchmark: Mapping[str, Any]) -> list[Any]:
    """The entries of a benchmark as `manifests.read_manifests` takes them: its `test` where it has one, or else its
    files under `root`.

    Raises FileNotFoundError naming what is missing and where it comes from.
    """
    if benchmark["test"] or "files" not in benchmark:
        return benchmark["test"] if isinstance(benchmark["test"], list) else [benchmark["test"]]
    name, files = benchmark["name"], benchmark["files"]
    if benchmark["root"] is None:
        raise MissingFileError(f"benchmark={name} needs the folder of its rows: {_wanted(benchmark, files, 'DIR')}")
    root = Path(benchmark["root"])
    if missing := [file for file in files if not (root / file).is_file()]:
        raise MissingFileError(
            f"benchmark={name}: no {' and no '.join(missing)} in {root}; {_wanted(benchmark, missing, root)}"
        )
    return [str(root / file) for file in files]


def _wanted(benchmark: Mapping[str, Any], files: Sequence[str], root: str | Path) -> str:
    return (
        f"put {', '.join(files)} from {benchmark['origin']} there, beside the audio that the rows name, and set "
        f"benchmark.root={root}; rows of another form: benchmark.test=[{{path: FILE, columns: ..., labels: ...}}]"
    )


def parts(row: Row, names: Sequence[str]) -> list[str]:
    """Which of a benchmark's parts a row belongs to: those whose words stand in this order in its `source`, its `split`
    or its languages, as dev-clean in `librispeech_dev_clean`. `all` has every row, `binary` those answered by yes or
    no; an only part has every row too."""
    if len(names) == 1:
        return list(names)
    labels = " ".join(str(row.labels.get(key, "")) for key in ("source", "split", "language", "target_language"))
    told = "-".join(re.findall(r"[a-z0-9]+", labels.lower()))
    found = [name for name in names if f"-{name}-" in f"-{told}-"]
    answer = str(row.labels.get("text", "")).lower()
    return found + [name for name in names if name == "all" or (name == "binary" and answer in BINARY)]


def in_parts(
    predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Predictions on the lines of a benchmark's parts, `asr en test-clean`; those of no part stay where they are."""
    if not names:
        return list(predictions)
    of_row = {row.id: parts(row, names) for row in rows}
    found = []
    for prediction in predictions:
        line = prediction["group"]
        lines = [line if line.endswith(f" {part}") else f"{line} {part}" for part in of_row[prediction["id"]]]
        found += [{**prediction, "group": line} for line in lines or [line]]
    return found


def official_lines(
    script: str | None, version: str, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """What the released script would print of the same replies (`auris.metrics.official`)."""
    if script is None:
        return []
    replies = {prediction["id"]: prediction for prediction in reversed(predictions) if prediction["metric"] != "eer"}
    # References of evaluate_srwt.py begin with the time with which its prompt ends.
    before = timestamps.BEGIN if script == "evaluate_srwt" else ""
    answers = [
        official.Answer(
            source=str(row.labels.get("source") or _source(row)),
            reference=before + replies[row.id]["reference"],
            reply=replies[row.id]["hypothesis"],
            language=language(row),
        )
        for row in rows
        if row.id in replies
    ]
    return official.report(script, version, answers)


def _source(row: Row) -> str:
    """The `source` of a row of ours, with its languages where evaluate_st.py looks for them."""
    spoken = [row.labels[key] for key in ("language", "target_language") if key in row.labels]
    return "_".join([row.labels["task"], *spoken, "test"])


def note(line: Mapping[str, Any]) -> str:
    said = f"stops ({line['stopped']})" if line["stopped"] else f"{line['metric']} {line['value']:.4f}"
    return f"{line['script']} of {line['version']}, {line['source']}: {said} (n={line['n']})"


def table(name: str, results: Sequence[Mapping[str, Any]]) -> Table:
    """A published table and what of it is ours: a line per number, `≠` where the two were not made alike and `†` where
    ours is of synthetic stand-ins; on 80 columns if need be."""
    lines = published.lines(results, name)
    systems = list(dict.fromkeys(cell.system for line in lines for cell in line.cells if cell.signature))
    has_others = any(not cell.signature for line in lines for cell in line.cells)
    heads = [systems[0] if len(systems) == 1 else "published", *["others"][:has_others]]
    shown = Table(title=f"{name}: published and ours", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("benchmark", "part", "ours", *heads):
        shown.add_column(head, no_wrap=head in ("part", "ours", *systems), overflow="fold")
    before = ""
    for line in lines:
        named = [_number(cell) if len(systems) == 1 else _said(cell) for cell in line.cells if cell.signature]
        others = [_said(cell) for cell in line.cells if not cell.signature]
        label = f"{line.benchmark} {line.metric}"
        said = [", ".join(named), *[", ".join(others)][:has_others]]
        shown.add_row("" if label == before else label, line.part, _ours(line), *said)
        before = label
    return shown


def _ours(line: published.Line) -> str:
    marks = [published.DIFFERENT] * line.differs + [published.STAND_IN] * line.is_stand_in
    return " ".join([line.printed, *marks])


def _said(cell: published.Published) -> str:
    return f"{cell.system} {_number(cell)}"


def _number(cell: published.Published) -> str:
    return f"{cell.printed:.{cell.decimals}f}"
