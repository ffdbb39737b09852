"""Files of rows: JSON lines, or one JSON array.

A file of any other kind is refused with a sentence that says what it is and what to do.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from auris.errors import UserError, count, shorten

# First bytes of files that are not text: what the file is, and what to do.
_SIGNATURES = (
    (b"\x1f\x8b", "compressed with gzip: decompress it with `gunzip --keep`"),
    (b"BZh", "compressed with bzip2: decompress it with `bunzip2 --keep`"),
    (b"\xfd7zXZ", "compressed with xz: decompress it with `unxz --keep`"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: decompress it with `unzstd`"),
    (b"PK\x03\x04", "a zip archive: unpack it with `unzip`"),
    (b"PAR1", "a Parquet file: give it a name that ends in .parquet"),
    *(
        (start, "encoded in UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`")
        for start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"{\0", b"\0{", b"[\0", b"\0[")
    ),
)
_OPENING = re.compile(r"[ \t\r\n]*\[[ \t\r\n]*(\]?)[ \t\r\n]*")  # of an array
_SEPARATOR = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")  # after an element of an array


def iterate_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the text of each row with its number from 1: of its line, or of its place in an array."""
    if is_array(path):
        content = path.read_bytes()
        spans = find_elements(content, str(path))
        yield from enumerate((content[start:stop] for start, stop in spans), start=1)
    else:
        with path.open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def is_array(path: Path) -> bool:
    """Return whether a file is a JSON array of rows. Otherwise, and always if it is a `.txt`, each line is a row.

    Raises:
        UserError: The file is of another kind.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        raise UserError(f"{path} is a table: convert it with `auris prepare layout=table`")
    with path.open("rb") as file:
        first_line = file.readline()
        while first_line and not first_line.removeprefix(codecs.BOM_UTF8).strip():
            first_line = file.readline()
        has_more_lines = any(line.strip() for line in file)
    for signature, advice in _SIGNATURES:
        if first_line.startswith(signature):
            raise UserError(f"{path} is {advice}")
    if path.suffix == ".txt":
        return False
    start = first_line.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"{"):
        _check_lines(path, start, has_more_lines)
    elif start and not start.startswith(b"["):
        _check_has_objects(path, start)
    # A list in a line of its own, with more lines after it, is a row that is no object.
    return start.startswith(b"[") and not (has_more_lines and _parse(start) is not None)


def _check_has_objects(path: Path, first_line: bytes) -> None:
    """Refuse a file without a line that starts a JSON object. If other lines do, only the first row is damaged."""
    with path.open("rb") as lines:
        if not any(line.lstrip().startswith(b"{") for line in lines):
            start = shorten(first_line[:80].decode(errors="replace"))
            raise UserError(
                f"{path} starts with {start}: expected JSON, with one row in each line, or an array of rows"
            )


def _check_lines(path: Path, first_line: bytes, has_more_lines: bool) -> None:
    """Refuse a file of JSON objects over several lines, and LLaMA-Factory's list of data sets."""
    content = _parse(first_line)
    if content is None and has_more_lines:
        content = _parse(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        is_one_object = isinstance(content, Mapping) and not _is_dataset_info(content)
        if is_one_object or (content is None and first_line.strip() == b"{"):
            objects = "one JSON object" if is_one_object else "JSON objects"
            raise UserError(f"{path} is {objects} over several lines, expected an array, or one row in each line")
    if isinstance(content, Mapping) and _is_dataset_info(content):
        raise UserError(f"{path} describes data sets for LLaMA-Factory: expected the file that its `file_name` names")


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the rows report what is wrong with them
        return None


def _is_dataset_info(content: Mapping[str, Any]) -> bool:
    sources = {"file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"}
    return bool(content) and all(isinstance(entry, Mapping) and sources & entry.keys() for entry in content.values())


def find_elements(content: bytes, name: str) -> list[tuple[int, int]]:
    """Return the positions (start, stop) of the elements of a JSON array in a file.

    Args:
        content: The content of the file.
        name: Name of the file, for messages.

    Raises:
        UserError: The array is not valid JSON, or something follows it.
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode("latin-1")  # one character for each byte
    shift = len(content) - len(text)
    decode = json.JSONDecoder().raw_decode
    elements: list[tuple[int, int]] = []
    opening = _OPENING.match(text)
    assert opening is not None  # `is_array`
    position, is_closed = opening.end(), bool(opening[1])
    try:
        while not is_closed:
            _, stop = decode(text, position)
            elements.append((position + shift, stop + shift))
            separator = _SEPARATOR.match(text, stop)
            if separator is None:
                raise UserError(f"expected a comma or ] at byte {stop + shift}")
            position, is_closed = separator.end(), separator[1] == "]"
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name} is a JSON array that is damaged after {count(len(elements), 'row')}: {error}"
        ) from error
    if position < len(text):
        raise UserError(f"{name} continues after the end of a JSON array, expected one array, or one row in each line")
    return elements
