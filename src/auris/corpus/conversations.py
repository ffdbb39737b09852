"""Recipes of tasks with several speakers: overlapped speech recognition, diarization and speaker verification.

The voices are drawn from the voices of the row's split. The labels are exact, because this module mixes the speech.
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
    Recording,
    RowSpec,
    Script,
    draw_line,
    pad_with_silence,
    record_speech,
    record_utterance,
)
from auris.corpus.signal import SAMPLE_RATE, Signal, add, n_samples, power

_MAX_SPEAKERS = 3
_MAX_TURNS = 4
_MAX_TURN_WORDS = 4  # keeps conversations as short as other clips
_MAX_GAIN = 5.0  # maximum difference in level between two speakers in decibels


def write_osr(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `osr`: there are two speakers, and the second one begins while the first one speaks."""
    texts = _draw_texts(rng, spec, 2, max_words=grammar.MAX_WORDS)
    lines = _draw_lines(rng, spec, texts)

    def record(utterances: Sequence[speech.Utterance]) -> Recording:
        starts = [0.0, rng.uniform(0.2, 0.7) * utterances[0].boundaries[-1]]
        turns, clip = _mix(lines, utterances, starts, rng)
        fields = {"language": "en", "texts": texts, "turns": turns, "content": ", ".join(texts)}
        return Recording(fields, (clip,))

    return Script(tuple(lines), record)


def write_sd(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `sd`: two or three speakers take turns, and some turns begin before the previous one ends."""
    # A line without words for each speaker. A turn is a copy of its speaker's line with the words of the turn.
    speaker_lines = _draw_lines(rng, spec, [""] * int(rng.integers(2, _MAX_SPEAKERS + 1)))
    n_speakers = len(speaker_lines)
    speaker_order = [int(number) for number in rng.permutation(n_speakers)]
    for _ in range(int(rng.integers(0, _MAX_TURNS - n_speakers + 1))):
        speaker_order.append(pick(rng, [number for number in range(n_speakers) if number != speaker_order[-1]]))
    texts = _draw_texts(rng, spec, len(speaker_order), max_words=_MAX_TURN_WORDS)
    lines = [
        replace(speaker_lines[number], words=tuple(grammar.split_words(text, "en")))
        for number, text in zip(speaker_order, texts, strict=True)
    ]

    def record(utterances: Sequence[speech.Utterance]) -> Recording:
        lengths = [utterance.boundaries[-1] for utterance in utterances]
        gaps = rng.uniform(-0.3, 0.5, len(lengths) - 1)
        turns, clip = _mix(lines, utterances, [0.0, *np.cumsum(np.array(lengths[:-1]) + gaps)], rng)
        return Recording({"language": "en", "turns": turns}, (clip,))

    return Script(tuple(lines), record)


def write_sv(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `sv`: two clips, each with its own room and noise, by one speaker or by two.

    Clips by one speaker have the same voice, rate, pitch and speed.
    """
    texts = _draw_texts(rng, spec, 2, max_words=grammar.MAX_WORDS)
    first, second = _draw_lines(rng, spec, texts)
    if spec.variant == "yes":
        second = replace(first, words=second.words)
    lines = (first, second)

    def record(utterances: Sequence[speech.Utterance]) -> Recording:
        clips = [
            record_utterance({}, line, utterance, rng).clips[0]
            for line, utterance in zip(lines, utterances, strict=True)
        ]
        speakers = [line.voice for line in lines]
        labels = {"language": "en", "text": spec.variant, "transcripts": texts, "speakers": speakers}
        return Recording(labels, tuple(clips))

    return Script(lines, record)


def _draw_lines(rng: Rng, spec: RowSpec, texts: Sequence[str]) -> list[speech.Line]:
    """Return a line for each English text, all in different voices. If voices run out, the last texts have no line."""
    voices = [name for names in speech.VOICES[spec.split].values() for name in names if name not in speech.TWINS]
    drawn = rng.choice(voices, min(len(texts), len(voices)), replace=False)
    return [draw_line(rng, spec, text, "en", voice=str(voice)) for text, voice in zip(texts, drawn, strict=False)]


def _draw_texts(rng: Rng, spec: RowSpec, n_texts: int, *, max_words: int) -> list[str]:
    """Draw `n_texts` different English sentences of the row's split with at most `max_words` words each."""
    texts: list[str] = []
    while len(texts) < n_texts:
        text = grammar.draw_sentence(rng, spec.split, "en")
        if len(text.split()) <= max_words and text not in texts:
            texts.append(text)
    return texts


def _mix(
    lines: Sequence[speech.Line], utterances: Sequence[speech.Utterance], starts: Sequence[float], rng: Rng
) -> tuple[list[Fields], NDArray[np.int16]]:
    """Mix utterances that begin at `starts` (seconds); return the turns with their times in the clip, and the clip."""
    ends = [n_samples(start) + len(utterance.samples) for start, utterance in zip(starts, utterances, strict=True)]
    mixed: Signal = np.zeros(max(ends))
    levels = {line.voice: rng.uniform(0, _MAX_GAIN) for line in lines}
    for line, utterance, start in zip(lines, utterances, starts, strict=True):
        gain = 10 ** (levels[line.voice] / 20) / np.sqrt(power(utterance.samples))
        add(mixed, gain * utterance.samples, start)
    lead, signal = pad_with_silence(mixed, rng)
    turns = []
    for line, utterance, start in zip(lines, utterances, starts, strict=True):
        offset = lead + n_samples(start) / SAMPLE_RATE
        begin, end = (round(offset + utterance.boundaries[edge], 4) for edge in (0, -1))
        turns.append({"speaker": line.voice, "start": begin, "end": end, "text": " ".join(line.words)})
    return turns, record_speech(signal, rng)
