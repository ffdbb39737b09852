"""Builds the embedded corpus: the recipe of each task turns a seed into a row and its sound, in worker processes.

A row's seed is derived from the corpus seed and the row's place, and eSpeak speaks for a few neighbouring rows at a
time, in order. So the same seed gives the same bytes with any number of processes, and a larger corpus holds the rows
of a smaller one.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.progress import Progress

from auris.corpus import grammar, speech
from auris.corpus.grammar import KEYWORDS, LANGUAGES, SPLITS
from auris.corpus.recipes import RECIPES, mark
from auris.corpus.recording import Job, Recording, Script
from auris.corpus.signal import SAMPLE_RATE
from auris.errors import UserError
from auris.text.tasks import TASKS

VERSION = 3  # raise it whenever the same seed would give other bytes
LICENCE = "CC0-1.0"
_GROUP = 8  # rows that one worker makes at a time: one fork of eSpeak speaks for all of them

Sizes = Mapping[str, Mapping[str, int | Mapping[str, int]]]


def build(
    out: Path,
    *,
    sizes: Sizes,
    directions: Sequence[str],
    text_lines: int,
    scale: float = 1.0,
    seed: int = 0,
    processes: int | None = None,
) -> dict[str, Any]:
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
    if out.exists() and any(out.iterdir()):
        facts = _read_same(out, config)
        print(f"The corpus is already in {out}: {sum(map(_total, facts['rows'].values()))} rows, hash {facts['hash']}")
        return facts
    if processes is not None and processes < 1:
        raise UserError(f"processes is {processes}, expected at least 1, or null for one per core (processes=null)")
    jobs = plan(sizes, directions, seed)
    if not jobs:
        raise UserError("sizes asks for no rows at all; set some, for instance sizes.train.asr.en=100")
    engine = speech.version()
    partial_out = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    for split in SPLITS:
        (partial_out / "audio" / split).mkdir(parents=True)
    made, audio_hash = _make_all(jobs, partial_out, engine, processes or os.cpu_count())
    rows = [one.row for one in made]
    for split in SPLITS:
        _write_lines(partial_out / f"{split}.jsonl", (_to_json(row) for row in rows if row["split"] == split))
    trained = {row.get(key) for row in rows if row["split"] == "train" for key in ("language", "target_language")}
    languages = [language for language in LANGUAGES if language in trained]
    _write_lines(partial_out / "text.txt", draw_text(text_lines, seed, languages))
    labels = [partial_out / name for name in (*(f"{split}.jsonl" for split in SPLITS), "text.txt")]
    facts = {
        "config": config,
        "engine": engine,
        "rows": _count(rows),
        "seconds": {split: round(sum(one.seconds for one in made if one.row["split"] == split), 1) for split in SPLITS},
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
        "labels_hash": hash_bytes(*(path.read_bytes() for path in labels)),
        "audio_hash": audio_hash,
    }
    facts["hash"] = hash_bytes(facts["labels_hash"].encode(), facts["audio_hash"].encode())
    _write_lines(partial_out / "corpus.json", [json.dumps(facts, ensure_ascii=False, indent=1)])
    if out.exists():
        out.rmdir()  # empty, as checked above
    partial_out.rename(out)
    return facts


@dataclass(frozen=True)
class Made:
    """A finished row, the seconds of its sound and the SHA-256 of its samples."""

    row: dict[str, Any]
    seconds: float
    digest: bytes


def _make_all(jobs: Sequence[Job], folder: Path, engine: str, processes: int) -> tuple[list[Made], str]:
    """The rows of `jobs`, in order, with a progress bar, and the hash of all their samples."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
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
    in_order = [made[job.id] for job in jobs]
    return in_order, hash_bytes(*(one.digest for one in in_order))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _to_json(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def scale_sizes(sizes: Any, scale: float) -> Any:
    """`sizes` with every number in it multiplied by `scale` and rounded; what was positive stays at least 1."""
    if isinstance(sizes, Mapping):
        return {key: scale_sizes(value, scale) for key, value in sizes.items()}
    return (
        max(round(sizes * scale), min(sizes, 1)) if isinstance(sizes, int) else sizes
    )  # `plan` names what is no count


def hash_bytes(*parts: bytes) -> str:
    """The SHA-256 of `parts` one after the other, as 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _read_same(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The facts of the corpus in `out`, which must have been made with `config`."""
    if not (out / "corpus.json").is_file():
        raise UserError(f"{out} holds files but no embedded corpus; choose a new directory with out=DIR")
    facts = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    config = json.loads(json.dumps(config))
    for key, value in config.items():
        there = facts["config"].get(key)
        if there != value:
            raise UserError(
                f"{out} holds a corpus made with {key}={there}, now {key}={value} is asked for; "
                f"choose another directory with out=DIR, or delete this one first"
            )
    return facts


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _count(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for row in rows:
        counts[row["split"]][row["task"]] = counts[row["split"]].get(row["task"], 0) + 1
    return counts


def plan(sizes: Sizes, directions: Sequence[str], seed: int) -> list[Job]:
    """All rows to make, split by split and task by task; the variants of a task (languages, classes) take turns.

    Raises:
        ValueError: for an unknown split, task, language or direction, or a size that is no count.
    """
    for direction in directions:
        if direction not in RECIPES["s2tt"].others:
            raise UserError(f"directions has {direction!r}, expected two of {', '.join(LANGUAGES)}, as in de-en")
    if unknown := set(sizes) - set(SPLITS):
        raise UserError(f"sizes has the splits {sorted(unknown)}, expected {', '.join(SPLITS)}")
    jobs = []
    for split in SPLITS:
        if unknown := set(sizes.get(split, {})) - set(RECIPES):
            raise UserError(f"sizes.{split} has the tasks {sorted(unknown)}, expected {', '.join(RECIPES)}")
        for task, recipe in RECIPES.items():
            variants = tuple(directions) if task == "s2tt" else recipe.variants
            shares = _deal(f"sizes.{split}.{task}", sizes.get(split, {}).get(task, 0), variants, recipe.others)
            # Every stretch of a task's rows has its variants in proportion, so that the first rows are a fair sample.
            places = sorted(
                (index / share, option, index) for option, share in shares.items() for index in range(share)
            )
            jobs += [
                Job(split, task, option, index, derive_seed(seed, split, task, option, index), mark(task))
                for _, option, index in places
            ]
    return jobs


def _deal(key: str, size: object, variants: Sequence[str], others: Sequence[str]) -> dict[str, int]:
    """Rows of each variant: as `size` says where it names them, else evenly, the first ones rounded up."""
    if isinstance(size, Mapping):
        known = dict.fromkeys((*variants, *others))
        if unknown := set(size) - set(known):
            raise UserError(f"{key} has {sorted(unknown)}, expected rows by any of {', '.join(known)}")
        for variant, share in size.items():
            _check_count(f"{key}.{variant}", share)
        return dict(size)
    _check_count(key, size)
    if size and not variants:
        raise UserError(f"{key}={size}, but directions is empty; name some, or set {key}=0")
    return {variant: (size - place + len(variants) - 1) // len(variants) for place, variant in enumerate(variants)}


def _check_count(key: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{key} is {value!r}, expected a number of rows ({key}=100)")


def derive_seed(*place: int | str) -> int:
    """A seed of 63 bits for this place in the corpus."""
    digest = hashlib.sha256("/".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_text(lines: int, seed: int, languages: Sequence[str]) -> list[str]:
    """Sentences of the training split, the languages taking turns, and after each round of them a keyword phrase."""
    rng = np.random.default_rng(derive_seed(seed, "text"))
    text = []
    for index in range(lines):
        turn = index % (len(languages) + 1)
        if turn < len(languages):
            text.append(grammar.render(grammar.draw_meaning(rng, "train"), languages[turn]))
        else:
            text.append(grammar.draw_keyword_phrase(rng, "train", str(rng.choice(KEYWORDS))).text)
    return text


def make_rows(jobs: Sequence[Job], folder: Path, engine: str) -> list[Made]:
    """Make the rows of one group (all of one task) and write their sounds below `folder`."""
    planned = [RECIPES[job.task].make(job, np.random.default_rng(job.seed)) for job in jobs]
    lines = [line for plan in planned if isinstance(plan, Script) for line in plan.lines]
    spoken = iter(speech.say(lines) if lines else ())
    made = []
    for job, plan in zip(jobs, planned, strict=True):
        if isinstance(plan, Script):
            recording = plan.record([next(spoken) for _ in plan.lines])
            origin = {"provenance": "tts", "generator": engine}
        else:
            recording, origin = plan, {"provenance": "procedural", "generator": "auris.corpus"}
        made.append(_finish(job, recording, origin, folder))
    return made


def _finish(job: Job, recording: Recording, origin: Mapping[str, str], folder: Path) -> Made:
    """Write the clips of a row, and the row."""
    audios = job.audios(len(recording.clips))
    digest = hashlib.sha256()
    for audio, pcm in zip(audios, recording.clips, strict=True):
        write_clip(folder / audio, pcm)
        digest.update(pcm.astype("<i2").tobytes())
    seconds = sum(map(len, recording.clips)) / SAMPLE_RATE
    # What is said of one clip goes before a row's labels; of several there is no single duration.
    clips = {"audio": audios[0], "duration": seconds} if len(audios) == 1 else {"audio": audios}
    row = {"id": job.id, **clips, "task": job.task, **recording.fields}
    if "content" not in row and len(audios) == 1:  # times and notes are no text to be heard: the answer stands for them
        row["content"] = TASKS[job.task].render(row, natural=True)
    row |= {"split": job.split, **origin, "seed": job.seed, "licence": LICENCE}
    return Made(row, seconds, digest.digest())


def write_clip(path: Path, pcm: NDArray[np.int16]) -> None:
    """Write samples as a wav file: flac would be half as large, but decoding it is a tenth of a tiny training step."""
    wav = io.BytesIO()  # soundfile syncs the disk after each file that it writes itself: thousands of waits
    soundfile.write(wav, pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    path.write_bytes(wav.getvalue())
