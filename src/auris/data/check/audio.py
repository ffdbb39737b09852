"""Check of a data set: decodes every clip, and finds faults of single rows and conflicts between rows.

Rows belong to sets (train, valid, test). The same audio twice in one set is a duplicate. If the same audio or the same
sentence is in two sets, the held-out set is contaminated. Audio is compared by its samples at 16 kHz, so a copy as WAV
or FLAC is found, but not a copy that was compressed lossily or resampled.

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
    "unusable": "the row is invalid: not JSON, unknown task, missing label",
    "corrupt": "the audio is missing or cannot be decoded",
    "silent": "samples differ by less than 6 steps of 16-bit audio, such as a constant or dither",
    "clipped": "the audio is clipped at its peaks",
    "length": "the length of the audio does not match the row",
    "duplicate": "an earlier row of the same set has the same audio and asks the same question",
    "contaminated": "audio or a sentence of a held-out set is also in another set",
}

# Clipped audio stays at its highest or lowest value for several samples. A channel counts as clipped if the share of
# such samples exceeds a limit. The limit is low if the value is full scale. Otherwise it must be higher, because low
# tones are flat around their peaks too (1 % of the samples of a 50 Hz tone at 44.1 kHz). Quiet tones of few steps are
# flatter still, but their peaks are at most 2.4 times as frequent as the value next to the peaks.
FULL_SCALE = 0.99
_MIN_RUN = 3  # samples
_MIN_SHARE_AT_FULL_SCALE, _MIN_SHARE_BELOW_FULL_SCALE = 1e-3, 2e-2
_MIN_RATIO_BELOW_FULL_SCALE = 5  # how much more frequent a clipped peak must be than the value next to it

# Letters per second that no speech reaches: twice the rate of the fastest readers (about 20 letters per second in
# English, and 7 in languages that write each syllable as one letter).
_MAX_LETTERS, _MAX_SYLLABLES = 40, 15
_SYLLABIC_LANGUAGES = ("zh", "yue", "ja", "ko")

_BATCH_ROWS = 1024  # number of rows whose clips are decoded together


@dataclass(frozen=True)
class Finding:
    """A fault of a row. The JSON report contains these attributes under the same names.

    Attributes:
        kind: One of KINDS.
        row: Id of the row.
        source: Name of the manifest that contains the row.
        reason: Description of the fault.
        other: Id of the row that it conflicts with, if any.
    """

    kind: str
    row: str
    source: str
    reason: str
    other: str | None = None


@dataclass(frozen=True)
class Source:
    """Rows of one manifest.

    Attributes:
        name: Name of the manifest.
        rows: Rows of the manifest.
        set: The set that all rows belong to; None: each row's `split` determines it.
    """

    name: str
    rows: Sequence[Row]
    set: str | None = None

    def set_of(self, row: Row) -> str:
        """Return the set of a row. Splits such as `train-clean-100` and `train_splits` belong to the set `train`."""
        split = self.set or str(row.labels.get("split") or Path(self.name).stem)
        prefixes = {"train": "train", "dev": "valid", "valid": "valid", "test": "test", "eval": "test"}
        return next((name for prefix, name in prefixes.items() if split.lower().startswith(prefix)), split)


@dataclass(frozen=True)
class DecodedClip:
    """Result of decoding a clip.

    Attributes:
        seconds: Length of the clip.
        digest: Hash of the samples; empty if the clip cannot be decoded or is silent.
        faults: (kind, reason) of each fault of the clip.
    """

    seconds: float
    digest: bytes
    faults: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Report:
    """All findings, and the number of rows and seconds of each set."""

    findings: tuple[Finding, ...]
    n_rows: Mapping[str, int]
    seconds: Mapping[str, float]

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each kind."""
        return {kind: sum(finding.kind == kind for finding in self.findings) for kind in KINDS}

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "rows": dict(self.n_rows),
            "hours": {name: round(seconds / 3600, 4) for name, seconds in self.seconds.items()},
            "counts": self.counts(),
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_rows(
    sources: Sequence[Source], *, jobs: int | None = None, advance: Callable[[int], Any] = lambda n: None
) -> Report:
    """Decode every clip of every row and compare all rows.

    Args:
        sources: Manifests to check.
        jobs: Number of clips that are decoded in parallel; None: depends on the number of cores.
        advance: Called with the number of rows checked since the last call, for progress bars.
    """
    findings: list[Finding] = []
    n_rows: dict[str, int] = {}
    seconds: dict[str, float] = {}
    by_audio: defaultdict[bytes, list[_Occurrence]] = defaultdict(list)
    by_sentence: defaultdict[bytes, list[_Occurrence]] = defaultdict(list)
    for source, row, clips in _decode_rows(sources, jobs):
        set_name = source.set_of(row)
        n_rows[set_name] = n_rows.get(set_name, 0) + 1
        seconds[set_name] = seconds.get(set_name, 0.0) + sum(clip.seconds for clip in clips)
        faults = [("unusable", row.problem)] if row.problem else list(_find_row_faults(row, clips))
        findings += [Finding(kind, row.id, source.name, reason) for kind, reason in faults]
        if row.problem is None:
            if clips and all(clip.digest for clip in clips):
                occurrence = _Occurrence(set_name, row.id, source.name, _question(row))
                by_audio[b"".join(clip.digest for clip in clips)].append(occurrence)
            if sentence := _sentence(row):
                by_sentence[_hash(sentence.encode())].append(_Occurrence(set_name, row.id, source.name))
        advance(1)
    findings += _compare_rows(by_audio, "the same audio", within_set=True)
    findings += _compare_rows(by_sentence, "the same sentence", within_set=False)
    order = {source.name: number for number, source in enumerate(sources)}
    findings.sort(key=lambda finding: (list(KINDS).index(finding.kind), order[finding.source]))
    return Report(tuple(findings), n_rows, seconds)


