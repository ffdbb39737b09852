"""Conversion of any table, or any folder of audio files, to auris rows by a column map.

A table is a CSV, TSV, JSONL or Parquet file; a Hugging Face dataset is a folder of Parquet files. In a folder without a
table, the columns are the named groups of a regular expression for the file names. The column map assigns columns to
labels. A fault in a line of a table becomes the `problem` of the row.
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

from auris.data import row_files
from auris.data.rows import FieldMap, Record, parse_line
from auris.errors import MissingFileError, UserError, count, shorten
from auris.text.answer_formats import Labels

RowDict = dict[str, Any]
"""The fields of a row to be written."""

Cells = Mapping[str, Any]
"""A line of a table: its cells by column name."""

Values = Mapping[str, Mapping[Any, Any]]
"""{auris field: {value in the table: value to write}}. The key `*` matches all other values."""

_SPLIT = "{split}"  # part of a file pattern that matches the name of a split
REST = "*"  # key in `values` that matches all values that are not listed

_STRUCTURED = ("words", "events", "turns", "entities", "texts", "slots", "choices", "notes", "notes.sonic")
# {label that is not a string: (parser of a text cell, the content that it expects, for messages)}
_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("offset", "duration"), (float, "a number")),
    **dict.fromkeys(("notes.pitch", "notes.velocity"), (int, "a number")),
    **dict.fromkeys(_STRUCTURED, (json.loads, "JSON")),
}

csv.field_size_limit(2**27)  # characters per cell; some transcripts exceed the default of 131,072


@dataclass(frozen=True, eq=False)
class EmbeddedAudio:
    """An audio file stored in a cell of a table."""

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
    """Yield the line number and the cells, by column name, of each line of a CSV or TSV.

    For an invalid line, an error message is yielded instead of the cells.

    Args:
        path: The table.
        delimiter: Character between cells.
        needs: Names of required columns.
        quoted: Whether quotation marks enclose cells. Otherwise they are part of the text.
        escape: Escape character.
        header: Names of the columns, if the first line does not contain them.

    Raises:
        UserError: The table cannot be read, or lacks a required column.
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
                    yield (
                        reader.line_num,
                        f"{path.name}:{reader.line_num}: {count(len(cells), 'column')}, expected {len(names)}",
                    )
        except (csv.Error, ValueError) as error:
            raise UserError(f"{path}, after line {reader.line_num}: {error}") from error


def read_map(path: Path) -> dict[str, str]:
    """Read a file with `key value` in each line as {key: value}; return an empty dict if there is no file.

    Raises:
        UserError: The file is not UTF-8.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig") as lines:
            pairs = (line.strip().split(maxsplit=1) for line in lines if line.strip())
            return {key: " ".join(rest) for key, *rest in pairs}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}") from error


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield the number and the record of each row of a JSONL file or a JSON array."""
    for number, line in row_files.iterate_rows(path):
        yield number, parse_line(line, f"{path.name}:{number}", FieldMap())


def _read_lines(path: Path) -> Iterator[tuple[int, Cells | str]]:
    for number, record in read_records(path):
        yield number, f"{record.name}: {record.problem}" if record.fields is None else record.fields


