"""Functions that `auris corpus` and `auris instruct` share.

They check options, reuse a finished output directory, derive seeds, write WAV files and run worker processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.progress import Progress

from auris.corpus.signal import SAMPLE_RATE
from auris.data.parallel_map import reset_signals
from auris.errors import UserError
from auris.files import read_json

LICENCE = "CC0-1.0"
_GROUP_SIZE = 8  # number of items that a worker makes in one call, with one child process for eSpeak

Item = TypeVar("Item")
Result = TypeVar("Result")


def reuse_finished_directory(
    out: Path, metadata_file: str, content: str, config: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the metadata of a directory that an earlier run completed, and print a message about it.

    Args:
        out: The directory.
        metadata_file: Name of the JSON file in the directory that holds the metadata.
        content: What the directory contains, for messages.
        config: Settings with which the directory must have been made.

    Returns:
        The metadata; None if the directory is absent or empty.

    Raises:
        UserError: The directory holds other files, or was made with other settings.
    """
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / metadata_file).is_file():
        raise UserError(f"{out} is not empty and holds no {content}; choose a new directory with out=DIR")
    metadata = read_json(out / metadata_file)
    for key, value in json.loads(json.dumps(config)).items():
        old_value = metadata["config"].get(key)
        if old_value != value:
            raise UserError(
                f"{out} was made with other settings ({key}: {old_value}, now {value}); choose another directory with "
                "out=DIR, or delete this one first"
            )
    print(f"{content}: already in {out}, hash {metadata['hash']}")
    return metadata


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all `parts`, such as the corpus's seed, a split, a task and an index."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def hash_bytes(*parts: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 digest of the concatenated `parts`."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def write_clips(clips: Iterable[tuple[Path, NDArray[np.int16]]]) -> bytes:
    """Write 16-bit samples as WAV files; return one SHA-256 digest of all samples.

    FLAC files would be half as large, but decoding them would take a tenth of the time of a training step of the
    smallest models (scale=tiny).
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
    position_of: Callable[[Item], tuple[str, int]],
    *,
    processes: int | None,
    title: str,
) -> list[Result]:
    """Make items in worker processes, in groups of neighbouring items, and show a progress bar.

    eSpeak synthesises the speech of a group in one process, in order. The groups depend only on the items' positions,
    so the results are the same with any number of processes.

    Args:
        make: Takes the items of a group and returns a result for each.
        items: Items to make.
        position_of: Returns the name of the series to which an item belongs, and the item's index in the series.
        processes: Number of worker processes; None for one per core.
        title: Text before the progress bar.

    Returns:
        The results, group by group.
    """
    groups: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        series, index = position_of(item)
        groups.setdefault((series, index // _GROUP_SIZE), []).append(item)
    results: list[Result] = []
    # Workers are spawned: the caller may have threads (torch's), and a fork would copy their locks but not the threads.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(processes, mp_context=context, initializer=reset_signals) as workers,
        Progress() as progress,
    ):
        bar = progress.add_task(title, total=sum(map(len, groups.values())))
        for group_results in workers.map(make, groups.values()):
            results += group_results
            progress.advance(bar, len(group_results))
    return results
