"""Any table or folder of sound files as rows of ours, by a map of its columns.

A table is CSV, TSV, JSONL or Parquet (a data set of the hub is a folder of these); the columns of a folder without a
table are what a pattern finds in the names of its files. The map says which column is which label; what is wrong with
one line of a table is the `problem` of its row.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from auris.data.rows import FieldMap, Record, parse
from auris.errors import MissingFileError, UserError
from auris.text.answer_formats import Labels

Fields = dict[str, Any]
"""The fields of a row, in the making."""

Cells = Mapping[str, Any]
"""A line of a table: its cells by the names of their columns."""

Values = Mapping[str, Mapping[Any, Any]]
"""{our name: {what is in the table: what it becomes}}; REST stands for all others."""

_SPLIT = "{split}"
REST = "*"  # among `values`: all that are not named

# How a cell of text is read whose label is more than a string, and what it is.
_STRUCTURED = ("words", "events", "turns", "entities", "texts", "slots", "choices", "notes", "notes.sonic")
_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("offset", "duration"), (float, "a number")),
    **dict.fromkeys(("notes.pitch", "notes.velocity"), (int, "a number")),
    **dict.fromkeys(_STRUCTURED, (json.loads, "JSON")),
}

csv.field_size_limit(2**27)  # characters of a cell; the default is 131,072, less than some transcripts


@dataclass(frozen=True, eq=False)
class EmbeddedAudio:
    """A sound file that lies in a cell of a table."""

    data: bytes
    suffix: str


# --- cells --------------------------------------------------------------------------------------------------------


def read_delimited(
    path: Path,
    delimiter: str,
    *,
    needs: Collection[str] = (),
    quoted: bool = True,
    escape: str | None = None,
    header: list[str] | None = None,
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Line number and cells by column name of each line of a CSV or TSV; a string says what is wrong with a line.

    Args:
        needs: columns that it cannot do without.
        quoted: whether quotation marks enclose cells, or are part of the text.
        escape: the character that takes the meaning from the one behind it.
        header: names of the columns, where the first line does not have them.

    Raises ValueError for a table that cannot be read, or lacks a column.
    """
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, escapechar=escape)
        try:
            names = header or next(reader, [])
            if missing := sorted(set(needs) - set(names)):
                raise UserError(f"it has no column {', '.join(missing)}; it has {', '.join(names)}")
            for cells in reader:
                if len(cells) == len(names):
                    yield reader.line_num, dict(zip(names, cells, strict=True))
                elif cells:
                    yield reader.line_num, f"{path.name}:{reader.line_num} has {len(cells)} columns, not {len(names)}"
        except (csv.Error, ValueError) as error:
            raise UserError(f"{path}, after line {reader.line_num}: {error}") from error


def read_map(path: Path) -> dict[str, str]:
    """`key value` by line; nothing where there is no file. Raises ValueError for one that is no text."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig") as lines:
            pairs = (line.strip().split(maxsplit=1) for line in lines if line.strip())
            return {key: " ".join(rest) for key, *rest in pairs}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}") from error


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield number and content of each line of a JSONL file, except for empty ones."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse(line, f"{path.name}:{number}", FieldMap())


def _read_lines(path: Path) -> Iterator[tuple[int, Cells | str]]:
    for number, record in read_records(path):
        yield number, f"{record.name}: {record.problem}" if record.fields is None else record.fields


def _read_parquet(path: Path) -> Iterator[tuple[int, Cells | str]]:
    """Classes that a data set of the hub numbers come out by their names."""
    try:
        file = pq.ParquetFile(path)
        classes = _class_names(file.schema_arrow.metadata or {})
        number = 0
        for batch in file.iter_batches(batch_size=64):  # rows may hold whole sound files
            for cells in batch.to_pylist():
                number += 1
                numbers = {key: cells[key] for key in classes.keys() & cells.keys()}
                named = {key: classes[key].get(number, number) for key, number in numbers.items()}  # -1: not known
                yield number, {**cells, **named}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no Parquet that can be read: {error}") from error


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, dict[int, str]]:
    """Return the names of the classes of each ClassLabel column by number (what `datasets` leaves in the schema)."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {key: dict(enumerate(kind["names"])) for key, kind in features.items() if kind.get("_type") == "ClassLabel"}


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Cells | str]]]] = {
    ".csv": lambda path: read_delimited(path, ","),
    ".tsv": lambda path: read_delimited(path, "\t", quoted=False),
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
}


