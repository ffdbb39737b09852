"""Builds the embedded corpus: one maker per task turns a seed into a row and its sound; worker processes do the rows.

A row's seed is derived from the corpus seed and the row's place, and eSpeak speaks for a few neighbouring rows at a
time, in order. So the same seed gives the same bytes with any number of processes, and a larger corpus holds the rows
of a smaller one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.progress import Progress

from auris.corpus import grammar, music, sound, speech
from auris.corpus.grammar import KEYWORDS, LANGUAGES, SPLITS
from auris.corpus.signal import SAMPLE_RATE, Signal, add, add_background, reverberate, samples, to_pcm

VERSION = 3  # raise it whenever the same seed would give other bytes
LICENCE = "CC0-1.0"
_GROUP = 8  # rows that one worker makes at a time: one fork of eSpeak speaks for all of them
COUNTS = ("one", "two", "three")
# How a question names a sound.
SOUND_PHRASES = {name: f"a {name}" for name in sound.SOUNDS} | {
    "rain": "rain",
    "engine": "an engine",
    "wind": "wind",
    "footsteps": "footsteps",
    "alarm": "an alarm",
}

Rng = np.random.Generator
Sizes = Mapping[str, Mapping[str, int | Mapping[str, int]]]


@dataclass(frozen=True)
class Job:
    """One row to make: its place in the corpus and what is decided by place rather than by chance.

    `variant` is the language (asr, lid), the direction such as 'de-en' (s2tt), or the class that is the answer.
    """

    split: str
    task: str
    variant: str
    index: int
    seed: int

    @property
    def id(self) -> str:
        return f"{self.split}-{self.task}-{self.variant}-{self.index:05d}"

    @property
    def audio(self) -> str:
        return f"audio/{self.split}/{self.id}.wav"


@dataclass(frozen=True)
class Script:
    """A row that is yet to be spoken: its own fields, and what is said by whom."""

    fields: dict[str, Any]
    line: speech.Line


@dataclass(frozen=True)
class Recording:
    """A row with its sound as 16-bit samples."""

    fields: dict[str, Any]
    pcm: NDArray[np.int16]


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
        sizes: rows by split and task; for `asr` by language.
        directions: of translation, each 'source-target'. The rows of `s2tt` are dealt over them evenly.
        scale: multiplies every size, rounding; a task with rows keeps at least one.
        text_lines: lines of `text.txt`, training-split sentences in all languages.
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
        raise ValueError(f"processes is {processes}, expected at least 1, or null for one per core (processes=null)")
    jobs = plan(sizes, directions, seed)
    if not jobs:
        raise ValueError("sizes asks for no rows at all; set some, for instance sizes.train.asr.en=100")
    engine = speech.version()
    partial_out = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    for split in SPLITS:
        (partial_out / "audio" / split).mkdir(parents=True)
    rows, audio_hash = _make_all(jobs, partial_out, engine, processes or os.cpu_count())
    for split in SPLITS:
        _write_lines(partial_out / f"{split}.jsonl", (_to_json(row) for row in rows if row["split"] == split))
    _write_lines(partial_out / "text.txt", draw_text(text_lines, seed))
    labels = [partial_out / name for name in (*(f"{split}.jsonl" for split in SPLITS), "text.txt")]
    facts = {
        "config": config,
        "engine": engine,
        "rows": _count(rows),
        "seconds": {split: round(sum(row["duration"] for row in rows if row["split"] == split), 1) for split in SPLITS},
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
        "classes": {"ks": list(KEYWORDS), "sec": list(sound.SOUNDS), "mic": list(music.INSTRUMENTS)},
        "labels_hash": hash_bytes(*(path.read_bytes() for path in labels)),
        "audio_hash": audio_hash,
    }
    facts["hash"] = hash_bytes(facts["labels_hash"].encode(), facts["audio_hash"].encode())
    _write_lines(partial_out / "corpus.json", [json.dumps(facts, ensure_ascii=False, indent=1)])
    if out.exists():
        out.rmdir()  # empty, as checked above
    partial_out.rename(out)
    return facts


def _make_all(jobs: Sequence[Job], folder: Path, engine: str, processes: int) -> tuple[list[dict[str, Any]], str]:
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
            made.update({row["id"]: (row, digest) for row, digest in results})
            progress.advance(bar, len(results))
    rows, digests = zip(*(made[job.id] for job in jobs), strict=True)
    return list(rows), hash_bytes(*digests)


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
        raise ValueError(f"{out} holds files but no embedded corpus; choose a new directory with out=DIR")
    facts = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    config = json.loads(json.dumps(config))
    for key, value in config.items():
        there = facts["config"].get(key)
        if there != value:
            raise ValueError(
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
        source, _, target = direction.partition("-")
        if source not in LANGUAGES or target not in LANGUAGES or source == target:
            raise ValueError(f"directions has {direction!r}, expected two of {', '.join(LANGUAGES)}, as in de-en")
    variants = {
        "asr": LANGUAGES,
        "s2tt": tuple(directions),
        "lid": LANGUAGES,
        "sgc": ("male", "female"),
        "ks": KEYWORDS,
        "sec": tuple(sound.SOUNDS),
        "mic": tuple(music.INSTRUMENTS),
        "aqa": ("exist", "order", "count"),
    }
    if unknown := set(sizes) - set(SPLITS):
        raise ValueError(f"sizes has the splits {sorted(unknown)}, expected {', '.join(SPLITS)}")
    jobs = []
    for split in SPLITS:
        if unknown := set(sizes.get(split, {})) - set(variants):
            raise ValueError(f"sizes.{split} has the tasks {sorted(unknown)}, expected {', '.join(variants)}")
        for task, options in variants.items():
            shares = _deal(f"sizes.{split}.{task}", sizes.get(split, {}).get(task, 0), options, task == "asr")
            # Every stretch of a task's rows has its variants in proportion, so that the first rows are a fair sample.
            places = sorted(
                (index / share, option, index) for option, share in shares.items() for index in range(share)
            )
            jobs += [
                Job(split, task, option, index, derive_seed(seed, split, task, option, index))
                for _, option, index in places
            ]
    return jobs


def _deal(key: str, size: object, options: Sequence[str], by_language: bool) -> dict[str, int]:
    """Rows for each of `options`: as `size` says where it goes by language, else evenly, the first ones rounded up."""
    if by_language:
        shares = size or {}
        if not isinstance(shares, Mapping) or set(shares) - set(options):
            raise ValueError(f"{key} is {size!r}, expected rows by language: {key}.en=100")
        for language, share in shares.items():
            _check_count(f"{key}.{language}", share)
        return dict(shares)
    _check_count(key, size)
    if size and not options:
        raise ValueError(f"{key}={size}, but directions is empty; name some, or set {key}=0")
    return {option: (size - place + len(options) - 1) // len(options) for place, option in enumerate(options)}


def _check_count(key: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is {value!r}, expected a number of rows ({key}=100)")


def derive_seed(*place: int | str) -> int:
    """A seed of 63 bits for this place in the corpus."""
    digest = hashlib.sha256("/".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_text(lines: int, seed: int) -> list[str]:
    """Sentences of the training split, the languages taking turns; every eighth line is a keyword phrase."""
    rng = np.random.default_rng(derive_seed(seed, "text"))
    text = []
    for index in range(lines):
        turn = index % (len(LANGUAGES) + 1)
        if turn < len(LANGUAGES):
            text.append(grammar.render(grammar.draw_meaning(rng, "train"), LANGUAGES[turn]))
        else:
            text.append(grammar.draw_keyword_phrase(rng, "train", str(rng.choice(KEYWORDS))).text)
    return text


def make_rows(jobs: Sequence[Job], folder: Path, engine: str) -> list[tuple[dict[str, Any], bytes]]:
    """Make the rows of one group (all of one task) and write their sounds below `folder`.

    Returns each row with the SHA-256 of its samples.
    """
    rngs = [np.random.default_rng(job.seed) for job in jobs]
    if jobs[0].task in _SPOKEN:
        scripts = [_SPOKEN[job.task](job, rng) for job, rng in zip(jobs, rngs, strict=True)]
        utterances = speech.say([script.line for script in scripts])
        recordings = [stage(*parts) for parts in zip(scripts, utterances, rngs, strict=True)]
        origin = {"provenance": "tts", "generator": engine}
    else:
        recordings = [_PROCEDURAL[job.task](job, rng) for job, rng in zip(jobs, rngs, strict=True)]
        origin = {"provenance": "procedural", "generator": "auris.corpus"}
    results = []
    for job, recording in zip(jobs, recordings, strict=True):
        write_clip(folder / job.audio, recording.pcm)
        place = {"id": job.id, "audio": job.audio, "duration": len(recording.pcm) / SAMPLE_RATE, "task": job.task}
        row = {**place, **recording.fields, "split": job.split, **origin, "seed": job.seed, "licence": LICENCE}
        results.append((row, hashlib.sha256(recording.pcm.astype("<i2").tobytes()).digest()))
    return results


def write_clip(path: Path, pcm: NDArray[np.int16]) -> None:
    """Write samples as a wav file: flac would be half as large, but decoding it is a tenth of a tiny training step."""
    wav = io.BytesIO()  # soundfile syncs the disk after each file that it writes itself: thousands of waits
    soundfile.write(wav, pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    path.write_bytes(wav.getvalue())


def _script_asr(job: Job, rng: Rng) -> Script:
    # Every third English row is a keyword phrase: keywords are to be learnt as words too, not only spotted.
    if job.variant == "en" and job.index % 3 == 2:
        text = grammar.draw_keyword_phrase(rng, job.split, str(rng.choice(KEYWORDS))).text
    else:
        text = grammar.render(grammar.draw_meaning(rng, job.split), job.variant)
    return Script({"language": job.variant, "text": text, "content": text}, cast(rng, job, text, job.variant))


def _script_s2tt(job: Job, rng: Rng) -> Script:
    source, target = job.variant.split("-")
    meaning = grammar.draw_meaning(rng, job.split)
    transcript, text = grammar.render(meaning, source), grammar.render(meaning, target)
    labels = {"language": source, "target_language": target, "text": text, "transcript": transcript}
    return Script({**labels, "content": transcript}, cast(rng, job, transcript, source))


def _script_lid(job: Job, rng: Rng) -> Script:
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), job.variant)
    labels = {"language": job.variant, "transcript": transcript}
    return Script({**labels, "content": transcript}, cast(rng, job, transcript, job.variant))


def _script_sgc(job: Job, rng: Rng) -> Script:
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), "en")
    labels = {"language": "en", "text": job.variant, "transcript": transcript}
    line = cast(rng, job, transcript, "en", gender=job.variant)
    return Script({**labels, "content": f"{job.variant} {transcript}"}, line)


def _script_ks(job: Job, rng: Rng) -> Script:
    transcript = grammar.draw_keyword_phrase(rng, job.split, job.variant).text
    labels = {"language": "en", "text": job.variant, "transcript": transcript}
    return Script({**labels, "content": transcript}, cast(rng, job, transcript, "en"))


def _record_sec(job: Job, rng: Rng) -> Recording:
    signal = sound.make(job.variant, rng, rng.uniform(1.2, 2.2))
    return Recording({"language": "en", "text": job.variant, "content": job.variant}, _capture(rng, signal))


def _record_mic(job: Job, rng: Rng) -> Recording:
    signal = music.play(job.variant, rng, rng.uniform(1.2, 2.4))
    return Recording({"language": "en", "text": job.variant, "content": job.variant}, _capture(rng, signal))


def _record_aqa(job: Job, rng: Rng) -> Recording:
    """A scene of one to three different sounds with a question on it; the answers take turns where they are few."""
    if job.variant == "count":
        count = 1 + job.index % len(COUNTS)
    else:
        count = int(rng.integers(2 if job.variant == "order" else 1, len(COUNTS) + 1))
    names = [str(name) for name in rng.choice(list(sound.SOUNDS), count, replace=False)]
    events, signal = _compose(rng, names)
    if job.variant == "count":
        question, answer = "How many sounds are there?", COUNTS[count - 1]
    elif job.variant == "order":
        first = job.index % 2 == 0
        question, answer = f"What sound comes {'first' if first else 'last'}?", names[0 if first else -1]
    else:
        present = job.index % 2 == 0
        asked = str(rng.choice(names if present else [name for name in sound.SOUNDS if name not in names]))
        question, answer = f"Can you hear {SOUND_PHRASES[asked]} in the audio?", "yes" if present else "no"
    labels = {"language": "en", "question": question, "text": answer, "events": events}
    return Recording({**labels, "content": ", ".join(names)}, _capture(rng, signal))


_SPEEDS = (0.88, 1.14)

_SPOKEN: dict[str, Callable[[Job, Rng], Script]] = {
    "asr": _script_asr,
    "s2tt": _script_s2tt,
    "lid": _script_lid,
    "sgc": _script_sgc,
    "ks": _script_ks,
}
_PROCEDURAL: dict[str, Callable[[Job, Rng], Recording]] = {"sec": _record_sec, "mic": _record_mic, "aqa": _record_aqa}


def cast(rng: Rng, job: Job, text: str, language: str, gender: str | None = None) -> speech.Line:
    """`text` for a random voice of the job's split, of either gender with equal chance unless one is asked for.

    In training its speed varies: fifteen voices are few, and what learns from them alone mishears others.
    """
    variants = speech.VOICES[job.split][gender or str(rng.choice(("male", "female")))]
    speed = round(float(rng.uniform(*_SPEEDS)), 2) if job.split == "train" else 1.0
    return speech.Line(
        words=tuple(grammar.words(text, language)),
        language=language,
        variant=str(rng.choice(variants)),
        rate=round(rng.integers(160, 211) / speed),  # the tempo stays
        pitch=int(rng.integers(42, 59)),  # 50 is the voice's own; this keeps men and women apart
        speed=speed,
    )


def stage(script: Script, utterance: speech.Utterance, rng: Rng) -> Recording:
    """The utterance as heard in some place: silence around it, often a small room, often some noise."""
    lead = samples(rng.uniform(0.04, 0.2))
    signal = np.zeros(lead + len(utterance.samples) + samples(rng.uniform(0.08, 0.2)))
    signal[lead : lead + len(utterance.samples)] = utterance.samples
    if rng.random() < 0.4:
        signal = reverberate(rng, signal, seconds=rng.uniform(0.1, 0.4), ratio=rng.uniform(0.02, 0.25))
    if rng.random() < 0.6:
        signal = add_background(rng, signal, snr=rng.uniform(15, 30))
    times = [round(lead / SAMPLE_RATE + boundary, 4) for boundary in utterance.boundaries]
    spans = zip(script.line.words, times[:-1], times[1:], strict=True)
    words = [{"word": word, "start": start, "end": end} for word, start, end in spans]
    fields = {**script.fields, "words": words, "speaker": script.line.variant}
    return Recording(fields, to_pcm(signal, rng.uniform(-15, -2)))


def _compose(rng: Rng, names: Sequence[str]) -> tuple[list[dict[str, Any]], Signal]:
    """The sounds `names` one after the other, each beginning a little before or after the one before it has ended."""
    lengths = rng.uniform(0.8, 1.2, len(names))
    gaps = rng.uniform(-0.3, 0.15, len(names) - 1)
    starts = np.concatenate(([0.0], np.cumsum(lengths[:-1] + gaps)))
    signal = np.zeros(math.ceil((starts[-1] + lengths[-1]) * SAMPLE_RATE))
    events = []
    for name, start, length in zip(names, starts, lengths, strict=True):
        add(signal, 10 ** (rng.uniform(-3, 3) / 20) * sound.make(name, rng, length), start)
        events.append({"label": name, "start": round(float(start), 4), "end": round(float(start + length), 4)})
    return events, signal


def _capture(rng: Rng, signal: Signal) -> NDArray[np.int16]:
    """A sound or a piece of music as a microphone gets it: with some noise, at some level."""
    return to_pcm(add_background(rng, signal, snr=rng.uniform(25, 45)), rng.uniform(-15, -2))
