"""The health of rows: every clip decoded, and what is wrong with it or between it and the other rows.

Rows belong to sets (train, valid, test): the same sound twice in one set is a duplicate, in two sets it contaminates
the one that is held out, as does a sentence of its own. Equal sound is told by its samples at 16 kHz: a copy as WAV or
FLAC is found, one that went through a lossy codec or another rate is not.

Shapes: L samples, C channels.
"""

from __future__ import annotations

import hashlib
import unicodedata
import wave
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from auris import audio
from auris.data.rows import Clip, Row
from auris.data.samples import DURATION_TOLERANCE
from auris.errors import AudioError
from auris.text.tasks import TASKS

KINDS = {
    "unusable": "the row itself: no JSON, unknown task, a label missing",
    "corrupt": "sound that is missing or cannot be decoded",
    "silent": "samples that differ by less than one step of 16-bit audio",
    "clipped": "sound that was cut off at its loudest",
    "length": "sound that is not as long as its row says",
    "duplicate": "sound of an earlier row of the same set, with the same task",
    "contaminated": "sound or a sentence of a held-out set that stands in another set",
}

# Clipped sound stays for several samples at its highest or lowest value. Where that is full scale, fewer such samples
# tell it: a low tone, too, is flat for a few samples around its peaks (1 % of them at 50 Hz and 44.1 kHz).
FULL_SCALE = 0.99
_FLAT_RUN = 3  # samples
_CLIPPED_AT_FULL_SCALE, _CLIPPED_BELOW = 1e-3, 2e-2  # of all samples

# Letters in a second that nobody speaks: twice the fastest readers (about 20 in English, 7 syllables elsewhere).
_FASTEST, _FASTEST_BY_SYLLABLE = 40, 15
_SYLLABIC = ("zh", "yue", "ja", "ko")

_BATCH = 1024  # clips that wait for their turn


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a row; `other` is the row that it stands against."""

    kind: str
    row: str
    source: str
    reason: str
    other: str | None = None


@dataclass(frozen=True)
class Source:
    """Rows of one manifest and the set that they belong to; None: each row's `split` tells."""

    name: str
    rows: Sequence[Row]
    set: str | None = None

    def set_of(self, row: Row) -> str:
        """Splits of many names are of few sets: `train-clean-100`, `train_splits`; `dev` is what others call valid."""
        told = self.set or str(row.labels.get("split") or Path(self.name).stem)
        starts = {"train": "train", "dev": "valid", "valid": "valid", "test": "test", "eval": "test"}
        return next((name for start, name in starts.items() if told.lower().startswith(start)), told)


@dataclass(frozen=True)
class DecodedClip:
    """What decoding a clip tells: its length, a hash of its samples, and what is wrong with it by itself."""

    seconds: float
    digest: bytes
    faults: tuple[tuple[str, str], ...]  # (kind, reason)


@dataclass(frozen=True)
class Report:
    """All findings, and how many rows and hours were looked at in each set."""

    findings: tuple[Finding, ...]
    rows: Mapping[str, int]
    seconds: Mapping[str, float]

    def counts(self) -> dict[str, int]:
        return {kind: sum(found.kind == kind for found in self.findings) for kind in KINDS}

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": dict(self.rows),
            "hours": {name: round(seconds / 3600, 4) for name, seconds in self.seconds.items()},
            "counts": self.counts(),
            "findings": [asdict(found) for found in self.findings],
        }


