"""Responses of another system, such as the encoder's own decoder, that a file contains (`reading=FILE`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auris.data.manifests import Manifest
from auris.errors import MissingFileError, UserError, shorten
from auris.evaluation.answer_cache import AnswerCache, Part, Response, row_key
from auris.files import file_digest, read_jsonl


def read_transcripts(path: Path) -> dict[str, str]:
    """Return the transcripts (`hyp`) of a file by row id (`id`).

    Raises:
        MissingFileError: There is no such file.
        UserError: A line lacks a field, or two lines have the same id.
    """
    if not path.is_file():
        raise MissingFileError(
            f"reading={path}: there is no such file; expected ctc, aligner, text or a file of transcripts"
        )
    transcripts: dict[str, str] = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        row_id, text = (line.get(key) for key in ("id", "hyp"))
        if not isinstance(row_id, str) or not isinstance(text, str):
            raise UserError(f'reading={path}, line {number} is {shorten(line)}, expected {{"id": ROW, "hyp": TEXT}}')
        if row_id in transcripts:
            raise UserError(f"reading={path}, line {number}: row {shorten(row_id)} has an earlier transcript")
        transcripts[row_id] = text
    return transcripts


def answer_from_file(
    path: Path, kind: str, manifests: Sequence[Manifest], directory: Path
) -> tuple[Part, dict[str, str]]:
    """Answer the rows of one kind with the transcripts of a file, and cache these responses.

    Args:
        path: The file.
        kind: One of `answering.KINDS`.
        manifests: The rows of this kind.
        directory: Directory of the cache.

    Returns:
        The part of the evaluation, and a dict from row id to the reason why the row has no response.
    """
    transcripts = read_transcripts(path) if kind == "task" else {}
    responses, skipped = {}, {}
    for row in (row for manifest in manifests for row in manifest.rows):
        if row.problem or row.id not in transcripts:
            skipped[row.id] = row.problem or f"no transcript in {path}"
        else:
            responses[row_key(row)] = Response(row, transcripts[row.id])
    cache = AnswerCache(directory, {"kind": kind, "transcripts": file_digest(path)})
    cache.add({key: response for key, response in responses.items() if key not in cache})
    return Part(kind=kind, file=cache.path.name, keys=list(responses), windows={}), skipped