def _decode_rows(sources: Sequence[Source], jobs: int | None) -> Iterator[tuple[Source, Row, list[DecodedClip]]]:
    """Yield each row with its decoded clips. If neighbouring rows have the same clip, it is decoded once."""
    with ThreadPoolExecutor(jobs) as pool:
        pairs = ((source, row) for source in sources for row in source.rows)
        while batch := list(islice(pairs, _BATCH_ROWS)):
            clips = dict.fromkeys(clip for _, row in batch if row.problem is None for clip in row.clips)
            decoded = dict(zip(clips, pool.map(decode_clip, clips), strict=True))
            for source, row in batch:
                yield source, row, [decoded[clip] for clip in row.clips] if row.problem is None else []


# --- one clip -----------------------------------------------------------------------------------------------------


def decode_clip(clip: Clip) -> DecodedClip:
    """Decode a clip and find its faults."""
    try:
        original, rate = audio.decode(clip.path, *clip.segment)
    except (AudioError, OSError) as error:  # OSError: an invalid file name
        return DecodedClip(0.0, b"", ((_classify_read_fault(clip), str(error)),))
    wave = audio.resample(original, rate)
    seconds = len(wave) / audio.SAMPLE_RATE
    faults = list(_find_length_faults(clip, seconds))
    if audio.is_silent(wave):  # no digest, because silent clips are not duplicates of one another
        is_sum_of_sounds = not all(map(audio.is_silent, original.T))  # such as the two wires of a balanced line
        reason = "its channels cancel each other" if is_sum_of_sounds else "it is constant or dither"
        faults.append(("silent", f"{clip.path}: {reason}, its samples differ by at most {np.ptp(wave):.1e}"))
        return DecodedClip(seconds, b"", tuple(faults))
    if (share := clipped_share(original)) > 0:  # not of `wave`, because resampling smooths the flat peaks
        faults.append(
            ("clipped", f"{clip.path}: {100 * share:.1f} % of its samples are at the highest or lowest value")
        )
    return DecodedClip(seconds, _hash(np.round(wave * 2**15).astype(np.int32).tobytes()), tuple(faults))


def _classify_read_fault(clip: Clip) -> str:
    """Return why a clip cannot be read: `length` (its segment is outside the file) or `corrupt`."""
    try:
        audio.n_samples(clip.path)
    except AudioError:
        return "corrupt"
    try:
        clip.n_samples()
    except AudioError:
        return "length"
    return "corrupt"


def _find_length_faults(clip: Clip, seconds: float) -> Iterator[tuple[str, str]]:
    if clip.offset is None and clip.duration is not None and abs(seconds - clip.duration) > DURATION_TOLERANCE:
        yield "length", f"{clip.path} is {seconds:.2f} s long, but the row states {clip.duration:.2f} s"
    if (header_length := _read_header_length(clip.path)) is not None:
        frames = soundfile.info(str(clip.path)).frames  # libsndfile counts the samples that the file contains
        if header_length > frames:
            yield "corrupt", f"{clip.path}: the file is truncated, it contains {frames} of {header_length} samples"


def _read_header_length(path: Path | audio.Sound) -> int | None:
    """Return the number of samples that the header of a WAV states; None for another format or an unknown length."""
    # Truncated audio in shards is found by checksums.
    if not isinstance(path, Path) or path.suffix.lower() != ".wav":
        return None
    try:
        with wave.open(str(path)) as file:
            frames = file.getnframes()
            # The header of a WAV that was written to a pipe states a huge size, because the length was not known.
            is_open_ended = frames * file.getsampwidth() * file.getnchannels() > 2**31
            return None if is_open_ended else frames
    except (wave.Error, EOFError):  # a WAV format that the module `wave` does not support, but libsndfile does
        return None