# --- the map ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """How the cells of a line become a row.

    Attributes:
        root: the folder of the corpus; an id that the table does not tell is the sound file's path below it.
        name: what the rows' ids begin with.
        columns: {ours: theirs}; theirs is the name of a column or a template of several (`clips/{path}.mp3`). A dot
            leads into a label (`notes.pitch`). None: all as they are called.
        labels: what all rows have, as {task: asr, language: en}.
        values: {ours: {what is in the table: what it is here}}; `*` stands for all others.
    """

    root: Path
    name: str
    columns: Mapping[str, str] | None
    labels: Labels | None
    values: Values | None

    def __post_init__(self) -> None:
        if self.columns is not None and (unmapped := sorted(set(self.values or ()) - set(self.columns))):
            raise UserError(f"layout.values has {unmapped[0]}, which is no column: add layout.columns.{unmapped[0]}")

    def row(self, cells: Cells, folder: Path, place: str) -> Fields:
        """Return the row of one line. A cell that cannot be read is its `problem`.

        Args:
            cells: of the line.
            folder: what paths of sound files are relative to.
            place: the row's id if the line has neither an id nor a sound file.
        """
        try:
            fields = self._fields(cells)
            if "audio" in fields:
                fields["audio"] = _sound(fields["audio"], folder)
        except ValueError as error:
            return {"id": f"{self.name}/{place}", "problem": str(error)}
        path = fields.get("audio")
        if isinstance(path, Path):
            place = Path(os.path.relpath(path, self.root)).with_suffix("").as_posix()
        return {"id": f"{self.name}/{fields.pop('id', place)}", **fields}

    def _fields(self, cells: Cells) -> Fields:
        fields: Fields = {}
        columns = {name: name for name in cells} if self.columns is None else self.columns
        for ours, theirs in columns.items():
            value = self._value(ours, _cell(cells, theirs))
            if value is None or value == "":
                continue  # a label that is needed is missed when the row is checked
            *folders, name = ours.split(".")
            inner = fields
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[name] = value
        return {**fields, **(self.labels or {})}

    def _value(self, ours: str, cell: Any) -> Any:
        if self.values and ours in self.values:
            known = {str(theirs): value for theirs, value in self.values[ours].items()}
            value = known.get(str(cell), known.get(REST))
            if value is None:
                raise UserError(f"`{ours}` is {cell!r:.80}, layout.values.{ours} has {', '.join(known)}")
            return value
        if isinstance(cell, str) and ours in _PARSERS and cell.strip():
            parse, expected = _PARSERS[ours]
            try:
                return parse(cell)
            except ValueError:
                raise UserError(f"`{ours}` is {cell!r:.80}, expected {expected}") from None
        return str(cell) if isinstance(cell, (int, float)) and ours not in _PARSERS else cell


def _cell(cells: Cells, theirs: str) -> Any:
    """The cell of a column, or of a template such as `clips/{path}.mp3`."""
    names = re.findall(r"\{([^{}]+)\}", theirs) or [theirs]
    for name in names:
        if name not in cells:
            raise UserError(f"there is no column {name!r}; there are {', '.join(map(str, cells))}")
    if names == [theirs]:
        return cells[theirs]
    return re.sub(r"\{([^{}]+)\}", lambda match: str(cells[match[1]]), theirs)


def _sound(cell: Any, folder: Path) -> Path | EmbeddedAudio:
    """What a cell says of a sound file: a path relative to the table, or {bytes, path} as data sets of the hub have."""
    if isinstance(cell, Mapping):
        if isinstance(cell.get("bytes"), bytes):
            return EmbeddedAudio(cell["bytes"], Path(cell.get("path") or "").suffix)
        cell = cell.get("path")
    if not isinstance(cell, str) or not cell:
        raise UserError(f"`audio` is {cell!r:.80}, expected a path")
    return Path(os.path.normpath(folder / cell))


def map_audio(row: Fields, kind: type, change: Callable[[Any], Any]) -> Fields:
    """Return a row whose `audio`, one sound or a list, is changed where it is of a type."""
    if "audio" not in row:
        return dict(row)
    is_list = isinstance(row["audio"], list)
    sounds = [change(one) if isinstance(one, kind) else one for one in (row["audio"] if is_list else [row["audio"]])]
    return {**row, "audio": sounds if is_list else sounds[0]}


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that match `layout.files`. Raises MissingFileError if there is none."""
    if paths := sorted(root.glob(pattern.replace(_SPLIT, "*"))):
        return paths
    raise MissingFileError(f"layout.files={pattern}: there is none below {root}")


