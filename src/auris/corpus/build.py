"""Builds the embedded corpus: the recipe of each task turns a seed into a row and its sound, in worker processes.

A row's seed is derived from the corpus seed and the row's place, and eSpeak speaks for a few neighbouring rows at a
time, in order. So the same seed gives the same bytes with any number of processes, and a larger corpus holds the rows
of a smaller one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from auris.corpus import grammar, speech
from auris.corpus.grammar import LANGUAGES, SPLITS
from auris.corpus.output import LICENCE, check_processes, hash_bytes, read_facts, write_clips
from auris.corpus.plan import Sizes, draw_text, plan, scale_sizes
from auris.corpus.recipes import RECIPES
from auris.corpus.recording import Fields, Job, Recording, Script
from auris.corpus.signal import SAMPLE_RATE
from auris.errors import UserError
from auris.files import new_directory, write_json, write_jsonl, write_text
from auris.text.tasks import TASKS

VERSION = 3  # raise it whenever the same seed would give other bytes
_FACTS_FILE = "corpus.json"
_GROUP = 8  # rows that one worker makes at a time: one fork of eSpeak speaks for all of them


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
        The facts that `corpus.json` holds: config, rows, seconds, vocabulary, voices, hashes.

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
        rows = sum(sum(counts.values()) for counts in facts["rows"].values())
        print(f"The corpus is already in {out}: {rows} rows, hash {facts['hash']}")
        return facts
    check_processes(processes)
    jobs = plan(sizes, directions, seed)
    if not jobs:
        raise UserError("sizes asks for no rows at all; set some, for instance sizes.train.asr.en=100")
    engine = speech.version()
    with new_directory(out) as draft:
        for split in SPLITS:
            (draft / "audio" / split).mkdir(parents=True)
        made = _make_all(jobs, draft, engine, processes or os.cpu_count())
        labels = [draft / f"{split}.jsonl" for split in SPLITS]
        for split, file in zip(SPLITS, labels, strict=True):
            write_jsonl(file, (one.row for one in made if one.row["split"] == split))
        trained = {
            one.row.get(key) for one in made if one.row["split"] == "train" for key in ("language", "target_language")
        }
        lines = draw_text(text_lines, seed, [language for language in LANGUAGES if language in trained])
        write_text(draft / "text.txt", "".join(f"{line}\n" for line in lines))
        labels.append(draft / "text.txt")
        labels_hash = hash_bytes(*(path.read_bytes() for path in labels))
        audio_hash = hash_bytes(*(one.digest for one in made))
        facts = {
            "config": config,
            "engine": engine,
            **_count(made),
            "grammar": {
                "subjects": len(grammar.SUBJECTS),
                "objects": len(grammar.OBJECTS),
                "adjectives": len(grammar.ADJECTIVES),
                "verbs": len(grammar.TRANSITIVE) + len(grammar.INTRANSITIVE),
                "places": len(grammar.PLACES),
                "adverbs": len(grammar.ADVERBS),
                "longest_sentence": grammar.MAX_WORDS,
                "percent_of_meanings": grammar.SHARES,
            },
            "vocabulary": {language: grammar.vocabulary(language) for language in LANGUAGES},
            "voices": speech.VOICES,
            "classes": {task: list(recipe.variants) for task, recipe in RECIPES.items() if "text" in TASKS[task].needs},
            "labels_hash": labels_hash,
            "audio_hash": audio_hash,
            "hash": hash_bytes(labels_hash.encode(), audio_hash.encode()),
        }
        write_json(draft / _FACTS_FILE, facts)
    return facts


@dataclass(frozen=True)
class Made:
    """A finished row, the seconds of its sound and the SHA-256 of its samples."""

    row: Fields
    seconds: float
    digest: bytes


def _make_all(jobs: Sequence[Job], folder: Path, engine: str, processes: int) -> list[Made]:
    """Make the rows of `jobs` with a progress bar; return them in the order of the jobs."""
    groups: dict[tuple[str, str, str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.split, job.task, job.variant, job.index // _GROUP), []).append(job)
    made = {}
    # Spawned, not forked: the caller may have threads (torch's), and a fork would copy their locks but not them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as workers, Progress() as progress:
        bar = progress.add_task("corpus", total=len(jobs))
        for results in workers.map(partial(make_rows, folder=folder, engine=engine), groups.values()):
            made.update({one.row["id"]: one for one in results})
            progress.advance(bar, len(results))
    return [made[job.id] for job in jobs]


def _count(made: Sequence[Made]) -> Fields:
    """Return the rows by split and task, and the seconds of sound by split."""
    rows: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    seconds = dict.fromkeys(SPLITS, 0.0)
    for one in made:
        split, task = one.row["split"], one.row["task"]
        rows[split][task] = rows[split].get(task, 0) + 1
        seconds[split] += one.seconds
    return {"rows": rows, "seconds": {split: round(total, 1) for split, total in seconds.items()}}


def make_rows(jobs: Sequence[Job], folder: Path, engine: str) -> list[Made]:
    """Make the rows of one group (all of one task) and write their sounds below `folder`."""
    drawn = [RECIPES[job.task].make(job, np.random.default_rng(job.seed)) for job in jobs]
    lines = [line for one in drawn if isinstance(one, Script) for line in one.lines]
    spoken = iter(speech.say(lines) if lines else ())
    made = []
    for job, one in zip(jobs, drawn, strict=True):
        if isinstance(one, Script):
            recording = one.record([next(spoken) for _ in one.lines])
            origin = {"provenance": "tts", "generator": engine}
        else:
            recording, origin = one, {"provenance": "procedural", "generator": "auris.corpus"}
        made.append(_finish(job, recording, origin, folder))
    return made


def _finish(job: Job, recording: Recording, origin: Mapping[str, str], folder: Path) -> Made:
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
    return Made(row, seconds, digest)
