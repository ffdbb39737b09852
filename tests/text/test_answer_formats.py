"""Answers: their published forms, what broken ones still say, and that whatever is accepted is read back."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from auris.metrics.measures import row_stats
from auris.text import tasks
from auris.text.answer_formats import LANGUAGES, Entities, Events, Language, Notes, Slots, Tag, Words
from auris.text.prompts import END_OF_TEXT, NaturalPrompt, TagPrompt
from auris.text.tasks import TASKS
from support.manifests import tokenizer

WORDS = [{"word": "hello", "start": 0.0, "end": 0.42}, {"word": "there", "start": 0.42, "end": 1.0}]
NOTES = {"pitch": 60, "velocity": 100, "instrument": "guitar", "sonic": ["bright", "reverb"]}
EVENTS = [{"label": "dog bark", "start": 0.5, "end": 1.2}, {"label": "rain", "start": 1.0, "end": 4.0}]
TURNS = [{"speaker": "ann", "start": 0.0, "end": 3.2}, {"speaker": "bob", "start": 3.0, "end": 5.11}]
ENTITIES = [{"type": "person", "value": "alice"}, {"type": "place", "value": "new york"}]
TEXTS = ["good morning", "where is it?"]

# --- the two forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "labels", "tagged", "message"),
    [
        (
            "srwt",
            {"words": [WORDS[0], {"word": "you", "start": 0.5, "end": 1}]},
            "hello<|0.42|><|sil|><|0.50|>you<|1.00|>",
            "hello (0.00-0.42) you (0.50-1.00)",
        ),
        (
            "mna",
            {"notes": NOTES},
            "<|pitch|><|midi_pitch_60|><|velocity|><|midi_velocity_100|><|instrument|>guitar<|sonic|>bright, reverb",
            "pitch: 60; velocity: 100; instrument: guitar; qualities: bright, reverb",
        ),
        (
            "sed",
            {"events": EVENTS[::-1]},
            "<|0.50|>dog bark<|1.20|><|1.00|>rain<|4.00|>",
            "dog bark (0.50-1.20) rain (1.00-4.00)",
        ),
        ("sed", {"events": []}, "none", "none"),
        (
            "sd",
            {"turns": [*TURNS[::-1], {"speaker": "ann", "start": 6, "end": 7}]},
            "<|0.00|>speaker 1<|3.20|><|3.00|>speaker 2<|5.11|><|6.00|>speaker 1<|7.00|>",
            "speaker 1 (0.00-3.20) speaker 2 (3.00-5.11) speaker 1 (6.00-7.00)",
        ),
        (
            "ser",
            {"entities": ENTITIES},
            "<|startofentityvalue|>alice<|endofentityvalue|><|startofentitytype|>person<|endofentitytype|>"
            "<|startofentityvalue|>new york<|endofentityvalue|><|startofentitytype|>place<|endofentitytype|>",
            "person: alice; place: new york",
        ),
        ("ser", {"entities": []}, "none", "none"),
        (
            "osr",
            {"texts": TEXTS},
            "good morning<|delim|>where is it?",
            "speaker 1: good morning\nspeaker 2: where is it?",
        ),
        ("sf", {"intent": "wake", "slots": {"time": " 7:30", "day": "may"}}, *2 * ["wake; day: may; time: 7:30"]),
        ("sf", {"intent": "stop", "slots": {}}, "stop", "stop"),
        ("ic", {"intent": "wake"}, "wake", "wake"),
        ("lid", {"language": "yue"}, "Cantonese", "Cantonese"),
        ("asr", {"text": "hello"}, "hello", "hello"),
    ],
)
def test_an_answer_is_written_with_tags_and_in_words_alone(code, labels, tagged, message):
    assert TASKS[code].render(labels) == tagged
    assert TASKS[code].render(labels, tags=False) == message
    assert not any(isinstance(piece, Tag) for piece in TASKS[code].answer.render(labels, tags=False))


def test_timed_words_are_written_as_published():
    """The example of Qwen-Audio's EVALUATION.md, up to its last word: the prompt ends with `<|0.00|>`."""
    spans = [("面", 0.54, 0.86), ("条", 0.86, 1.17), ("机", 1.17, 1.46)]
    row = {"words": [{"word": word, "start": start, "end": end} for word, start, end in spans]}
    written = TASKS["srwt"].answer.render(row, tags=True)
    assert "".join(written) == "<|sil|><|0.54|>面<|0.86|>条<|1.17|>机<|1.46|>"
    assert [piece for piece in written if not isinstance(piece, Tag)] == ["面", "条", "机"]
    assert TASKS["srwt"].render(row, tags=False) == "面 (0.54-0.86) 条 (0.86-1.17) 机 (1.17-1.46)"


