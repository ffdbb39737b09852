"""Sentences of any text that eSpeak can speak with exact word times: their spoken form, and why others are dropped."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from auris.corpus import speech
from auris.corpus.output import make_in_groups
from auris.errors import MissingFileError, UserError, count

# Languages whose letters eSpeak reads as their speakers do. It spells Chinese characters one by one and reads no kanji,
# and it reports no word times in Korean.
TEXT_LANGUAGES = ("en", "de", "es", "fr", "it")
MAX_WORDS = 60  # up to 20 s of English: an encoder hears 30 s

# Punctuation that is not spoken. Other characters, such as & or /, have a name that a reader may or may not say.
_PUNCTUATION = frozenset(" .,;:!?¡¿…\"“”„«»‹›()[]-‐‑–—'")
_APOSTROPHES = str.maketrans("’‘ʼ`´", "'''''")
# A word: letters with their marks, and apostrophes between letters.
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


@dataclass
class Selection:
    """Sentences that can be spoken, and the number of the others by reason.

    Attributes:
        language: Language of the sentences, one of `TEXT_LANGUAGES`.
        min_words: Smallest number of words of a sentence.
        max_words: Largest number of words of a sentence.
        kept: Each sentence as it was written, by its spoken form, in the order in which they were added.
        candidates: The same for sentences that eSpeak has not tried yet.
        dropped: Number of dropped sentences by reason.
    """

    language: str = "en"
    min_words: int = 1
    max_words: int = MAX_WORDS
    kept: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, sentence: str) -> None:
        """Add a sentence to the candidates, or drop it if it cannot be spoken or repeats another sentence."""
        if reason := find_unspeakable(sentence):
            self.dropped[reason] += 1
            return
        words = split_words(sentence)
        text = " ".join(words)
        if len(words) < self.min_words:
            self.dropped[f"less than {count(self.min_words, 'word')}"] += 1
        elif len(words) > self.max_words:
            self.dropped[f"more than {self.max_words} words"] += 1
        elif text in self.kept or text in self.candidates:
            self.dropped["repeated"] += 1
        else:
            self.candidates[text] = sentence

    def try_candidates(self, processes: int | None = None) -> None:
        """Keep the candidates in which eSpeak reports the time of every word, and drop the others.

        Args:
            processes: Number of worker processes; None for one per core.
        """
        items = [(index, text, self.language) for index, text in enumerate(self.candidates)]
        are_timed = make_in_groups(_are_timed, items, _position, processes=processes, title="word times")
        for (text, sentence), is_timed in zip(self.candidates.items(), are_timed, strict=True):
            if is_timed:
                self.kept[text] = sentence
            else:
                self.dropped["eSpeak reports no time of a word"] += 1
        self.candidates.clear()

    @property
    def counts(self) -> dict[str, Any]:
        """Numbers of sentences that were read, kept and, by reason, dropped."""
        n_read = len(self.kept) + len(self.candidates) + self.dropped.total()
        return {"read": n_read, "kept": len(self.kept), "dropped": dict(self.dropped.most_common())}


def describe_selection(counts: Mapping[str, Any]) -> str:
    """Return a line with the numbers of sentences that were read, kept and dropped by each reason.

    Args:
        counts: The entry `sentences` of `corpus.json`.
    """
    reasons = [f"{number:,} dropped: {reason}" for reason, number in counts["dropped"].items()]
    return "; ".join([f"{count(counts['read'], 'sentence')}, {counts['kept']:,} kept", *reasons])


def split_words(sentence: str) -> list[str]:
    """Return the words of a sentence as they are spoken: in lower case, with apostrophes but no other punctuation.

    Hyphens and dashes separate words.
    """
    return _WORD.findall(unicodedata.normalize("NFC", sentence).translate(_APOSTROPHES).lower())


def find_unspeakable(sentence: str) -> str | None:
    """Return what a sentence contains whose pronunciation does not follow from its letters; None if nothing."""
    characters = set(unicodedata.normalize("NFC", sentence).translate(_APOSTROPHES)) - _PUNCTUATION
    if any(unicodedata.category(character).startswith("N") for character in characters):
        return "digits"
    if not all(map(str.isalpha, characters)):
        return "characters other than letters and punctuation"
    if not all(unicodedata.name(character).startswith("LATIN") for character in characters):
        return "letters of another alphabet"
    return None


def select_sentences(sentences: Iterable[str], language: str, source: str, processes: int | None = None) -> Selection:
    """Return the sentences that can be spoken.

    Args:
        sentences: Sentences as they are written.
        language: Their language.
        source: Override that named them, such as `text=FILE`, for the message of the error.
        processes: Number of worker processes; None for one per core.

    Raises:
        UserError: None of the sentences can be spoken.
    """
    selection = Selection(language)
    for sentence in sentences:
        selection.add(sentence)
    selection.try_candidates(processes)
    if not selection.kept:
        raise UserError(
            f"{source}: no sentence can be spoken ({describe_selection(selection.counts)}); expected one sentence a "
            "line, with numbers written as words"
        )
    return selection


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file that are not empty, each without spaces around it.

    Raises:
        UserError: The file is not UTF-8.
        MissingFileError: The file does not exist.
    """
    if not file.is_file():
        raise MissingFileError(f"text={file}: there is no such file, expected a text file with one sentence a line")
    lines = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            lines.append(" ".join(line.decode("utf-8-sig").split()))
        except UnicodeDecodeError as error:
            raise UserError(f"text={file}, line {number}: {line[:40]!r}, expected UTF-8") from error
    return [line for line in lines if line]


def _position(item: tuple[int, str, str]) -> tuple[str, int]:
    return "sentences", item[0]


def _are_timed(items: Iterable[tuple[int, str, str]]) -> list[bool]:
    """Return for each item (index, text, language) whether eSpeak reports the time of every word."""
    voice = speech.VOICES["train"]["male"][0]  # the times that are reported do not depend on the voice
    return speech.are_timed(
        [speech.Line(tuple(text.split()), language, voice, rate=180, pitch=50) for _, text, language in items]
    )
