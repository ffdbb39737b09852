"""Helpers of `auris corpus` and `auris instruct`: checks, finished directories, seeds, audio files, processes."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.progress import Progress

from auris.corpus.recording import Fields
from auris.corpus.signal import SAMPLE_RATE
from auris.errors import UserError
from auris.files import read_json

LICENCE = "CC0-1.0"
_GROUP = 8  # items that a worker makes in one call, with a single fork of eSpeak

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_count(key: str, value: object) -> int:
    """Return `value` if it is a number of rows.

    Raises:
        UserError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{key} is {value!r}, expected a number of rows ({key}=100)")
    return value


def check_processes(processes: int | None) -> None:
    """Raise UserError unless `processes` is a number of processes, or None for one per core."""
    if processes is not None and processes < 1:
        raise UserError(f"processes is {processes}, expected at least 1, or null for one per core (processes=null)")


def read_facts(out: Path, name: str, kind: str, config: Fields) -> Fields | None:
    """Return the facts of a finished directory and say that it exists; None if it is absent or empty.

    Args:
        out: The directory.
        name: Name of its file of facts.
        kind: Content of the directory, for messages.
        config: Settings that it must have been made with.

    Raises:
        UserError: The directory holds something else, or was made with other settings.
    """
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / name).is_file():
        raise UserError(f"{out} is not empty and holds no {kind}; choose a new directory with out=DIR")
    facts = read_json(out / name)
    for key, value in json.loads(json.dumps(config)).items():
        old = facts["config"].get(key)
        if old != value:
            raise UserError(
                f"{out} was made with other settings ({key}: {old}, now {value}); choose another directory with "
                "out=DIR, or delete this one first"
            )
    print(f"{kind}: already in {out}, hash {facts['hash']}")
    return facts


def derive_seed(*place: int | str) -> int:
    """Return a seed of 63 bits for a place in the corpus, as (split, task, variant, index)."""
    digest = hashlib.sha256("/".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def hash_bytes(*parts: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 digest of the concatenated `parts`."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def write_clips(clips: Iterable[tuple[Path, NDArray[np.int16]]]) -> bytes:
    """Write 16-bit samples as WAV files; return the SHA-256 digest of all of them.

    FLAC would be half as large, but decoding it takes a tenth of a tiny training step.
    """
    digest = hashlib.sha256()
    for path, pcm in clips:
        path.parent.mkdir(parents=True, exist_ok=True)
        wav = io.BytesIO()  # soundfile itself would sync the disk after each of thousands of files
        soundfile.write(wav, pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        path.write_bytes(wav.getvalue())
        digest.update(pcm.astype("<i2").tobytes())
    return digest.digest()


def make_in_groups(
    make: Callable[[Sequence[Item]], list[Result]],
    items: Iterable[Item],
    place: Callable[[Item], tuple[str, int]],
    *,
    processes: int | None,
    title: str,
) -> list[Result]:
    """Make items in worker processes, a few neighbours at a time, and show a progress bar.

    eSpeak synthesises the speech of a group in one process, in order. Groups depend only on the items' places, so the
    results are the same with any number of processes.

    Args:
        make: Takes the items of a group and returns a result for each.
        items: Items to make.
        place: Returns the series that an item belongs to, and its index there.
        processes: Number of workers; None for one per core.
        title: Text before the progress bar.

    Returns:
        The results, group by group.
    """
    groups: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        series, index = place(item)
        groups.setdefault((series, index // _GROUP), []).append(item)
    results: list[Result] = []
    # Workers are spawned: the caller may have threads (torch's), and a fork would copy their locks but not the threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as workers, Progress() as progress:
        bar = progress.add_task(title, total=sum(map(len, groups.values())))
        for group_results in workers.map(make, groups.values()):
            results += group_results
            progress.advance(bar, len(group_results))
    return results