def test_chinese_is_timed_by_character_and_its_foreign_words_whole():
    row = {"task": "srwt", "words": [{"word": "面条", "start": 0, "end": 1}, {"word": "OK", "start": 1, "end": 2}]}
    for language in ("zh", "yue"):
        assert "`words[0]` is {'word': '面条'" in tasks.check({**row, "language": language})
        assert "Chinese is timed by character" in tasks.check({**row, "language": language})
        characters = [{"word": "面", "start": 0, "end": 1}, {"word": "OK", "start": 1, "end": 2}]
        assert tasks.check({**row, "language": language, "words": characters}) is None
    assert tasks.check({**row, "language": "ja"}) is None


# --- what is accepted is read back --------------------------------------------------------------------------------

# Pieces of labels that look like what divides an answer, ends it, or is told apart by it.
FRAGMENTS = (
    *("hello", "it's", "3.14", "面", "é", " ", ".", "(", "0.10-0.20)", "(0.10-0.20)", "-"),
    *("none", "speaker 1:", "Speaker 2: ", "pitch: 3", "qualities:", ":", ";", ",", "\n", "\t"),
    *("<", "|>", "<|sil|>", "<|0.10|>", "<|delim|>", "<|endofentityvalue|>", END_OF_TEXT, "{text}"),
)