def clipped_share(wave: np.ndarray) -> float:
    """Return the share of clipped samples in the worst channel of (L, C); 0 if it is too small to be clipping."""
    return max(map(_clipped_share, np.clip(wave, -1.0, 1.0).T))  # lossy codecs exceed full scale


def _clipped_share(channel: np.ndarray) -> float:
    if audio.is_silent(channel):
        return 0.0
    at_full_scale, below = 0.0, 0.0
    for signal in (channel, -channel):
        top = signal.max()
        is_top = signal == top
        share = _count_in_runs(is_top) / len(signal)
        if abs(top) >= FULL_SCALE:
            at_full_scale += share
        elif top and share:  # 0 is the lowest value of pulses, and of a padded clip with an offset
            inner = signal[~is_top]
            n_next = np.count_nonzero(inner == inner.max())
            below += share if np.count_nonzero(is_top) > _MIN_RATIO_BELOW_FULL_SCALE * n_next else 0.0
    is_clipped = at_full_scale > _MIN_SHARE_AT_FULL_SCALE or below > _MIN_SHARE_BELOW_FULL_SCALE
    return at_full_scale + below if is_clipped else 0.0


def _count_in_runs(is_flat: np.ndarray) -> int:
    """Count the True values of (L,) bool in runs of at least `_MIN_RUN`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_flat, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[0::2]
    return int(lengths[lengths >= _MIN_RUN].sum())


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# --- one row ------------------------------------------------------------------------------------------------------


def _find_row_faults(row: Row, clips: Sequence[DecodedClip]) -> Iterator[tuple[str, str]]:
    for clip in clips:
        yield from clip.faults
    if len(clips) != 1 or not clips[0].seconds:
        return
    [clip] = clips
    for label in {"words", "events", "turns"}.intersection(TASKS[row.labels["task"]].needs):
        ends = [entry["end"] for entry in row.labels[label]]
        if ends and max(ends) > clip.seconds + DURATION_TOLERANCE:
            yield "length", f"`{label}` end at {max(ends):.2f} s, but the clip is {clip.seconds:.2f} s long"
    n_letters = sum(map(str.isalnum, _transcript(row) or ""))
    limit = _MAX_SYLLABLES if row.labels.get("language") in _SYLLABIC_LANGUAGES else _MAX_LETTERS
    if n_letters > limit * max(clip.seconds, 0.5):  # a very short clip may hold only the end of a word
        yield "length", f"{n_letters} letters in {clip.seconds:.2f} s are too many for speech"


def _transcript(row: Row) -> str | None:
    """Return the transcript of a row's clip if its task asks for it."""
    task = TASKS[row.labels["task"]]
    if task.metric == "wer" and "text" in task.needs:
        return row.labels["text"]
    return " ".join(entry["word"] for entry in row.labels["words"]) if "words" in task.needs else None


def _sentence(row: Row) -> str | None:
    """Return the letters of a row's answer if it is a sentence, otherwise None.

    Classes and answers to questions are not sentences, because many rows have the same answer.
    """
    task = TASKS[row.labels["task"]]
    text = row.labels["text"] if "text" in task.needs else _transcript(row)
    if task.closed or not text or not {"mode", "question"}.isdisjoint(task.needs):
        return None
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum()) or None


def _question(row: Row) -> str:
    """Return a key for the question that a row asks about its audio. Rows with different keys are not duplicates.

    If a clip may have several right answers, such as captions, the key includes the answer.
    """
    labels = row.labels
    parts = [labels["task"], labels.get("question"), labels.get("target_language"), str(labels.get("messages"))]
    if TASKS[labels["task"]].metric not in ("accuracy", "wer"):
        parts.append(str(labels.get("text")))
    return "\0".join(map(str, parts))


# --- between rows -------------------------------------------------------------------------------------------------

_SETS = ("train", "valid", "test")  # if two sets have the same audio, the later set is contaminated


class _Occurrence(NamedTuple):
    """A row in which a given audio or sentence occurs."""

    set: str
    row_id: str
    source_name: str
    question: str | None = None


def _compare_rows(groups: Mapping[bytes, Sequence[_Occurrence]], reason: str, *, within_set: bool) -> Iterable[Finding]:
    """Yield a finding for each row that repeats an earlier row of another set or, if `within_set`, of the same set."""
    for group in groups.values():
        ordered = sorted(group, key=lambda row: _SETS.index(row.set) if row.set in _SETS else len(_SETS))
        for number, (set_name, row_id, source_name, question) in enumerate(ordered):
            earlier = ordered[:number]
            if other := next((entry for entry in earlier if entry.set != set_name), None):
                message = f"{reason} as {other.row_id} of {other.set}"
                yield Finding("contaminated", row_id, source_name, message, other.row_id)
            elif within_set and (twin := next((entry for entry in earlier if entry.question == question), None)):
                yield Finding("duplicate", row_id, source_name, f"{reason} as {twin.row_id}", twin.row_id)