# --- corpora ------------------------------------------------------------------------------------------------------


def table(root: Path, *, files: str, **mapping: Any) -> Iterator[Fields]:
    """Yield the rows of the tables in a folder.

    Args:
        root: the folder.
        files: the table below it, or a pattern for several (`data/train-*.parquet`); what stands in the place of
            `{split}` is the split of a table's rows, unless a column or a label tells it.
        mapping: the other attributes of `ColumnMap`; the column `audio` is a path relative to its table.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a kind of table that is not known, or a map that no row can follow.
    """
    column_map = ColumnMap(root=root, **mapping)
    if column_map.columns is not None and "audio" not in column_map.columns:
        raise UserError("layout.columns has no `audio`: expected layout.columns.audio=COLUMN")
    for path in find_files(root, files):
        if path.suffix not in _READERS:
            raise UserError(f"{path}: expected a table that ends in {', '.join(_READERS)}")
        place = path.relative_to(root)
        told = _split_expression(files).fullmatch(place.as_posix())
        split = told.groupdict() if told else {}
        for number, cells in _READERS[path.suffix](path):
            where = f"{place.with_suffix('')}:{number}"
            if isinstance(cells, str):
                yield {"id": f"{column_map.name}/{where}", "problem": cells, **split}
            else:
                yield split | column_map.row(cells, path.parent, where)


def _split_expression(pattern: str) -> re.Pattern[str]:
    """Return a pattern of files as a regular expression with the group `split`."""
    pieces = (re.escape(piece).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for piece in pattern.split(_SPLIT, 1))
    return re.compile("(?P<split>[^/]+?)".join(pieces))


def files(root: Path, *, pattern: str, **mapping: Any) -> Iterator[Fields]:
    r"""Yield the rows of the sound files in a folder, whose names hold the labels.

    Args:
        root: the folder.
        pattern: a regular expression for paths below it, with a named group for each column:
            `recordings/(?P<digit>\d)_(?P<speaker>\w+)_(?P<take>\d+)\.wav`. Files that it does not match are none of it.
        mapping: the other attributes of `ColumnMap`; `audio` is the file.

    Raises:
        FileNotFoundError: no file matches.
        ValueError: the pattern is none, or a map that no row can follow.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"layout.pattern={pattern}: {error}") from error
    column_map = ColumnMap(root=root, **mapping)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    matches = [(path, match) for path in paths if (match := expression.fullmatch(path.relative_to(root).as_posix()))]
    if not matches:
        example = f", as {paths[0].relative_to(root)}" if paths else ""
        raise MissingFileError(f"layout.pattern={pattern} matches none of the {len(paths)} files below {root}{example}")
    for path, match in matches:
        place = path.relative_to(root).with_suffix("").as_posix()
        yield {**column_map.row(match.groupdict(), root, place), "audio": path}