class Draw:
    """Labels at random: of the right shape, and hostile within it."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def text(self) -> str:
        simple = self.rng.random() < 0.5
        return "".join(self.rng.choice(FRAGMENTS[:7] if simple else FRAGMENTS, size=self.rng.integers(1, 4)))

    def several(self, make: Any, least: int = 0) -> list:
        return [make() for _ in range(self.rng.integers(least, least + 4))]

    def spans(self, what: str, *, apart: bool = False, least: int = 0) -> list[dict[str, Any]]:
        found = self.several(lambda: {what: self.text(), **self.times()}, least)
        if apart:
            times = np.sort(self.rng.uniform(0, 30, 2 * len(found))).tolist()
            found = [{**entry, "start": times[2 * n], "end": times[2 * n + 1]} for n, entry in enumerate(found)]
        return found

    def times(self) -> dict[str, float]:
        start, end = np.sort(self.rng.uniform(0, 30, 2)).tolist()
        return {"start": start, "end": end}

    def labels(self, code: str) -> dict[str, Any]:
        language = str(self.rng.choice(list(LANGUAGES)))
        drawn = {
            "language": language,
            "target_language": "de",
            "text": self.text() if not TASKS[code].choices else str(self.rng.choice(TASKS[code].choices)),
            "question": self.text(),
            "dialect": self.text(),
            "intent": self.text(),
            "slots": {self.text(): self.text() for _ in range(self.rng.integers(4))},
            "entities": self.several(lambda: {"type": self.text(), "value": self.text()}),
            "texts": self.several(self.text, 2),
            "words": self.spans("word", apart=True, least=1),
            "events": self.spans("label"),
            "turns": self.spans("speaker", least=1),
            "notes": {
                "pitch": int(self.rng.integers(128)),
                "velocity": int(self.rng.integers(128)),
                "instrument": self.text(),
                "sonic": self.several(self.text),
            },
        }
        return {"task": code, **{name: drawn[name] for name in TASKS[code].needs}}


def as_read(name: str, value: Any) -> Any:
    """What of a label an answer can give back: text without the spaces around it, times to 10 ms, lists by time,
    speakers by number."""

    def entry(given: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.strip() if isinstance(v, str) else round(100 * v) / 100 for k, v in given.items()}

    if name in ("text", "intent"):
        return value.strip()
    if name == "language":
        return value
    if name == "texts":
        return [text.strip() for text in value]
    if name == "slots":
        return {key: text.strip() for key, text in value.items()}
    if name == "notes":
        return {**value, "instrument": value["instrument"].strip(), "sonic": [text.strip() for text in value["sonic"]]}
    if name in ("entities", "words"):
        return [entry(given) for given in value]
    entries = sorted(map(entry, value), key=lambda e: (e["start"], e["end"], e.get("label", e.get("speaker"))))
    if name == "turns":
        numbers: dict[str, int] = {}
        for turn in entries:
            turn["speaker"] = f"speaker {numbers.setdefault(turn['speaker'], len(numbers) + 1)}"
    return entries


ASKED = [code for code, task in TASKS.items() if task.hours]


@pytest.mark.parametrize("code", ASKED)
def test_accepted_labels_parse_back_under_both_styles(code):
    draw, task, styles = Draw(seed=sum(code.encode())), TASKS[code], (TagPrompt(), NaturalPrompt())
    accepted = refused = 0
    while accepted < 60:
        row = draw.labels(code)
        if tasks.check(row):
            refused += 1
            assert refused < 20_000
            continue
        accepted += 1
        for style in styles:
            *pieces, end = [turn.text for turn in style.turns(row, n_clips=task.clips) if turn.role == "answer"]
            answer = "".join(pieces) + end.removesuffix(END_OF_TEXT)
            read = task.answer.parse(answer)
            assert read and read == {name: as_read(name, row[name]) for name in read}, (row, answer)


# Labels as people write them.
ODD = (
    "it's",
    "Don't stop!",
    "no.",
    "3.14",
    "0",
    "?",
    "new york (city)",
    "你好",
    "早上 好",
    "\u3000全角",
    "한국어",
    "👍",
)
ODD += ("none", "None.", "50%", "[noise]", "a-b", "rock'n'roll", "naïve", "speaker 2", "mm-hmm", "小猫，小狗。")


def odd_labels(code: str, text: str, language: str) -> dict[str, Any]:
    """A row with this label wherever a label stands; times at both ends, nothing between them, and many speakers."""
    times = [{"start": 0.0, "end": 0.0}, {"start": 0, "end": 0.42}, {"start": 29.5, "end": 30}]
    words = list("".join(text.split())) if language == "zh" else [text]
    given = {
        "text": TASKS[code].choices[0] if TASKS[code].choices else text,
        "language": language,
        "target_language": "ja",
        "question": text,
        "dialect": text,
        "intent": text,
        "slots": {text.strip(): text, "a name": text, "number": "3"},
        "entities": [{"type": text, "value": text}, {"type": "place", "value": text}] if text != "none" else [],
        "texts": [text] * 9,
        "words": [
            {"word": words[0], **times[1]},
            *({"word": word, "start": 0.42, "end": 0.42} for word in words),
            {"word": words[-1], **times[2]},
        ],
        "events": [{"label": text, **one} for one in times] if text != "none" else [],
        "turns": [{"speaker": f"{text}{n}", "start": n / 2, "end": n / 2 + 0.75} for n in range(40)],
        "notes": {"pitch": 0, "velocity": 127, "instrument": text, "sonic": [text, "dark"]},
    }
    return {"task": code, **{name: given[name] for name in TASKS[code].needs}}


def draw_rows(code: str, number: int) -> list[dict[str, Any]]:
    draw = Draw(seed=1)
    rows = (row for row in iter(lambda: draw.labels(code), None) if tasks.check(row) is None)
    return [row for _, row in zip(range(number), rows, strict=False)]


@pytest.mark.parametrize("code", ASKED)
def test_answers_can_be_parsed_from_their_token_ids(code):
    task, tok = TASKS[code], tokenizer()
    odd = [odd_labels(code, text, language) for text in ODD for language in ("en", "zh")]
    assert [tasks.check(row) for row in odd] == [None] * len(odd)
    for row in [*draw_rows(code, 10), *odd]:
        for style in (TagPrompt(), NaturalPrompt()):
            turns = [turn for turn in style.turns(row, n_clips=task.clips) if turn.role == "answer"]
            ids = tok.encode(turns, []).ids
            assert ids[-1] == tok.end
            read = task.answer.parse(tok.decode(ids[:-1], control=task.answer.has_tags))
            assert read == {name: as_read(name, row[name]) for name in read}


@pytest.mark.parametrize("code", [code for code in ASKED if TASKS[code].metric not in ("bleu", "der")])
def test_a_label_in_decomposed_unicode_can_be_answered(code):
    """As file systems write them; a tokenizer composes characters, so no answer is ever in the label's own form."""
    task, text = TASKS[code], unicodedata.normalize("NFD", "ça brûle")
    row = odd_labels(code, text, "fr")
    assert tasks.check(row) is None
    true = task.render(row)
    # Of a class set; of scores; and two that take text as it is, as the released scripts do.
    others = ("unparsed", "eer", "aas_official", "bleu")
    for metric in task.metrics.keys() - set(others):
        forms = (true, unicodedata.normalize("NFC", true))
        right, found = (
            row_stats(metric, task.extract(answer, metric), task.extract(true, metric), "fr") for answer in forms
        )
        assert found == right, metric


