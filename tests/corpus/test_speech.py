"""Tests of the speech synthesiser: word times, the gender of voices, and no dependence on earlier calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from auris.corpus import signal, speech
from auris.corpus.grammar import KEYWORDS, LANGUAGES, render, split_words
from auris.corpus.speech import UNTIMED_LANGUAGES, VOICES, Line, say
from auris.corpus.spoken import DIALECTS
from support.corpus_words import cover

DOG = ("the", "dog", "works", "in", "the", "garden")


def line(units: tuple[str, ...] = DOG, language: str = "en", variant: str = "m3", pitch: int = 50) -> Line:
    return Line(words=units, language=language, voice=variant, rate=180, pitch=pitch)


def pitch_of(samples: np.ndarray) -> float:
    """Return the median fundamental frequency in Hz of the voiced 40 ms segments, by autocorrelation."""
    n, frequencies = signal.n_samples(0.04), []
    shortest, longest = signal.SAMPLE_RATE // 350, signal.SAMPLE_RATE // 60
    for start in range(0, len(samples) - n, n // 2):
        segment = samples[start : start + n] * np.hanning(n)
        correlation = np.fft.irfft(np.abs(np.fft.rfft(segment, 4 * n)) ** 2)
        lag = shortest + int(correlation[shortest:longest].argmax())
        if correlation[lag] > 0.45 * correlation[0] > 0.01:
            frequencies.append(signal.SAMPLE_RATE / lag)
    return float(np.median(frequencies))


def sentences_with_all_words(language: str) -> Iterator[tuple[str, ...]]:
    """Yield sentences that together contain every word of a language."""
    covered: set[str] = set()
    for meaning in cover():
        units = tuple(split_words(render(meaning, language), language))
        if not set(units) <= covered:
            covered |= set(units)
            yield units


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language not in UNTIMED_LANGUAGES])
def test_every_word_of_the_grammar_has_a_start_and_end_time(language: str) -> None:
    lines = [line(units, language) for units in sentences_with_all_words(language)]
    if language == "en":
        lines += [line((keyword, "says", "the", "dog")) for keyword in KEYWORDS]
    for spoken, utterance in zip(lines, say(lines), strict=True):
        assert len(utterance.boundaries) == len(spoken.words) + 1
        assert np.all(np.diff(utterance.boundaries) > 0.02), spoken


@pytest.mark.parametrize("language", UNTIMED_LANGUAGES)
def test_languages_without_word_times_have_two_boundaries_per_utterance(language: str) -> None:
    lines = [line(units, language) for units in sentences_with_all_words(language)]
    for spoken, utterance in zip(lines, say(lines), strict=True):
        assert utterance.boundaries[0] == 0
        assert abs(utterance.boundaries[1] - len(utterance.samples) / signal.SAMPLE_RATE) < 0.01
        assert utterance.boundaries[1] > 0.1 * len("".join(spoken.words))


@pytest.mark.parametrize("accent", sorted({dialect.accent for dialect in DIALECTS.values() if dialect.accent}))
def test_accents_exist_and_differ_from_the_standard_voice(accent: str) -> None:
    standard, other = say([line(), replace(line(), accent=accent)])
    assert abs(len(standard.samples) - len(other.samples)) > signal.n_samples(0.01)


def test_boundaries_enclose_the_speech() -> None:
    (utterance,) = say([line()])
    loud = np.flatnonzero(np.abs(utterance.samples) > 0.02 * np.abs(utterance.samples).max()) / signal.SAMPLE_RATE
    assert utterance.boundaries[0] <= loud[0] + 0.005
    assert loud[0] - utterance.boundaries[0] < 0.08
    assert abs(loud[-1] - utterance.boundaries[-1]) < 0.08


# Plain, breathy and echoing voices have different internal states.
@pytest.mark.parametrize("variant", ["m3", "f5", "Alicia"])
def test_speech_does_not_depend_on_earlier_calls(variant: str) -> None:
    (first,) = say([line(variant=variant)])
    say([line(variant="f2"), line(("le", "roi", "chante"), "fr", "m1")])
    repeated, _ = say([line(variant=variant), line(variant="m8")])
    np.testing.assert_array_equal(first.samples, repeated.samples)


def test_no_voice_is_in_two_splits() -> None:
    names = [name for genders in VOICES.values() for variants in genders.values() for name in variants]
    assert len(names) == len(set(names))
    assert all(genders["male"] and genders["female"] for genders in VOICES.values())


@pytest.mark.parametrize(("gender", "low", "high"), [("male", 70, 135), ("female", 150, 300)])
def test_pitch_separates_the_genders_of_all_voices(gender: str, low: float, high: float) -> None:
    lines = [
        line(variant=name, pitch=pitch) for genders in VOICES.values() for name in genders[gender] for pitch in (42, 58)
    ]
    for spoken, utterance in zip(lines, say(lines), strict=True):
        assert low < pitch_of(utterance.samples) < high, spoken


def test_no_voice_reaches_full_scale() -> None:
    lines = [
        line(variant=name, pitch=58) for genders in VOICES.values() for names in genders.values() for name in names
    ]
    assert all(np.abs(utterance.samples).max() < 1.0 for utterance in say(lines))


def test_the_same_letters_sound_different_in_two_languages() -> None:
    english, german = say([line(("table",), "en"), line(("table",), "de")])
    assert len(english.samples) != len(german.samples)


def test_espeak_has_every_voice() -> None:
    """Espeak silently replaces an unknown voice by its default one."""
    available = {path.name for path in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()}
    assert {name for genders in VOICES.values() for names in genders.values() for name in names} <= available


def test_an_error_in_the_child_process_is_raised_in_the_caller() -> None:
    with pytest.raises(KeyError, match="pl"):
        say([line(), line(language="pl")])


def test_the_error_for_a_missing_synthesiser_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    speech._load_espeak.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'auris\[corpus\]'"):
        speech.get_version()


def test_a_higher_speed_raises_the_pitch_and_shortens_the_times() -> None:
    normal, fast = say([line()]) + say([replace(line(), speed=1.12)])
    assert pitch_of(fast.samples) == pytest.approx(1.12 * pitch_of(normal.samples), rel=0.03)
    assert [1.12 * time for time in fast.boundaries] == pytest.approx(list(normal.boundaries))
    assert len(fast.samples) == pytest.approx(len(normal.samples) / 1.12, abs=2)