def _read_parquet(path: Path) -> Iterator[tuple[int, Cells | str]]:
    """Yield number and cells of each row. Class numbers of Hugging Face datasets are replaced by class names."""
    try:
        file = pq.ParquetFile(path)
        classes = _class_names(file.schema_arrow.metadata or {})
        number = 0
        for batch in file.iter_batches(batch_size=64):  # small, because rows may hold whole sound files
            for cells in batch.to_pylist():
                number += 1
                class_numbers = {key: cells[key] for key in classes.keys() & cells.keys()}
                # A class without a name, such as -1 for an unknown class, stays a number.
                class_names = {key: classes[key].get(label, label) for key, label in class_numbers.items()}
                yield number, {**cells, **class_names}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, dict[int, str]]:
    """Return {ClassLabel column: {class number: class name}} from the schema metadata of `datasets`."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {key: dict(enumerate(kind["names"])) for key, kind in features.items() if kind.get("_type") == "ClassLabel"}


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Cells | str]]]] = {
    ".csv": lambda path: read_delimited(path, ","),
    ".tsv": lambda path: read_delimited(path, "\t", quoted=False),
    ".jsonl": _read_lines,
    ".json": _read_lines,
    ".parquet": _read_parquet,
}


# --- the map ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Mapping from the cells of a line to a row.

    Attributes:
        root: Folder of the corpus. If there is no `id` column, the id of a row is the path of its audio file below the
            folder.
        name: Prefix of row ids.
        columns: {auris field: column}. A column may be a template of several columns (`clips/{path}.mp3`), and a dot in
            the field sets an entry of a label (`notes.pitch`). None: every column is a field of the same name.
        labels: Labels of all rows, such as {task: asr, language: en}.
        values: {auris field: {value in the table: value to write}}; `*` matches all other values.
    """

    root: Path
    name: str
    columns: Mapping[str, str] | None
    labels: Labels | None
    values: Values | None

    def __post_init__(self) -> None:
        if self.columns is not None and (unmapped := sorted(set(self.values or ()) - set(self.columns))):
            raise UserError(
                f"layout.values has {unmapped[0]}, but layout.columns does not: add layout.columns.{unmapped[0]}"
            )

    def make_row(self, cells: Cells, folder: Path, line_name: str) -> RowDict:
        """Return the row of one line. If a cell cannot be parsed, the row has a `problem`.

        Args:
            cells: Cells of the line.
            folder: Folder that audio paths are relative to.
            line_name: Id of the row if the line has neither an id nor an audio file.
        """
        try:
            fields = self._fields(cells)
            if "audio" in fields:
                fields["audio"] = _sound(fields["audio"], folder)
        except ValueError as error:
            return {"id": f"{self.name}/{line_name}", "problem": str(error)}
        path, default_id = fields.get("audio"), line_name
        if isinstance(path, Path):
            default_id = Path(os.path.relpath(path, self.root)).with_suffix("").as_posix()
        return {"id": f"{self.name}/{fields.pop('id', default_id)}", **fields}

    def _fields(self, cells: Cells) -> RowDict:
        fields: RowDict = {}
        columns = {name: name for name in cells} if self.columns is None else self.columns
        for field, column in columns.items():
            value = self._value(field, _cell(cells, column))
            if value is None or value == "":
                continue  # a missing label that the task requires is reported later, when the row is checked
            *parents, name = field.split(".")
            target = fields
            for parent in parents:
                target = target.setdefault(parent, {})
            target[name] = value
        return {**fields, **(self.labels or {})}

    def _value(self, field: str, cell: Any) -> Any:
        if self.values and field in self.values:
            mapping = {str(key): value for key, value in self.values[field].items()}
            value = mapping.get(str(cell), mapping.get(REST))
            if value is None:
                raise UserError(
                    f"`{field}` is {shorten(cell)}, expected a key of layout.values.{field}: {', '.join(mapping)}"
                )
            return value
        if isinstance(cell, str) and field in _PARSERS and cell.strip():
            parse_cell, expected = _PARSERS[field]
            try:
                return parse_cell(cell)
            except ValueError:
                raise UserError(f"`{field}` is {shorten(cell)}, expected {expected}") from None
        return str(cell) if isinstance(cell, (int, float)) and field not in _PARSERS else cell


def _cell(cells: Cells, column: str) -> Any:
    """Return the cell of a column, or the text of a template such as `clips/{path}.mp3`."""
    names = re.findall(r"\{([^{}]+)\}", column) or [column]
    for name in names:
        if name not in cells:
            raise UserError(f"there is no column {shorten(name)}, expected one of {', '.join(map(str, cells))}")
    if names == [column]:
        return cells[column]
    return re.sub(r"\{([^{}]+)\}", lambda match: str(cells[match[1]]), column)