@pytest.mark.parametrize("code", ASKED)
def test_metrics_compare_the_same_content_in_both_forms_of_an_answer(code):
    draw, task = Draw(seed=2), TASKS[code]
    rows = (row for row in iter(lambda: draw.labels(code), None) if tasks.check(row) is None)
    for _, row in zip(range(10), rows, strict=False):
        for metric in task.metrics:
            assert task.extract(task.render(row), metric) == task.extract(task.render(row, tags=False), metric)


VALUES = [None, True, -1, 1e308, float("nan"), "", " ", "x", [], {}, [[]], [{}], [1], {"a": []}, {1: 2}, b"x"]


@pytest.mark.parametrize("code", ASKED)
def test_a_label_that_is_missing_or_of_another_type_is_named(code):
    good = odd_labels(code, "hello", "en")
    for name in TASKS[code].needs:
        others = [value for value in VALUES if not isinstance(value, type(good[name]))]
        rows = [good | {name: value} for value in others] + [{k: v for k, v in good.items() if k != name}]
        for row in rows:
            assert f"`{name}" in (tasks.check(row) or ""), row
        for value in VALUES:
            problem = tasks.check(good | {name: value})
            assert problem is None or len(problem) < 1000
    assert "unknown task" in tasks.check(good | {"task": f"{code}x"})


# --- what a model may say instead ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ["", " ", "hello", "none", "<|", "(1.00-)", "a: b", ";;", "<|0.50|>", "-1", "9" * 5000]
)
@pytest.mark.parametrize("code", ASKED)
def test_any_answer_can_be_read_and_compared(code, answer):
    task = TASKS[code]
    assert isinstance(task.answer.parse(answer), dict)
    for metric in task.metrics:
        task.extract(answer, metric)


@pytest.mark.parametrize("opening", ["", "<|0.00|>"])
def test_timed_words_are_read_with_and_without_their_opening_time(opening):
    read = Words().parse(f"{opening}<|sil|><|0.54|> hello<|0.86|>you")
    assert read == {
        "words": [{"word": "hello", "start": 0.54, "end": 0.86}, {"word": "you", "start": 0.86, "end": None}]
    }


def test_a_word_without_times_in_brackets_has_no_end():
    read = Words().parse("hello (0.10-0.42) there")["words"]
    assert read == [{"word": "hello", "start": 0.1, "end": 0.42}, {"word": "there", "start": 0.42, "end": None}]
    assert Words().parse("hello there")["words"] == [{"word": "hello there", "start": 0.0, "end": None}]


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize(("code", "labels"), [("srwt", {"words": WORDS}), ("osr", {"texts": TEXTS})])
def test_a_predicted_language_tag_is_not_part_of_the_transcript(code, labels, tags):
    answer = TASKS[code].render(labels, tags=tags)
    assert TASKS[code].answer.parse("<|en|>" + answer) == TASKS[code].answer.parse(answer) == labels


def test_timed_words_are_compared_by_their_text():
    for tags in (True, False):
        assert TASKS["srwt"].extract(TASKS["srwt"].render({"words": WORDS}, tags=tags)) == "hello there"


def test_events_that_share_a_time_are_both_read():
    read = Events().parse("<|0.50|>dog<|1.20|>rain<|4.00|>")["events"]
    assert [(event["label"], event["start"], event["end"]) for event in read] == [("dog", 0.5, 1.2), ("rain", 1.2, 4.0)]


@pytest.mark.parametrize("answer_format", [Events(), Entities()])
def test_a_missing_and_a_broken_list_are_distinguished(answer_format):
    assert answer_format.parse(" None ") == {answer_format.label: []}
    assert answer_format.parse("I hear a dog") == {answer_format.label: None}


def test_a_broken_note_answer_is_read_as_far_as_it_goes():
    read = Notes().parse("<|midi_pitch_7|> nonsense")["notes"]
    assert read == {"pitch": 7, "velocity": None, "instrument": None, "sonic": []}
    assert Notes().parse("velocity: 3; loud")["notes"] == {**read, "pitch": None, "velocity": 3}
    assert Notes().extract("nonsense", "notes.instrument") == ""


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_answer_is_its_english_name_and_is_read_in_any_case(language):
    assert TASKS["lid"].render({"language": language}) == LANGUAGES[language]
    assert Language().parse(f" {LANGUAGES[language].upper()} ") == {"language": language}


def test_an_answer_that_is_no_language_is_none():
    assert Language().parse("Klingon") == {"language": None}


def test_a_slot_value_may_hold_a_colon_and_a_broken_pair_loses_only_itself():
    assert Slots().parse("wake; time: 7:30; ; : x") == {"intent": "wake", "slots": {"time": "7:30"}}


