"""Answers to rows become predictions and result lines: every row counts, under the right metric and its honest name."""

from __future__ import annotations

from auris.data.rows import Clip, Row
from auris.evaluate import score, summarise

RUN = {"study": "s", "arm": "a", "seed": 0}


def row(name: str, **labels: object) -> Row:
    return Row(name, (Clip("x.wav", duration=2.0),), {"provenance": "tts", **labels})


def results(answered: dict) -> dict[tuple[str, str], dict]:
    lines = summarise(score(answered), RUN, "bench", samples=50, seed=0)
    return {(line["task"], line["metric"]): line for line in lines}


def test_word_errors_are_pooled_over_rows_not_averaged():
    english = {"task": "asr", "language": "en"}
    found = results(
        {
            "1": (row("1", text="a b c d e f g h", **english), "a b c d e f g h"),
            "2": (row("2", text="dog house", **english), "dog mouse"),
        }
    )
    line = found["asr en", "wer"]
    assert line["value"] == 1 / 10 and line["n"] == 2
    assert line["low"] <= line["value"] <= line["high"]


def test_a_language_without_spaces_is_scored_by_characters_and_called_so():
    found = results({"1": (row("1", task="asr", language="zh", text="红狐狸"), "红狐")})
    assert found["asr zh", "cer"]["value"] == 1 / 3


def test_an_answer_outside_the_classes_is_wrong_and_unparsed():
    found = results(
        {
            "1": (row("1", task="sec", text="dog"), " Dog"),
            "2": (row("2", task="sec", text="rain"), "dog"),
            "3": (row("3", task="sec", text="rain"), "thunder"),
        }
    )
    assert found["sec", "accuracy"]["value"] == 1 / 3
    assert found["sec", "unparsed"]["value"] == 1 / 3


def test_translations_are_scored_in_the_target_language():
    labels = {"task": "s2tt", "language": "en", "target_language": "zh", "text": "红狐狸在花园里"}
    line = results({"1": (row("1", **labels), "红狐狸在花园里")})["s2tt en-zh", "bleu"]
    assert round(line["value"]) == 100 and "tok:zh" in line["signature"]


def test_slots_are_scored_as_parsed_and_the_intent_beside_them():
    labels = {"task": "sf", "intent": "order", "slots": {"size": "large", "drink": "tea"}}
    found = results({"1": (row("1", **labels), "order; drink: tea; size: small")})
    assert found["sf", "slot_f1"]["value"] == 0.5
    assert found["sf", "intent_accuracy"]["value"] == 1.0


def test_provenances_of_a_line_are_all_named():
    mixed = {
        "1": (row("1", task="sec", text="dog"), "dog"),
        "2": (row("2", task="sec", text="dog", provenance="real"), "dog"),
    }
    assert results(mixed)["sec", "accuracy"]["provenance"] == "real+tts"
