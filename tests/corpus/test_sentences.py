"""Tests of the choice of sentences: their spoken form, the reasons for dropping them, and the texts they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from auris.corpus.sentences import (
    TEXT_LANGUAGES,
    Selection,
    describe_selection,
    find_unspeakable,
    read_lines,
    select_sentences,
    split_words,
)
from auris.errors import MissingFileError, UserError
from auris.metrics.normalize import normalize


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("Yes!", "yes"),
        ("\"Don\u2019t worry,\" said Ann; 'it\u2019s late'...", "don't worry said ann it's late"),
        ("A well-known café—she said.", "a well known café she said"),
        ("Mr. O'Neill, the dogs' owner", "mr o'neill the dogs owner"),
        ("Cafe\u0301", "café"),
        ("Größe und STRASSE", "größe und strasse"),
        ("L\u2019homme s\u2019assied.", "l'homme s'assied"),
    ],
)
def test_the_spoken_form_has_words_in_lower_case_and_no_punctuation(sentence: str, text: str) -> None:
    assert find_unspeakable(sentence) is None
    assert " ".join(split_words(sentence)) == text


@pytest.mark.parametrize(
    "sentence", ["Don't you know, Mr. Smith?", "It's a well-known fact: she'll win!", '"No," said Ann; she is late.']
)
def test_the_spoken_form_and_the_written_form_have_no_word_error(sentence: str) -> None:
    assert normalize(" ".join(split_words(sentence)), "en") == normalize(sentence, "en")


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("Chapter 12 begins", "digits"),
        ("half is ½", "digits"),
        ("Tom & Jerry", "characters other than letters and punctuation"),
        ("* an item of a list", "characters other than letters and punctuation"),
        ("see auris/corpus", "characters other than letters and punctuation"),
        ("well\tdone \N{GRINNING FACE}", "characters other than letters and punctuation"),
        ("the word мир means peace", "letters of another alphabet"),
        ("the word 和 means peace", "letters of another alphabet"),
    ],
)
def test_a_sentence_whose_pronunciation_does_not_follow_from_its_letters_is_unspeakable(
    sentence: str, reason: str
) -> None:
    assert find_unspeakable(sentence) == reason


def test_every_sentence_is_kept_or_counted_with_a_reason() -> None:
    sentences = [
        "A dog barks.",
        "a dog barks",  # the same when it is spoken
        "Chapter 2",
        "...",
        " ".join(["word"] * 61),
        "Louis xvi was a king.",  # eSpeak does not report when it says xvi
        "Birds sing!",
    ]
    selection = select_sentences(sentences, "en", "text=x", processes=1)
    assert selection.kept == {"a dog barks": "A dog barks.", "birds sing": "Birds sing!"}
    assert selection.counts == {
        "read": 7,
        "kept": 2,
        "dropped": {
            "repeated": 1,
            "digits": 1,
            "less than 1 word": 1,
            "more than 60 words": 1,
            "eSpeak reports no time of a word": 1,
        },
    }
    line = describe_selection(selection.counts)
    assert line.startswith("7 sentences, 2 kept; 1 dropped: repeated; 1 dropped: digits;")


def test_a_selection_has_limits_on_the_number_of_words() -> None:
    selection = Selection(min_words=2, max_words=3)
    for sentence in ("one", "one two", "one two three", "one two three four"):
        selection.add(sentence)
    assert list(selection.candidates) == ["one two", "one two three"]
    assert selection.dropped == {"less than 2 words": 1, "more than 3 words": 1}


@pytest.mark.parametrize("language", TEXT_LANGUAGES)
def test_espeak_reports_word_times_in_every_language_of_texts(language: str) -> None:
    sentence = {
        "en": "She can't come to the party tonight.",
        "de": "Die schöne Straße führt über den Fluss.",
        "es": "¿Cuándo llegará el niño a la montaña?",
        "fr": "L'homme qu'elle a vu n'était pas d'ici.",
        "it": "L'amico dell'uomo non c'è più.",
    }[language]
    assert select_sentences([sentence], language, "text=x", processes=1).kept


def test_a_text_without_a_sentence_that_can_be_spoken_is_an_error() -> None:
    with pytest.raises(UserError, match=r"text=x: no sentence can be spoken \(1 sentence, 0 kept; 1 dropped: digits\)"):
        select_sentences(["1984"], "en", "text=x", processes=1)


def test_lines_are_read_without_empty_lines_and_spaces_around_them(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffIch bin  schön.\r\n\n  Ja\t \n".encode())
    assert read_lines(tmp_path / "text") == ["Ich bin schön.", "Ja"]


def test_a_text_that_is_not_utf_8_is_an_error_with_the_number_of_the_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"yes\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"text=.*, line 2: b'caf\\xe9', expected UTF-8"):
        read_lines(tmp_path / "text")


def test_a_missing_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="text=.*none: there is no such file"):
        read_lines(tmp_path / "none")