# --- what cannot be written ---------------------------------------------------------------------------------------


def told(code: str, **labels: Any) -> str:
    return tasks.check({"task": code, "language": "en", **labels}) or ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`words` is []"),
        ("hello", "`words` is 'hello'"),
        (["hello"], "`words[0]`"),
        ([{"word": "a", "start": 0.0}], "expected a list of {word, start, end}"),
        ([{"word": "a", "start": 0.0, "end": float("nan")}], "expected a list of {word, start, end}"),
        ([{"word": "a", "start": 0.0, "end": 1e308}], "expected a list of {word, start, end}"),
        ([{"word": "a", "start": True, "end": 1}], "expected a list of {word, start, end}"),
        ([{"word": " ", "start": 0.0, "end": 0.1}], "not empty"),
        ([{"word": 5, "start": 0.0, "end": 0.1}], "expected a string"),
        ([{"word": "<|endoftext|>", "start": 0.0, "end": 0.1}], "without `<`"),
        ([{"word": "a(0.10-0.20)", "start": 0.0, "end": 0.1}], "without times in parentheses"),
        ([{"word": "a", "start": 0.2, "end": 0.1}], "0 <= start <= end <= 30 s"),
        ([WORDS[1], WORDS[0]], "do not overlap"),
        ([{"word": "a", "start": 29.0, "end": 30.01}], "0 <= start <= end <= 30 s"),
    ],
)
def test_unusable_timed_words_are_refused_with_a_reason(words, message):
    assert message in told("srwt", words=words)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pitch": 128}, "`notes.pitch` is 128"),
        ({"pitch": True}, "`notes.pitch` is True"),
        ({"pitch": 10**400}, "expected a MIDI number"),
        ({"velocity": 1.5}, "`notes.velocity` is 1.5"),
        ({"instrument": ""}, "not empty"),
        ({"instrument": None}, "`notes.instrument` is None"),
        ({"instrument": "a; b"}, "without `;`"),
        ({"sonic": "bright"}, "`notes.sonic`"),
        ({"sonic": ["<|endoftext|>"]}, "without `<`"),
        ({"sonic": ["bright, dark"]}, "without `,`"),
    ],
)
def test_unusable_notes_are_refused_with_a_reason(changed, message):
    assert message in told("mna", notes={**NOTES, **changed})
    assert "`notes` is [60]" in told("mna", notes=[60])


@pytest.mark.parametrize(
    ("code", "labels", "message"),
    [
        ("sf", {"intent": "play", "slots": [["time", "now"]]}, "`slots` is list"),
        ("sf", {"intent": "a; b", "slots": {}}, "label `intent` is 'a; b'"),
        ("sf", {"intent": "play", "slots": {"a:b": "c"}}, "without `:`"),
        ("sf", {"intent": "play", "slots": {" a": "c"}}, "no spaces around it"),
        ("sf", {"intent": "play", "slots": {"a": "b; c: d"}}, "`slots.a` is 'b; c: d'"),
        ("sf", {"intent": "play", "slots": {"a": None}}, "`slots.a` is None"),
        ("ser", {"entities": {"person": "ann"}}, "`entities` is {'person': 'ann'}"),
        ("ser", {"entities": ["ann"]}, "`entities[0]` is 'ann'"),
        ("ser", {"entities": [{"type": "person"}]}, "`value` of `entities[0]`"),
        ("ser", {"entities": [{"type": "a: b", "value": "c"}]}, "without `:`"),
        ("osr", {"texts": "hello"}, "`texts` is 'hello'"),
        ("osr", {"texts": ["hello"]}, "two or more speakers"),
        ("osr", {"texts": ["hello", "one\ntwo"]}, "without line breaks"),
        ("osr", {"texts": ["hello", ""]}, "`texts[1]` is ''"),
        ("sed", {"events": None}, "needs the label `events`"),
        ("sed", {"events": [{"label": "dog", "start": -1, "end": 1}]}, "0 <= start <= end <= 30 s"),
        ("sd", {"turns": []}, "`turns` is []"),
        ("sd", {"turns": [{"speaker": 1, "start": 0, "end": 1}]}, "`speaker` of `turns[0]` is 1"),
        ("aac", {"text": "rain", "references": "rain"}, "`references` is 'rain'"),
        ("mc", {"text": "a waltz", "references": ["a waltz", " "]}, "`references[1]` is ' '"),
        ("sv", {"text": "same"}, "'same'; valid answers of task 'sv': yes, no"),
    ],
)
def test_labels_that_cannot_be_rendered_are_refused_with_a_reason(code, labels, message):
    assert message in told(code, **labels)
