"""Builds the embedded corpus: one maker per task turns a seed into a row and its sound; worker processes do the rows.

A row depends on its own seed alone, which is derived from the corpus seed and the row's place. So the same seed gives
the same bytes with any number of processes, and a larger corpus begins with the rows of a smaller one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rich
import soundfile
from rich.progress import track

from auris.corpus import grammar, music, sound, speech
from auris.corpus.grammar import KEYWORDS, LANGUAGES, SPLITS, Meaning
from auris.corpus.signal import SAMPLE_RATE, Signal, add, add_background, reverberate, samples, to_pcm

VERSION = 1  # raise it whenever the same seed would give other bytes
LICENCE = "CC0-1.0"
COUNTS = ("one", "two", "three")
# How a question names a sound.
_SOUND_PHRASES = {name: f"a {name}" for name in sound.SOUNDS} | {
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
        return f"audio/{self.split}/{self.id}.flac"


@dataclass(frozen=True)
class Made:
    """What a task's maker returns: the row's own fields, and its sound as 16-bit samples."""

    fields: dict[str, Any]
    pcm: np.ndarray


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
        rich.print(f"The corpus is already in {out}: {sum(map(_total, facts['rows'].values()))} rows, {facts['hash']}")
        return facts
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}, expected at least 1, or null for one per core (processes=null)")
    jobs = plan(sizes, directions, seed)
    engine = speech.version()
    partial_out = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    for split in SPLITS:
        (partial_out / "audio" / split).mkdir(parents=True)
    # Spawned, not forked: the caller may have threads (torch's), and a fork would copy their locks but not them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as workers:
        results = workers.map(partial(make_row, folder=partial_out, engine=engine), jobs, chunksize=8)
        made = list(track(results, description="corpus", total=len(jobs)))
    rows = [row for row, _ in made]
    for split in SPLITS:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["split"] == split)
        (partial_out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (partial_out / "text.txt").write_text("".join(f"{line}\n" for line in draw_text(text_lines, seed)), encoding="utf-8")
    labels = [partial_out / name for name in (*(f"{split}.jsonl" for split in SPLITS), "text.txt")]
    facts = {
        "config": config,
        "engine": engine,
        "rows": _count(rows),
        "seconds": {split: round(sum(row["duration"] for row in rows if row["split"] == split), 1) for split in SPLITS},
        "vocabulary": {language: grammar.vocabulary(language) for language in LANGUAGES},
        "voices": speech.VOICES,
        "classes": {"ks": list(KEYWORDS), "sec": list(sound.SOUNDS), "mic": list(music.INSTRUMENTS)},
        "labels_hash": hash_bytes(*(path.read_bytes() for path in labels)),
        "audio_hash": hash_bytes(*(digest for _, digest in made)),
    }
    facts["hash"] = hash_bytes(facts["labels_hash"].encode(), facts["audio_hash"].encode())
    (partial_out / "corpus.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if out.exists():
        out.rmdir()  # empty, as checked above
    partial_out.rename(out)
    return facts


def scale_sizes(sizes: Any, scale: float) -> Any:
    """`sizes` with every number in it multiplied by `scale` and rounded; what was positive stays at least 1."""
    if isinstance(sizes, Mapping):
        return {key: scale_sizes(value, scale) for key, value in sizes.items()}
    return max(round(sizes * scale), min(sizes, 1))


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
            size = sizes.get(split, {}).get(task, 0)
            key = f"sizes.{split}.{task}"
            if task == "asr":
                shares = size or {}
                if not isinstance(shares, Mapping) or set(shares) - set(options):
                    raise ValueError(f"{key} is {size!r}, expected rows by language: {key}.en=100")
            elif not options and size:
                raise ValueError(f"{key}={size}, but directions is empty; name some, or set {key}=0")
            else:
                _check_count(key, size)
                shares = {option: (size - place + len(options) - 1) // len(options) for place, option in enumerate(options)}
            for option, share in shares.items():
                _check_count(f"{key}.{option}" if task == "asr" else key, share)
            # In each task's order every stretch has the variants in proportion, so that its first rows are a fair sample.
            places = sorted((index / share, option, index) for option, share in shares.items() for index in range(share))
            jobs += [
                Job(split, task, option, index, derive_seed(seed, split, task, option, index))
                for _, option, index in places
            ]
    return jobs


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


def make_row(job: Job, folder: Path, engine: str) -> tuple[dict[str, Any], bytes]:
    """Make one row and write its sound below `folder`. Returns the row and the SHA-256 of its samples."""
    made = _MAKERS[job.task](job, np.random.default_rng(job.seed))
    flac = io.BytesIO()  # soundfile syncs the disk after each file that it writes itself: thousands of waits
    soundfile.write(flac, made.pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    (folder / job.audio).write_bytes(flac.getvalue())
    spoken = "speaker" in made.fields
    row = {
        "id": job.id,
        "audio": job.audio,
        "duration": len(made.pcm) / SAMPLE_RATE,
        "task": job.task,
        **made.fields,
        "split": job.split,
        "provenance": "tts" if spoken else "procedural",
        "generator": engine if spoken else "auris.corpus",
        "seed": job.seed,
        "licence": LICENCE,
    }
    return row, hashlib.sha256(made.pcm.astype("<i2").tobytes()).digest()


def _make_asr(job: Job, rng: Rng) -> Made:
    meaning = grammar.draw_meaning(rng, job.split)
    text = grammar.render(meaning, job.variant)
    spoken, pcm = _speak(rng, text, job.variant, _pick_voice(rng, job.split))
    return Made({"language": job.variant, "text": text, "content": text, **spoken}, pcm)


def _make_s2tt(job: Job, rng: Rng) -> Made:
    source, target = job.variant.split("-")
    meaning: Meaning = grammar.draw_meaning(rng, job.split)
    transcript = grammar.render(meaning, source)
    spoken, pcm = _speak(rng, transcript, source, _pick_voice(rng, job.split))
    text = grammar.render(meaning, target)
    fields = {"language": source, "target_language": target, "text": text, "transcript": transcript}
    return Made({**fields, "content": transcript, **spoken}, pcm)


def _make_lid(job: Job, rng: Rng) -> Made:
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), job.variant)
    spoken, pcm = _speak(rng, transcript, job.variant, _pick_voice(rng, job.split))
    return Made({"language": job.variant, "transcript": transcript, "content": transcript, **spoken}, pcm)


def _make_sgc(job: Job, rng: Rng) -> Made:
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), "en")
    spoken, pcm = _speak(rng, transcript, "en", _pick_voice(rng, job.split, gender=job.variant))
    content = f"{job.variant} {transcript}"
    return Made({"language": "en", "text": job.variant, "transcript": transcript, "content": content, **spoken}, pcm)


def _make_ks(job: Job, rng: Rng) -> Made:
    transcript = grammar.draw_keyword_phrase(rng, job.split, job.variant).text
    spoken, pcm = _speak(rng, transcript, "en", _pick_voice(rng, job.split))
    return Made({"language": "en", "text": job.variant, "transcript": transcript, "content": transcript, **spoken}, pcm)


def _make_sec(job: Job, rng: Rng) -> Made:
    signal = sound.make(job.variant, rng, rng.uniform(1.2, 2.2))
    return Made({"language": "en", "text": job.variant, "content": job.variant}, _record(rng, signal))


def _make_mic(job: Job, rng: Rng) -> Made:
    signal = music.play(job.variant, rng, rng.uniform(1.2, 2.4))
    return Made({"language": "en", "text": job.variant, "content": job.variant}, _record(rng, signal))


def _make_aqa(job: Job, rng: Rng) -> Made:
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
        question, answer = f"Can you hear {_SOUND_PHRASES[asked]} in the audio?", "yes" if present else "no"
    fields = {"language": "en", "question": question, "text": answer, "content": ", ".join(names), "events": events}
    return Made(fields, _record(rng, signal))


_MAKERS: dict[str, Callable[[Job, Rng], Made]] = {
    "asr": _make_asr,
    "s2tt": _make_s2tt,
    "lid": _make_lid,
    "sgc": _make_sgc,
    "ks": _make_ks,
    "sec": _make_sec,
    "mic": _make_mic,
    "aqa": _make_aqa,
}


def _pick_voice(rng: Rng, split: str, gender: str | None = None) -> speech.Voice:
    """A voice of the split, of either gender with equal chance unless one is asked for."""
    variants = speech.VOICES[split][gender or str(rng.choice(("male", "female")))]
    return speech.Voice(str(rng.choice(variants)), rate=int(rng.integers(160, 211)), pitch=int(rng.integers(42, 59)))


def _speak(rng: Rng, text: str, language: str, voice: speech.Voice) -> tuple[dict[str, Any], np.ndarray]:
    """`text` as heard in some place: silence around it, often a small room, often some noise.

    Returns the fields `words` and `speaker`, and the samples.
    """
    words = grammar.words(text, language)
    utterance = speech.say(words, language, voice)
    lead = rng.uniform(0.04, 0.2)
    signal = np.zeros(samples(lead + rng.uniform(0.08, 0.2)) + len(utterance.samples))
    add(signal, utterance.samples, lead)
    if rng.random() < 0.4:
        signal = reverberate(rng, signal, seconds=rng.uniform(0.1, 0.4), ratio=rng.uniform(0.02, 0.25))
    if rng.random() < 0.6:
        signal = add_background(rng, signal, snr=rng.uniform(15, 30))
    times = [round(samples(lead) / SAMPLE_RATE + boundary, 4) for boundary in utterance.boundaries]
    timed = [
        {"word": word, "start": start, "end": end}
        for word, start, end in zip(words, times[:-1], times[1:], strict=True)
    ]
    return {"words": timed, "speaker": voice.variant}, to_pcm(signal, rng.uniform(-15, -2))


def _compose(rng: Rng, names: Sequence[str]) -> tuple[list[dict[str, Any]], Signal]:
    """The sounds `names` one after the other, each beginning before or after the one before it has ended."""
    lengths = rng.uniform(0.8, 1.2, len(names))
    gaps = rng.uniform(-0.3, 0.15, len(names))
    starts = [0.0]
    for length, gap in zip(lengths[:-1], gaps[:-1], strict=True):
        starts.append(starts[-1] + length + gap)
    signal = np.zeros(math.ceil((starts[-1] + lengths[-1]) * SAMPLE_RATE))
    for name, start, length in zip(names, starts, lengths, strict=True):
        add(signal, 10 ** (rng.uniform(-3, 3) / 20) * sound.make(name, rng, length), start)
    events = [
        {"label": name, "start": round(start, 4), "end": round(start + length, 4)}
        for name, start, length in zip(names, starts, lengths, strict=True)
    ]
    return events, signal


def _record(rng: Rng, signal: Signal) -> np.ndarray:
    """A sound or a piece of music as a microphone gets it: with some noise, at some level."""
    return to_pcm(add_background(rng, signal, snr=rng.uniform(25, 45)), rng.uniform(-15, -2))