def check_rows(
    sources: Sequence[Source], *, jobs: int | None = None, advance: Callable[[int], Any] = lambda n: None
) -> Report:
    """Decode every clip of every row and compare all rows.

    Args:
        jobs: clips that are decoded side by side; None: by the number of cores.
        advance: called with the number of rows that are done.
    """
    findings: list[Finding] = []
    rows: dict[str, int] = {}
    seconds: dict[str, float] = {}
    sounds, sentences = defaultdict(list), defaultdict(list)
    for source, row, heard in _hear_rows(sources, jobs):
        here = source.set_of(row)
        rows[here] = rows.get(here, 0) + 1
        seconds[here] = seconds.get(here, 0.0) + sum(clip.seconds for clip in heard)
        own = [("unusable", row.problem)] if row.problem else list(_own_faults(row, heard))
        findings += [Finding(kind, row.id, source.name, reason) for kind, reason in own]
        if row.problem is None:
            if heard and all(clip.digest for clip in heard):
                place = _Place(here, row.id, source.name, _question(row))
                sounds[b"".join(clip.digest for clip in heard)].append(place)
            if sentence := _sentence(row):
                sentences[_hash(sentence.encode())].append(_Place(here, row.id, source.name))
        advance(1)
    findings += _between(sounds, "the same sound", repeated=True)
    findings += _between(sentences, "the same sentence", repeated=False)
    order = {source.name: number for number, source in enumerate(sources)}
    findings.sort(key=lambda found: (list(KINDS).index(found.kind), order[found.source]))
    return Report(tuple(findings), rows, seconds)


def _hear_rows(sources: Sequence[Source], jobs: int | None) -> Iterator[tuple[Source, Row, list[DecodedClip]]]:
    """Each row with what its clips tell. A clip of neighbouring rows (one for each task) is decoded once."""
    with ThreadPoolExecutor(jobs) as pool:
        pairs = ((source, row) for source in sources for row in source.rows)
        while batch := list(islice(pairs, _BATCH)):
            clips = dict.fromkeys(clip for _, row in batch if row.problem is None for clip in row.clips)
            heard = dict(zip(clips, pool.map(decode_clip, clips), strict=True))
            for source, row in batch:
                yield source, row, [heard[clip] for clip in row.clips] if row.problem is None else []


# --- one clip -----------------------------------------------------------------------------------------------------


def decode_clip(clip: Clip) -> DecodedClip:
    """Decode a clip and look at it."""
    try:
        native, rate = audio.decode(clip.path, *clip.segment)
    except (AudioError, OSError) as error:  # OSError: a name that no file can have
        return DecodedClip(0.0, b"", ((_blame(clip), str(error)),))
    wave = audio.resample(native, rate)
    seconds = len(wave) / audio.SAMPLE_RATE
    faults = list(_length_faults(clip, seconds))
    if audio.is_silent(wave):  # and no duplicate of any other silent clip
        faults.append(("silent", f"{clip.path}: its samples lie within {np.ptp(wave):.1e} of each other"))
        return DecodedClip(seconds, b"", tuple(faults))
    if (share := clipped_share(native)) > 0:  # resampling rounds off what clipping made flat
        faults.append(
            ("clipped", f"{clip.path}: {100 * share:.1f} % of its samples stay at the highest or lowest value")
        )
    return DecodedClip(seconds, _hash(np.round(wave * 2**15).astype(np.int32).tobytes()), tuple(faults))


def _blame(clip: Clip) -> str:
    """Return the kind of fault that keeps a clip from being read: a stretch outside a good file is the row's."""
    try:
        audio.n_samples(clip.path)
    except AudioError:
        return "corrupt"
    try:
        clip.n_samples()
    except AudioError:
        return "length"
    return "corrupt"


def _length_faults(clip: Clip, seconds: float) -> Iterator[tuple[str, str]]:
    if clip.offset is None and clip.duration is not None and abs(seconds - clip.duration) > DURATION_TOLERANCE:
        yield "length", f"{clip.path} is {seconds:.2f} s, the row says {clip.duration:.2f} s"
    if (stated := _stated_frames(clip.path)) is not None:
        there = soundfile.info(str(clip.path)).frames
        if stated > there:
            yield "corrupt", f"{clip.path}: has {there} of {stated} samples, the file is cut off"


def _stated_frames(path: Path | audio.Sound) -> int | None:
    """Samples that the header of a WAV states, which libsndfile corrects silently by the length of the file."""
    if not isinstance(path, Path) or path.suffix.lower() != ".wav":  # shards have checksums
        return None
    try:
        with wave.open(str(path)) as file:
            frames = file.getnframes()
            is_open = frames * file.getsampwidth() * file.getnchannels() > 2**31  # as what is written to a pipe states
            return None if is_open else frames
    except (wave.Error, EOFError):  # a form that this module does not know; libsndfile has read it
        return None


