"""Builds the embedded corpus: the recipe of each task turns a seed into a row and its sound, in worker processes.

A row's seed is derived from the corpus seed and the row's place, and eSpeak speaks for a few neighbouring rows at a
time, in order. So the same seed gives the same bytes with any number of processes, and a larger corpus holds the rows
of a smaller one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from auris.corpus import speech
from auris.corpus.grammar import LANGUAGES, SPLITS
from auris.corpus.output import LICENCE, check_processes, hash_bytes, make_in_groups, read_facts, write_clips
from auris.corpus.plan import Sizes, draw_text, plan, scale_sizes
from auris.corpus.recipes import RECIPES
from auris.corpus.recording import Fields, Job, Recording, Script
from auris.corpus.signal import SAMPLE_RATE
from auris.errors import UserError
from auris.files import new_directory, write_json, write_jsonl, write_text
from auris.text.tasks import TASKS

VERSION = 3  # raise it whenever the same seed would give other bytes
_FACTS_FILE = "corpus.json"


def build(
    out: Path,
    *,
    sizes: Sizes,
    directions: Sequence[str],
    text_lines: int,
    scale: float = 1.0,
    seed: int = 0,
    processes: int | None = None,
) -> Fields:
    """Make the corpus in the directory `out`, unless it is there already.

    Args:
        out: the directory to make. It appears when it is complete; until then the work is in `out` + '.partial'.
        sizes: rows by split and task, dealt over the task's variants (languages, classes) evenly, or by variant.
        directions: of translation, each 'source-target', over which a number of rows of `s2tt` is dealt.
        scale: multiplies every size, rounding; a task with rows keeps at least one.
        text_lines: lines of `text.txt`, training-split sentences in all languages that training rows have.
        seed: of everything.
        processes: that make rows side by side; None for one per core.

    Returns:
        The facts that `corpus.json` holds: config, rows, seconds, hashes.

    Raises:
        ValueError: for sizes or directions that make no sense, or when `out` holds something else.
        ImportError: when eSpeak NG is not installed.
    """
    sizes = scale_sizes(sizes, scale)
    config = {
        "version": VERSION,
        "seed": seed,
        "sizes": sizes,
        "directions": list(directions),
        "text_lines": text_lines,
    }
    if facts := read_facts(out, _FACTS_FILE, "embedded corpus", config):
        return facts
    check_processes(processes)
    jobs = plan(sizes, directions, seed)
    if not jobs:
        raise UserError("sizes asks for no rows at all; set some, for instance sizes.train.asr.en=100")
    engine = speech.version()
    with new_directory(out) as draft:
        make = partial(make_rows, folder=draft, engine=engine)
        results = make_in_groups(make, jobs, attrgetter("place"), processes=processes, title="corpus")
        by_id = {result.fields["id"]: result for result in results}
        rows = {split: [by_id[job.id] for job in jobs if job.split == split] for split in SPLITS}
        for split, several in rows.items():
            write_jsonl(draft / f"{split}.jsonl", (row.fields for row in several))
        trained = {row.fields.get(key) for row in rows["train"] for key in ("language", "target_language")}
        lines = draw_text(text_lines, seed, [language for language in LANGUAGES if language in trained])
        write_text(draft / "text.txt", "".join(f"{line}\n" for line in lines))
        labels = [draft / name for name in (*(f"{split}.jsonl" for split in SPLITS), "text.txt")]
        labels_hash = hash_bytes(*(path.read_bytes() for path in labels))
        audio_hash = hash_bytes(*(row.digest for several in rows.values() for row in several))
        facts = {
            "config": config,
            "engine": engine,
            "rows": {split: Counter(row.fields["task"] for row in several) for split, several in rows.items()},
            "seconds": {split: round(sum(row.seconds for row in several), 1) for split, several in rows.items()},
            "labels_hash": labels_hash,
            "audio_hash": audio_hash,
            "hash": hash_bytes(labels_hash.encode(), audio_hash.encode()),
        }
        write_json(draft / _FACTS_FILE, facts)
    return facts


@dataclass(frozen=True)
class FinishedRow:
    """The fields of a row, the seconds of its sound and the SHA-256 digest of its samples."""

    fields: Fields
    seconds: float
    digest: bytes


def make_rows(jobs: Sequence[Job], folder: Path, engine: str) -> list[FinishedRow]:
    """Make the rows of one group (all of one task) and write their sounds below `folder`."""
    drawn = [RECIPES[job.task].make(job, np.random.default_rng(job.seed)) for job in jobs]
    lines = [line for one in drawn if isinstance(one, Script) for line in one.lines]
    spoken = iter(speech.say(lines) if lines else ())
    rows = []
    for job, one in zip(jobs, drawn, strict=True):
        if isinstance(one, Script):
            recording = one.record([next(spoken) for _ in one.lines])
            origin = {"provenance": "tts", "generator": engine}
        else:
            recording, origin = one, {"provenance": "procedural", "generator": "auris.corpus"}
        rows.append(_finish(job, recording, origin, folder))
    return rows


def _finish(job: Job, recording: Recording, origin: Mapping[str, str], folder: Path) -> FinishedRow:
    """Write the clips of a row, and make the row."""
    audios = job.audios(len(recording.clips))
    digest = write_clips(zip((folder / audio for audio in audios), recording.clips, strict=True))
    seconds = sum(map(len, recording.clips)) / SAMPLE_RATE
    # What is said of one clip goes before a row's labels; of several there is no single duration.
    clips = {"audio": audios[0], "duration": seconds} if len(audios) == 1 else {"audio": audios}
    row = {"id": job.id, **clips, "task": job.task, **recording.fields}
    if "content" not in row and len(audios) == 1:  # times and notes are no text to be heard: the answer stands for them
        row["content"] = TASKS[job.task].render(row, tags=False)
    row |= {"split": job.split, **origin, "seed": job.seed, "licence": LICENCE}
    return FinishedRow(row, seconds, digest)
