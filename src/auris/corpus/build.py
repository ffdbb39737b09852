"""Builder of the embedded corpus. The recipe of each task turns a seed into a row and its audio.

The seed of a row is derived from the corpus seed and the row's place, and eSpeak synthesises a few neighbouring rows at
a time, in order. Therefore the same seed gives the same bytes with any number of worker processes, and a larger corpus
contains the rows of a smaller one.
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
from auris.files import create_directory, write_json, write_jsonl, write_text
from auris.text.tasks import TASKS

VERSION = 3  # to be raised whenever the same seed gives other bytes
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
    """Write the corpus into the directory `out`, unless it exists already.

    Args:
        out: Directory to create. It appears when it is complete; until then files are written to `out` + '.partial'.
        sizes: Numbers of rows by split and task. A number is divided evenly among the task's variants (languages,
            classes); a mapping gives the number for each variant.
        directions: Translation directions, as 'de-en', among which a number of rows of `s2tt` is divided.
        scale: Factor of every size, with rounding; a task with rows keeps at least one.
        text_lines: Number of lines of `text.txt`: sentences of the training split in all languages of training rows.
        seed: Random seed.
        processes: Number of worker processes; None for one per core.

    Returns:
        The content of `corpus.json`: config, numbers of rows, seconds, hashes.

    Raises:
        UserError: A size or direction is invalid, or `out` holds something else.
        ImportError: eSpeak NG is not installed.
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
        raise UserError("sizes is 0 for every task; set one, for instance sizes.train.asr.en=100")
    engine = speech.version()
    with create_directory(out) as draft:
        make = partial(make_rows, folder=draft, engine=engine)
        results = make_in_groups(make, jobs, attrgetter("place"), processes=processes, title="corpus")
        by_id = {result.fields["id"]: result for result in results}
        rows = {split: [by_id[job.id] for job in jobs if job.split == split] for split in SPLITS}
        for split, split_rows in rows.items():
            write_jsonl(draft / f"{split}.jsonl", (row.fields for row in split_rows))
        train_languages = {row.fields.get(key) for row in rows["train"] for key in ("language", "target_language")}
        lines = draw_text(text_lines, seed, [language for language in LANGUAGES if language in train_languages])
        write_text(draft / "text.txt", "".join(f"{line}\n" for line in lines))
        label_files = [draft / name for name in (*(f"{split}.jsonl" for split in SPLITS), "text.txt")]
        labels_hash = hash_bytes(*(path.read_bytes() for path in label_files))
        audio_hash = hash_bytes(*(row.digest for split_rows in rows.values() for row in split_rows))
        facts = {
            "config": config,
            "engine": engine,
            "rows": {split: Counter(row.fields["task"] for row in split_rows) for split, split_rows in rows.items()},
            "seconds": {split: round(sum(row.seconds for row in split_rows), 1) for split, split_rows in rows.items()},
            "labels_hash": labels_hash,
            "audio_hash": audio_hash,
            "hash": hash_bytes(labels_hash.encode(), audio_hash.encode()),
        }
        write_json(draft / _FACTS_FILE, facts)
    return facts


@dataclass(frozen=True)
class FinishedRow:
    """A row whose audio is written.

    Attributes:
        fields: The row as in the manifest.
        seconds: Duration of its clips together.
        digest: SHA-256 digest of its samples.
    """

    fields: Fields
    seconds: float
    digest: bytes


def make_rows(jobs: Sequence[Job], folder: Path, engine: str) -> list[FinishedRow]:
    """Make the rows of one group (all of one task) and write their audio below `folder`."""
    drafts = [RECIPES[job.task].make(job, np.random.default_rng(job.seed)) for job in jobs]
    lines = [line for draft in drafts if isinstance(draft, Script) for line in draft.lines]
    utterances = iter(speech.say(lines) if lines else ())
    rows = []
    for job, draft in zip(jobs, drafts, strict=True):
        if isinstance(draft, Script):
            recording = draft.record([next(utterances) for _ in draft.lines])
            origin = {"provenance": "tts", "generator": engine}
        else:
            recording, origin = draft, {"provenance": "procedural", "generator": "auris.corpus"}
        rows.append(_finish(job, recording, origin, folder))
    return rows


def _finish(job: Job, recording: Recording, origin: Mapping[str, str], folder: Path) -> FinishedRow:
    """Write the clips of a row and complete its fields."""
    audios = job.audios(len(recording.clips))
    digest = write_clips(zip((folder / audio for audio in audios), recording.clips, strict=True))
    seconds = sum(map(len, recording.clips)) / SAMPLE_RATE
    # A manifest has a duration for rows with one clip only.
    clips = {"audio": audios[0], "duration": seconds} if len(audios) == 1 else {"audio": audios}
    row = {"id": job.id, **clips, "task": job.task, **recording.fields}
    if "content" not in row and len(audios) == 1:  # labels such as times and notes are represented by the answer
        row["content"] = TASKS[job.task].render(row, tags=False)
    row |= {"split": job.split, **origin, "seed": job.seed, "licence": LICENCE}
    return FinishedRow(row, seconds, digest)