def clipped_share(wave: np.ndarray) -> float:
    """Share of (L, C) samples that stay at the highest or lowest value of the worst channel; 0: that is no clipping."""
    worst = 0.0
    for channel in np.clip(wave, -1.0, 1.0).T:  # lossy codecs overshoot
        top, bottom = channel.max(), channel.min()
        share = sum(_in_runs(channel == value) for value in (top, bottom)) / len(channel)
        limit = _CLIPPED_AT_FULL_SCALE if max(top, -bottom) >= FULL_SCALE else _CLIPPED_BELOW
        worst = max(worst, share if share > limit else 0.0)
    return worst


def _in_runs(flat: np.ndarray) -> int:
    """(L,) bool -> how many lie in runs of `_FLAT_RUN` or more."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[0::2]
    return int(lengths[lengths >= _FLAT_RUN].sum())


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# --- one row ------------------------------------------------------------------------------------------------------


def _own_faults(row: Row, heard: Sequence[DecodedClip]) -> Iterator[tuple[str, str]]:
    for clip in heard:
        yield from clip.faults
    if len(heard) != 1 or not heard[0].seconds:
        return
    [clip] = heard
    for label in {"words", "events", "turns"}.intersection(TASKS[row.labels["task"]].needs):
        ends = [entry["end"] for entry in row.labels[label]]
        if ends and max(ends) > clip.seconds + DURATION_TOLERANCE:
            yield "length", f"its {label} end at {max(ends):.2f} s, the clip at {clip.seconds:.2f} s"
    letters = sum(map(str.isalnum, _transcript(row) or ""))
    fastest = _FASTEST_BY_SYLLABLE if row.labels.get("language") in _SYLLABIC else _FASTEST
    if letters > fastest * max(clip.seconds, 0.5):  # a word's end may be all that is left of a very short clip
        yield "length", f"{letters} letters in {clip.seconds:.2f} s are more than anybody speaks"


def _transcript(row: Row) -> str | None:
    """What is said in a row's clip, where that is what its task asks for."""
    task = TASKS[row.labels["task"]]
    if task.metric == "wer" and "text" in task.needs:
        return row.labels["text"]
    return " ".join(entry["word"] for entry in row.labels["words"]) if "words" in task.needs else None


def _sentence(row: Row) -> str | None:
    """The answer of a row as letters alone, where it is a sentence of its own: neither a class, nor the answer to a
    question, which many rows share."""
    task = TASKS[row.labels["task"]]
    text = row.labels["text"] if "text" in task.needs else _transcript(row)
    if task.closed or not text or not {"mode", "question"}.isdisjoint(task.needs):
        return None
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum()) or None


def _question(row: Row) -> str:
    """What a row asks about its sound: the same sound may be asked different things, and captioned several times."""
    labels = row.labels
    asked = [labels["task"], labels.get("question"), labels.get("target_language"), str(labels.get("messages"))]
    if TASKS[labels["task"]].metric not in ("accuracy", "wer"):
        asked.append(str(labels.get("text")))
    return "\0".join(map(str, asked))


# --- between rows -------------------------------------------------------------------------------------------------

_ORDER = ("train", "valid", "test")  # of two sets with the same sound, the later one is contaminated


class _Place(NamedTuple):
    """Where something that must not be in two sets was met."""

    set: str
    row: str
    source: str
    question: str | None = None


def _between(seen: Mapping[bytes, Sequence[_Place]], what: str, *, repeated: bool) -> Iterable[Finding]:
    """Findings of rows that share what was seen; `repeated`: also within a set."""
    for places in seen.values():
        ordered = sorted(places, key=lambda place: _ORDER.index(place.set) if place.set in _ORDER else len(_ORDER))
        for number, (here, row, source, question) in enumerate(ordered):
            before = ordered[:number]
            if foreign := next((place for place in before if place.set != here), None):
                yield Finding("contaminated", row, source, f"{what} as {foreign.row} of {foreign.set}", foreign.row)
            elif repeated and (twin := next((place for place in before if place.question == question), None)):
                yield Finding("duplicate", row, source, f"{what} as {twin.row}", twin.row)
