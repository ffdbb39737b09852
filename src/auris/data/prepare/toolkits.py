"""Conversion of the data of speech toolkits to rows: Lhotse's cuts, Kaldi's data directories, and auris manifests.

Lhotse and Kaldi can define audio as the output of a transform or a command. auris does not run these. A row with such
audio is unusable, and its `problem` gives the reason.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from auris.data.importers import dialogue_task
from auris.data.prepare.tables import Cells, RowDict, find_files, map_audio, read_map, read_records
from auris.data.rows import Record
from auris.errors import MissingFileError, UserError, shorten
from auris.files import digest

_MIN_SPEAKERS = 5  # of a file some of whose speakers are held out

# --- Lhotse -------------------------------------------------------------------------------------------------------


def lhotse(
    root: Path, *, files: str, task: str, language: str | None, name: str, split: str | None
) -> Iterator[RowDict]:
    """Yield a row for each supervision of the cuts in a folder (`cuts.jsonl`, `.jsonl.gz`; MonoCut only).

    Args:
        root: The folder, to which paths of recordings are relative.
        files: Path of the file of cuts below the folder, or a pattern.
        task: `asr` (text of the supervisions) or `srwt` (their word alignment).
        language: Language of supervisions that state no language.
        name: Prefix of row ids.
        split: Split of all rows.
    """
    if task not in ("asr", "srwt"):
        raise UserError(f"layout.task={task}: expected asr or srwt")
    for path in find_files(root, files):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                line_name = f"{path.name}:{number}"
                try:
                    for row in _cut_rows(json.loads(line), root, task, language):
                        yield {**row, "id": f"{name}/{row['id']}"} | ({"split": split} if split else {})
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    fault = f"no {error}" if isinstance(error, KeyError) else str(error)
                    yield {"id": f"{name}/{line_name}", "problem": f"{line_name}: {fault}"}


def _cut_rows(cut: Cells, root: Path, task: str, language: str | None) -> Iterator[RowDict]:
    if cut.get("type", "MonoCut") != "MonoCut":
        raise UserError(f"the cut is a {cut['type']}, expected a MonoCut (one channel of one recording)")
    recording = cut["recording"]
    transforms = [entry.get("name") for entry in recording.get("transforms") or ()]
    if transforms:
        raise UserError(
            f"the recording has the transforms {', '.join(map(str, transforms))}: "
            "save the transformed audio, and make cuts of it"
        )
    [source, *more_sources] = recording["sources"]
    if more_sources or len(source["channels"]) > 1:
        raise UserError("the recording has several channels: save the channel of the cut as a separate recording")
    if source["type"] != "file":
        raise UserError(f"the source of the recording is of type {shorten(source['type'])}, expected 'file'")
    if not cut["supervisions"]:
        raise UserError(f"cut {cut['id']} has no supervision")
    for supervision in cut["supervisions"]:
        # The times of a supervision are relative to the cut, and may exceed it.
        start = max(0.0, supervision["start"])
        end = min(cut["duration"], supervision["start"] + supervision["duration"])
        row: RowDict = {"id": supervision["id"], "audio": root / source["source"], "task": task}
        row |= {"offset": round(cut["start"] + start, 4), "duration": round(end - start, 4)}
        row |= {key: supervision[key] for key in ("speaker", "gender") if supervision.get(key)}
        language_name = (supervision.get("language") or language or "").lower()
        row |= {"language": _LANGUAGES.get(language_name, language_name)} if language_name else {}
        if task == "asr":
            row |= {"text": supervision["text"]} if supervision.get("text") else {}
        else:
            row["words"] = _aligned_words(supervision, start)
        yield row


def _aligned_words(supervision: Cells, start: float) -> list[RowDict]:
    """Return words with times relative to the clip, which begins at `start` in the cut.

    In Lhotse, times are relative to the cut.
    """
    alignment = (supervision.get("alignment") or {}).get("word")
    if not alignment:
        raise UserError(f"supervision {supervision['id']} has no word alignment")
    entries = [entry if isinstance(entry, list) else list(entry.values()) for entry in alignment]
    times = [(word, round(begin - start, 4), round(begin + length - start, 4)) for word, begin, length, *_ in entries]
    return [{"word": word, "start": max(0.0, begin), "end": end} for word, begin, end in times]


# English names of languages, which Lhotse's recipes use.
_LANGUAGES = {"english": "en", "chinese": "zh", "mandarin": "zh", "german": "de", "french": "fr", "spanish": "es"}
_LANGUAGES |= {"italian": "it", "japanese": "ja", "korean": "ko", "cantonese": "yue"}


# --- Kaldi --------------------------------------------------------------------------------------------------------


def kaldi(root: Path, *, folders: Sequence[str], language: str | None, name: str) -> Iterator[RowDict]:
    """Yield a row for each utterance of Kaldi's data directories.

    A data directory contains `wav.scp` and `text`, and optionally `segments`, `utt2spk`, `spk2gender`, `utt2lang`.

    Args:
        root: The folder of the recipe, to which paths in `wav.scp` are relative.
        folders: The data directories below the folder, such as [data/train]. Their names are the splits.
        language: Language of utterances that are not in `utt2lang`.
        name: Prefix of row ids.
    """
    if not folders:
        raise UserError("layout.folders=[]: expected data directories below root, such as [data/train,data/test]")
    for folder in folders:
        for needed in ("wav.scp", "text"):
            if not (root / folder / needed).is_file():
                raise MissingFileError(f"layout.folders={list(folders)}: there is no {root / folder / needed}")
    return (row for folder in folders for row in _kaldi_rows(root, root / folder, language, name))


def _kaldi_rows(root: Path, folder: Path, language: str | None, name: str) -> Iterator[RowDict]:
    sounds, texts = read_map(folder / "wav.scp"), read_map(folder / "text")
    segments_file = folder / "segments"
    segment_lines = read_map(segments_file).items()
    segments = {utt_id: line.split() for utt_id, line in segment_lines} if segments_file.is_file() else None
    speakers, genders = read_map(folder / "utt2spk"), read_map(folder / "spk2gender")
    languages = read_map(folder / "utt2lang")
    for utt_id in sorted({*texts, *(sounds if segments is None else segments)}):
        row: RowDict = {"id": f"{name}/{folder.name}/{utt_id}", "task": "asr", "split": folder.name}
        try:
            row |= _kaldi_sound(root, utt_id, sounds, segments)
            labels = {
                "text": texts.get(utt_id),
                "language": languages.get(utt_id, language),
                "speaker": speakers.get(utt_id),
            }
            labels["gender"] = {"m": "male", "f": "female"}.get(genders.get(speakers.get(utt_id, ""), ""))
            yield row | {label: value for label, value in labels.items() if value}
        except ValueError as error:
            yield row | {"problem": str(error)}


def _kaldi_sound(
    root: Path, utt_id: str, sounds: Mapping[str, str], segments: Mapping[str, Sequence[str]] | None
) -> RowDict:
    """Return audio, offset and duration of an utterance.

    Raises:
        UserError: The utterance has no audio, or its audio is the output of a command.
    """
    recording, times = utt_id, {}
    if segments is not None:
        try:
            recording, *bounds = segments[utt_id][:3]
            start, end = map(float, bounds)
        except (KeyError, ValueError):
            raise UserError(f"segments has no line `{utt_id} RECORDING START END` with times in seconds") from None
        # The end -1 means the end of the file.
        times = {"offset": start} | ({"duration": round(end - start, 4)} if end >= 0 else {})
    if recording not in sounds:
        raise UserError(f"wav.scp has no recording {recording}")
    if sounds[recording].endswith("|") or sounds[recording].startswith("|"):
        raise UserError(f"wav.scp has a command for {recording}, and auris runs no commands: save its output")
    return {"audio": root / sounds[recording], **times}


# --- auris manifests ----------------------------------------------------------------------------------------------


def manifest(
    root: Path, *, files: str, only: Mapping[str, Sequence[object]] | None = None, valid_share: float = 0.0
) -> Iterator[RowDict]:
    """Return the task rows of existing auris manifests, and each dialogue as a row that cannot be used.

    Rows get the label `set`, the name of their file up to the first dot, unless they have one.

    Args:
        root: The folder.
        files: Path of the manifest below the folder, or a pattern. Audio paths are relative to their manifest.
        only: {label: its values} of the rows to keep; None keeps all rows.
        valid_share: Share of the speakers of each file whose training rows, in all files, become validation rows. A
            hash of the speaker's name decides. No speakers of a file with fewer than five are chosen, and rows without
            a speaker stay training rows.

    Raises:
        UserError: `only` has another form or a label that no row has, or `valid_share` holds no speaker out.
    """
    only = {} if only is None else only
    if not isinstance(only, Mapping) or not all(isinstance(values, list) for values in only.values()):
        raise UserError(f"layout.only={shorten(only)}: expected {{label: [value, ...]}}")
    rows_of_files = [
        [
            {"set": path.name.split(".")[0], **_read_fields(record, path.parent), "id": record.id}
            for _, record in read_records(path)
        ]
        for path in find_files(root, files)
    ]
    for label in only:
        if not any(label in row for rows in rows_of_files for row in rows):
            raise UserError(f"layout.only={shorten(only)}: no row has the label {label}")
    rows_of_files = [
        [row for row in rows if all(row.get(label) in values for label, values in only.items())]
        for rows in rows_of_files
    ]
    valid: set[str] = set()  # a speaker may be in several files, but is in one split
    for rows in rows_of_files:
        speakers = sorted({str(row["speaker"]) for row in rows if row.get("split") == "train" and "speaker" in row})
        n_valid = math.ceil(valid_share * len(speakers)) if len(speakers) >= _MIN_SPEAKERS else 0
        valid.update(sorted(speakers, key=digest)[:n_valid])
    if valid_share and not valid:
        raise UserError(
            f"layout.valid_share={valid_share}: expected a file with training rows of at least {_MIN_SPEAKERS} speakers"
        )
    return (
        {**row, "split": "valid"} if row.get("split") == "train" and str(row.get("speaker")) in valid else row
        for rows in rows_of_files
        for row in rows
    )


def _read_fields(record: Record, folder: Path) -> RowDict:
    if record.fields is None:
        return {"problem": record.problem}
    fields = dict(record.fields)
    if dialogue_task(fields):
        return {**fields, "problem": "the row is a dialogue: train on its manifest directly, without `auris prepare`"}
    return map_audio(fields, only=str, change=lambda path: folder / path)