def _sound(cell: Any, folder: Path) -> Path | EmbeddedAudio:
    """Return the audio file of a cell. The cell is a path relative to the folder of the table, or {bytes, path}."""
    if isinstance(cell, Mapping):
        if isinstance(cell.get("bytes"), bytes):
            return EmbeddedAudio(cell["bytes"], Path(cell.get("path") or "").suffix)
        cell = cell.get("path")
    if not isinstance(cell, str) or not cell:
        raise UserError(f"`audio` is {shorten(cell)}, expected a path")
    return Path(os.path.normpath(folder / cell))


def map_audio(row: RowDict, *, only: type, change: Callable[[Any], Any]) -> RowDict:
    """Return a row with `change` applied to those values of its field `audio` that are instances of `only`.

    The field holds one value or a list.
    """
    if "audio" not in row:
        return dict(row)
    is_list = isinstance(row["audio"], list)
    sources = row["audio"] if is_list else [row["audio"]]
    changed = [change(source) if isinstance(source, only) else source for source in sources]
    return {**row, "audio": changed if is_list else changed[0]}


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that match a pattern from `layout.files`.

    Raises:
        MissingFileError: No file matches.
    """
    if paths := sorted(root.glob(pattern.replace(_SPLIT, "*"))):
        return paths
    raise MissingFileError(f"layout.files={pattern} matches no file below {root}")


# --- corpora ------------------------------------------------------------------------------------------------------


def table(root: Path, *, files: str, **mapping: Any) -> Iterator[RowDict]:
    """Yield the rows of the tables in a folder.

    Args:
        root: The folder.
        files: Path of the table below the folder, or a pattern (`data/train-*.parquet`). The text that matches
            `{split}` is the split of the table's rows, unless a column or label sets the split.
        mapping: The attributes of `ColumnMap` except `root`. Paths in the column `audio` are relative to the table.

    Raises:
        MissingFileError: There is no such table.
        UserError: The kind of table is not supported, or the column map is invalid.
    """
    column_map = ColumnMap(root=root, **mapping)
    if column_map.columns is not None and "audio" not in column_map.columns:
        raise UserError("layout.columns has no `audio`: expected layout.columns.audio=COLUMN")
    for path in find_files(root, files):
        if path.suffix not in _READERS:
            raise UserError(f"{path}: expected a table with the suffix {', '.join(_READERS)}")
        relative_path = path.relative_to(root)
        match = _split_expression(files).fullmatch(relative_path.as_posix())
        split = match.groupdict() if match else {}
        for number, cells in _READERS[path.suffix](path):
            line_name = f"{relative_path.with_suffix('')}:{number}"
            if isinstance(cells, str):
                yield {"id": f"{column_map.name}/{line_name}", "problem": cells, **split}
            else:
                yield split | column_map.make_row(cells, path.parent, line_name)


def _split_expression(pattern: str) -> re.Pattern[str]:
    """Convert a file pattern to a regular expression, in which `{split}` is the group `split`."""
    pieces = (re.escape(piece).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for piece in pattern.split(_SPLIT, 1))
    return re.compile("(?P<split>[^/]+?)".join(pieces))


def files(root: Path, *, pattern: str, **mapping: Any) -> Iterator[RowDict]:
    r"""Yield the rows of the audio files in a folder, with labels from the file names.

    Args:
        root: The folder.
        pattern: Regular expression for paths below the folder, with a named group for each column:
            `recordings/(?P<digit>\d)_(?P<speaker>\w+)_(?P<take>\d+)\.wav`. Files that do not match are ignored.
        mapping: The attributes of `ColumnMap` except `root`. `columns` needs no `audio`.

    Raises:
        MissingFileError: No file matches.
        UserError: The pattern or the column map is invalid.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"layout.pattern={pattern}: {error}") from error
    column_map = ColumnMap(root=root, **mapping)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    matches = [(path, match) for path in paths if (match := expression.fullmatch(path.relative_to(root).as_posix()))]
    if not matches:
        example = f" (for example {paths[0].relative_to(root)})" if paths else ""
        raise MissingFileError(
            f"layout.pattern={pattern} matches none of the {count(len(paths), 'file')} below {root}{example}"
        )
    for path, match in matches:
        file_name = path.relative_to(root).with_suffix("").as_posix()
        yield {**column_map.make_row(match.groupdict(), root, file_name), "audio": path}
