"""Data folders of speech toolkits as rows: Lhotse's cuts, Kaldi's data directories, and manifests of our own.

Each of them may say that a sound is made by a command or a transform. Nothing is executed here and no sound is changed:
such a row is named with its reason.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from auris.data.prepare.tables import Cells, Fields, find_files, map_audio, read_map, read_records
from auris.data.rows import Record
from auris.errors import MissingFileError, UserError

# --- Lhotse -------------------------------------------------------------------------------------------------------


def lhotse(
    root: Path, *, files: str, task: str, language: str | None, name: str, split: str | None
) -> Iterator[Fields]:
    """A row for each supervision of the cuts in a folder (`cuts.jsonl`, `.jsonl.gz`; MonoCut).

    Args:
        root: the folder; relative paths of recordings begin there.
        files: the cuts below it, or a pattern for several.
        task: `asr` (the supervisions' text) or `srwt` (their word alignment).
        language: where a supervision is silent about it.
        name: what the rows' ids begin with.
        split: of all rows.
    """
    if task not in ("asr", "srwt"):
        raise UserError(f"layout.task={task}: expected asr or srwt")
    for path in find_files(root, files):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path.name}:{number}"
                try:
                    for row in _cut_rows(json.loads(line), root, task, language):
                        yield {**row, "id": f"{name}/{row['id']}"} | ({"split": split} if split else {})
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    missing = f"no {error}" if isinstance(error, KeyError) else str(error)
                    yield {"id": f"{name}/{where}", "problem": f"{where}: {missing}"}


def _cut_rows(cut: Cells, root: Path, task: str, language: str | None) -> Iterator[Fields]:
    if cut.get("type", "MonoCut") != "MonoCut":
        raise UserError(f"a {cut['type']}: expected a MonoCut, one channel of one recording")
    recording = cut["recording"]
    changed = [entry.get("name") for entry in recording.get("transforms") or ()]
    if changed:
        raise UserError(f"its recording is changed by {', '.join(map(str, changed))}: save the audio, then the cuts")
    [source, *others] = recording["sources"]
    if others or len(source["channels"]) > 1:
        raise UserError("its recording has several channels: expected one, or the cut's own saved")
    if source["type"] != "file":
        raise UserError(f"its sound is of type {source['type']!r}: expected a file")
    if not cut["supervisions"]:
        raise UserError(f"cut {cut['id']} has no supervision")
    for supervision in cut["supervisions"]:
        # A supervision's times are relative to the cut, and may reach beyond it.
        start = max(0.0, supervision["start"])
        end = min(cut["duration"], supervision["start"] + supervision["duration"])
        row = {"id": supervision["id"], "audio": root / source["source"], "task": task}
        row |= {"offset": round(cut["start"] + start, 4), "duration": round(end - start, 4)}
        row |= {key: supervision[key] for key in ("speaker", "gender") if supervision.get(key)}
        spoken = (supervision.get("language") or language or "").lower()
        row |= {"language": _LANGUAGES.get(spoken, spoken)} if spoken else {}
        if task == "asr":
            row |= {"text": supervision["text"]} if supervision.get("text") else {}
        else:
            row["words"] = _aligned_words(supervision, start)
        yield row


def _aligned_words(supervision: Cells, start: float) -> list[Fields]:
    """Words with times from the beginning of the row's clip; Lhotse counts them as it counts the supervision's."""
    alignment = (supervision.get("alignment") or {}).get("word")
    if not alignment:
        raise UserError(f"supervision {supervision['id']} has no word alignment")
    entries = [entry if isinstance(entry, list) else list(entry.values()) for entry in alignment]
    times = [(word, round(begin - start, 4), round(begin + length - start, 4)) for word, begin, length, *_ in entries]
    return [{"word": word, "start": max(0.0, begin), "end": end} for word, begin, end in times]


# Lhotse's recipes write languages by their English names.
_LANGUAGES = {"english": "en", "chinese": "zh", "mandarin": "zh", "german": "de", "french": "fr", "spanish": "es"}
_LANGUAGES |= {"italian": "it", "japanese": "ja", "korean": "ko", "cantonese": "yue"}


# --- Kaldi --------------------------------------------------------------------------------------------------------


def kaldi(root: Path, *, folders: Sequence[str], language: str | None, name: str) -> Iterator[Fields]:
    """A row for each utterance of Kaldi's data directories: `wav.scp`, `text`, and if there are any `segments`,
    `utt2spk`, `spk2gender` and `utt2lang`.

    Args:
        root: the folder that relative paths of `wav.scp` begin at: where Kaldi's scripts would run.
        folders: the directories below it, as [data/train]; each names its rows' split.
        language: where there is no `utt2lang`.
        name: what the rows' ids begin with.
    """
    if not folders:
        raise UserError("layout.folders=[]: expected data directories below root, as [data/train,data/test]")
    for folder in folders:
        for needed in ("wav.scp", "text"):
            if not (root / folder / needed).is_file():
                raise MissingFileError(f"layout.folders={list(folders)}: there is no {root / folder / needed}")
    return (row for folder in folders for row in _kaldi_rows(root, root / folder, language, name))


def _kaldi_rows(root: Path, folder: Path, language: str | None, name: str) -> Iterator[Fields]:
    sounds, texts = read_map(folder / "wav.scp"), read_map(folder / "text")
    cuts = folder / "segments"
    segments = {key: value.split() for key, value in read_map(cuts).items()} if cuts.is_file() else None
    speakers, genders = read_map(folder / "utt2spk"), read_map(folder / "spk2gender")
    languages = read_map(folder / "utt2lang")
    for key in sorted({*texts, *(sounds if segments is None else segments)}):
        row: Fields = {"id": f"{name}/{folder.name}/{key}", "task": "asr", "split": folder.name}
        try:
            row |= _kaldi_sound(root, key, sounds, segments)
            labels = {"text": texts.get(key), "language": languages.get(key, language), "speaker": speakers.get(key)}
            labels["gender"] = {"m": "male", "f": "female"}.get(genders.get(speakers.get(key, ""), ""))
            yield row | {label: value for label, value in labels.items() if value}
        except ValueError as error:
            yield row | {"problem": str(error)}


def _kaldi_sound(
    root: Path, key: str, sounds: Mapping[str, str], segments: Mapping[str, Sequence[str]] | None
) -> Fields:
    """Where an utterance is heard. Raises ValueError for one that is nowhere, or made by a command."""
    recording, times = key, {}
    if segments is not None:
        try:
            recording, *written = segments[key][:3]
            start, end = map(float, written)
        except (KeyError, ValueError):
            raise UserError(f"segments does not have it as `{key} RECORDING START END`, with seconds") from None
        times = {"offset": start} | ({"duration": round(end - start, 4)} if end >= 0 else {})  # -1: to the end
    if recording not in sounds:
        raise UserError(f"wav.scp does not have {recording}")
    if sounds[recording].endswith("|") or sounds[recording].startswith("|"):
        raise UserError(f"wav.scp has a command for {recording}, and none is executed: write its sound to a file")
    return {"audio": root / sounds[recording], **times}


# --- our own ------------------------------------------------------------------------------------------------------


def manifest(root: Path, *, files: str) -> Iterator[Fields]:
    """The task rows of manifests that are there already, as they are.

    Args:
        root: the folder.
        files: the manifests below it, or a pattern for several; each one's paths are relative to it.
    """
    for path in find_files(root, files):
        for _, record in read_records(path):
            yield {**_own_fields(record, path.parent), "id": record.id}


def _own_fields(record: Record, folder: Path) -> Fields:
    if record.fields is None:
        return {"problem": record.problem}
    fields = dict(record.fields)
    if not {"messages", "conversations", "chosen"}.isdisjoint(fields):
        return {**fields, "problem": "a dialogue: its manifest can be trained on as it is"}
    return map_audio(fields, str, lambda path: folder / path)
