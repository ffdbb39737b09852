"""Recipes of tasks with several speakers: overlapped speech recognition, diarization and speaker verification.

Voices are those of the row's split. All labels are known from the mixing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from auris.corpus import grammar, speech
from auris.corpus.draws import Rng, pick
from auris.corpus.recording import (
    Fields,
    Job,
    Recording,
    Script,
    cast,
    pad_with_silence,
    record_speech,
    record_utterance,
)
from auris.corpus.signal import SAMPLE_RATE, Signal, add, power, samples

_MAX_SPEAKERS = 3
_MAX_TURNS = 4
_MAX_TURN_WORDS = 4  # keeps conversations as short as other clips
_MAX_GAIN = 5.0  # decibels between the loudest and the softest speaker


def write_osr(job: Job, rng: Rng) -> Script:
    """Write a row of `osr`: the second of two speakers begins while the first one speaks."""
    texts = _draw_texts(rng, job, 2, words=grammar.MAX_WORDS)
    lines = _cast_all(rng, job, texts)

    def record(spoken: Sequence[speech.Utterance]) -> Recording:
        starts = [0.0, rng.uniform(0.2, 0.7) * spoken[0].boundaries[-1]]
        turns, clip = _mix(lines, spoken, starts, rng)
        fields = {"language": "en", "texts": texts, "turns": turns, "content": ", ".join(texts)}
        return Recording(fields, (clip,))

    return Script(tuple(lines), record)


def write_sd(job: Job, rng: Rng) -> Script:
    """Write a row of `sd`: two or three speakers take turns, and some turns begin before the previous one ends."""
    speakers = _cast_all(rng, job, [""] * int(rng.integers(2, _MAX_SPEAKERS + 1)))
    order = [int(number) for number in rng.permutation(len(speakers))]
    for _ in range(int(rng.integers(0, _MAX_TURNS - len(speakers) + 1))):
        order.append(pick(rng, [number for number in range(len(speakers)) if number != order[-1]]))
    texts = _draw_texts(rng, job, len(order), words=_MAX_TURN_WORDS)
    lines = [
        replace(speakers[number], words=tuple(grammar.split_words(text, "en")))
        for number, text in zip(order, texts, strict=True)
    ]

    def record(spoken: Sequence[speech.Utterance]) -> Recording:
        lengths = [utterance.boundaries[-1] for utterance in spoken]
        gaps = rng.uniform(-0.3, 0.5, len(lengths) - 1)
        turns, clip = _mix(lines, spoken, [0.0, *np.cumsum(np.array(lengths[:-1]) + gaps)], rng)
        return Recording({"language": "en", "turns": turns}, (clip,))

    return Script(tuple(lines), record)


def write_sv(job: Job, rng: Rng) -> Script:
    """Write a row of `sv`: two recordings in different rooms, by one speaker (same voice, pitch and size) or by two."""
    texts = _draw_texts(rng, job, 2, words=grammar.MAX_WORDS)
    first, second = _cast_all(rng, job, texts)
    if job.variant == "yes":
        second = replace(first, words=second.words)
    lines = (first, second)

    def record(spoken: Sequence[speech.Utterance]) -> Recording:
        clips = [
            record_utterance({}, line, utterance, rng).clips[0] for line, utterance in zip(lines, spoken, strict=True)
        ]
        speakers = [line.variant for line in lines]
        labels = {"language": "en", "text": job.variant, "transcripts": texts, "speakers": speakers}
        return Recording(labels, tuple(clips))

    return Script(lines, record)


def _cast_all(rng: Rng, job: Job, texts: Sequence[str]) -> list[speech.Line]:
    """Assign English texts to different voices of the split; texts for which it has no voice are dropped."""
    voices = [voice for voices in speech.VOICES[job.split].values() for voice in voices if voice not in speech.TWINS]
    voices = rng.choice(voices, min(len(texts), len(voices)), replace=False)
    return [cast(rng, job, text, "en", voice=str(voice)) for text, voice in zip(texts, voices, strict=False)]


def _draw_texts(rng: Rng, job: Job, number: int, *, words: int) -> list[str]:
    """Draw `number` different English sentences of the split with at most `words` words."""
    texts: list[str] = []
    while len(texts) < number:
        text = grammar.draw_sentence(rng, job.split, "en")
        if len(text.split()) <= words and text not in texts:
            texts.append(text)
    return texts


def _mix(
    lines: Sequence[speech.Line], spoken: Sequence[speech.Utterance], starts: Sequence[float], rng: Rng
) -> tuple[list[Fields], NDArray[np.int16]]:
    """Mix utterances that begin at `starts` (seconds); return the turns with their times in the clip, and the clip."""
    ends = [samples(start) + len(utterance.samples) for start, utterance in zip(starts, spoken, strict=True)]
    mixed: Signal = np.zeros(max(ends))
    levels = {line.variant: rng.uniform(0, _MAX_GAIN) for line in lines}
    for line, utterance, start in zip(lines, spoken, starts, strict=True):
        gain = 10 ** (levels[line.variant] / 20) / np.sqrt(power(utterance.samples))
        add(mixed, gain * utterance.samples, start)
    lead, signal = pad_with_silence(mixed, rng)
    turns = []
    for line, utterance, start in zip(lines, spoken, starts, strict=True):
        offset = lead + samples(start) / SAMPLE_RATE
        begin, end = (round(offset + utterance.boundaries[edge], 4) for edge in (0, -1))
        turns.append({"speaker": line.variant, "start": begin, "end": end, "text": " ".join(line.words)})
    return turns, record_speech(signal, rng)
