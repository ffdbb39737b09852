"""Answer formats: how the labels of a row are written as a model's answer, and how an answer is parsed.

With hierarchical tags an answer may contain control tokens (`Tag`); in natural language it is plain text. `parse` reads
both forms. If a label has no `problems`, parsing its answer gives the label back, except that times are rounded to 10
ms, spaces around text are dropped, events are sorted by time, names of speakers become numbers, and numbers in slots
become text. An empty list is written as `none`. If an answer should contain a list but does not, the label is parsed as
None.

To add a format, write a class with the methods of `AnswerFormat` and add it to `FORMATS`. Tasks refer to it in the
field `answer` of `tasks.yaml`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from auris.errors import shorten

# Languages of Qwen-Audio and Qwen2-Audio: code and name in prompts.
LANGUAGES = {
    "en": "English",
    "zh": "Mandarin",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "yue": "Cantonese",
}

Labels = Mapping[str, Any]

_NONE = "none"
_SILENCE, _DELIMITER = "<|sil|>", "<|delim|>"
_VALUE, _END_OF_VALUE = "<|startofentityvalue|>", "<|endofentityvalue|>"
_TYPE, _END_OF_TYPE = "<|startofentitytype|>", "<|endofentitytype|>"
_LAST_HUNDREDTH = 3000  # <|30.00|> is the last timestamp of both vocabularies
_LAST_MIDI = 127

_TIME = re.compile(r"<\|([0-9]{1,2}\.[0-9]{2})\|>")
# The second tag is only looked ahead at, because it may end one span and start the next.
_TAGGED_SPAN = re.compile(rf"{_TIME.pattern}([^<]+)(?={_TIME.pattern})")
_NATURAL_TIMES = re.compile(r"\(([0-9]{1,2}\.[0-9]{2})-([0-9]{1,2}\.[0-9]{2})\)")  # after the text of a span
_ENTITY = re.compile("(.*?)".join(map(re.escape, (_VALUE, _END_OF_VALUE + _TYPE, _END_OF_TYPE))), re.DOTALL)
_SPEAKER = re.compile(r"speaker [0-9]+:", re.IGNORECASE)
_LANGUAGE_TAG = re.compile(rf"\s*<\|(?:{'|'.join(LANGUAGES)})\|>")  # models may predict it before the answer
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


class Tag(str):
    """A piece of an answer that consists of control tokens. The pieces that are plain `str` are text."""


class AnswerFormat(Protocol):
    """A way to write labels as an answer and to parse an answer.

    Attributes:
        label: Field of a row that the answer contains; it is also the name of the format.
        has_tags: Whether answers with hierarchical tags contain control tokens, so that decoding has to keep them.
    """

    label: ClassVar[str]
    has_tags: ClassVar[bool] = False

    @abstractmethod
    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the answer as a list of texts and `Tag`s. Without `tags`, the answer is in natural language."""

    @abstractmethod
    def parse(self, answer: str) -> Labels:
        """Parse an answer in either form. Any text is accepted."""

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the label cannot be written.

        Callers take only the first reason, so each check may rely on the earlier checks.
        """
        return _text_problems(self.label, labels)

    def extract(self, answer: str, part: str) -> Any:
        """Return the part of an answer that a metric compares.

        Args:
            answer: The answer.
            part: `answer` for the text of the answer; `labels` for all parsed labels; or the path of one label, such as
                `notes.pitch`. A format may define further names.
        """
        if part == "answer":
            return answer
        value = self.parse(answer)
        for key in part.split(".") if part != "labels" else ():
            value = value[key]
        return value


# --- text, names, pairs -------------------------------------------------------------------------------------------


class Text(AnswerFormat):
    """The row's `text`, unchanged."""

    label = "text"

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the text."""
        return [labels["text"]]

    def parse(self, answer: str) -> Labels:
        """Return the text without spaces around it."""
        return {"text": answer.strip()}


class Language(AnswerFormat):
    """The English name of a language."""

    label = "language"

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the name of the language."""
        return [LANGUAGES[labels["language"]]]

    def parse(self, answer: str) -> Labels:
        """Return the code of the language; None for an unknown name."""
        codes = {name.lower(): code for code, name in LANGUAGES.items()}
        return {"language": codes.get(answer.strip().lower())}


class Intent(AnswerFormat):
    """The name of an intent."""

    label = "intent"

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the intent."""
        return [labels["intent"].strip()]

    def parse(self, answer: str) -> Labels:
        """Return the intent."""
        return {"intent": answer.strip()}

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the intent cannot be written."""
        yield from _piece_problems("label `intent`", labels["intent"], without=";")


class Slots(AnswerFormat):
    """Intent and slots as `intent; name: value; name: value`, with the slots in alphabetical order."""

    label = "slots"

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the intent and the slots."""
        slots = sorted((name, str(value).strip()) for name, value in labels["slots"].items())
        return ["; ".join([labels["intent"].strip(), *(f"{name}: {value}" for name, value in slots)])]

    def parse(self, answer: str) -> Labels:
        """Return the intent and the slots."""
        intent, *pieces = answer.split(";")
        return {"intent": intent.strip(), "slots": dict(_parse_pairs(pieces))}

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the slots cannot be written."""
        slots = labels["slots"]
        if not isinstance(slots, Mapping):
            yield f"label `slots` is {type(slots).__name__}, expected an object {{name: value}}"
        for name, value in slots.items():
            yield from _piece_problems("a name of label `slots`", name, without=":;")
            if name != name.strip():
                yield f"a name of label `slots` is {shorten(name)}, expected no spaces around it"
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                yield f"`slots.{name}` is {shorten(value)}, expected a string"
            if ";" in str(value):
                yield f"`slots.{name}` is {shorten(value)}, expected text without {_RESERVED[';']}"


class Entities(AnswerFormat):
    """Entities as `type: value; type: value`.

    With tags, each value precedes its type, as Qwen-Audio's tokens require.
    """

    label, has_tags = "entities", True

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the entities in their order."""
        pairs = [(entity["type"].strip(), entity["value"].strip()) for entity in labels["entities"]]
        if not pairs:
            return [_NONE]
        if not tags:
            return ["; ".join(f"{kind}: {value}" for kind, value in pairs)]
        begin, middle, end = Tag(_VALUE), Tag(_END_OF_VALUE + _TYPE), Tag(_END_OF_TYPE)
        return [piece for kind, value in pairs for piece in (begin, value, middle, kind, end)]

    def parse(self, answer: str) -> Labels:
        """Return the entities; None if there are none and the answer is not `none`."""
        pairs = [(kind, value) for value, kind in _ENTITY.findall(answer)] or _parse_pairs(answer.split(";"))
        entities = [{"type": kind.strip(), "value": value.strip()} for kind, value in pairs if value.strip()]
        return {"entities": entities if entities or _is_none(answer) else None}

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the entities cannot be written."""
        expected = "expected a list of {type, value}"
        if not isinstance(labels["entities"], list):
            yield f"label `entities` is {shorten(labels['entities'])}, {expected}"
        for number, entity in enumerate(labels["entities"]):
            name = f"`entities[{number}]`"
            if not isinstance(entity, Mapping):
                yield f"{name} is {shorten(entity)}, {expected}"
            yield from _piece_problems(f"`type` of {name}", entity.get("type"), without="<;:")
            yield from _piece_problems(f"`value` of {name}", entity.get("value"), without="<;")


class Texts(AnswerFormat):
    """Transcripts in the order in which their speakers begin. Each is a line such as `speaker 1: hello`."""

    label, has_tags = "texts", True

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the transcripts; with tags, they are separated by delimiter tokens."""
        first, *rest = texts = [text.strip() for text in labels["texts"]]
        if not tags:
            return ["\n".join(f"speaker {n}: {text}" for n, text in enumerate(texts, start=1))]
        return [first, *(piece for text in rest for piece in (Tag(_DELIMITER), text))]

    def parse(self, answer: str) -> Labels:
        """Return the transcripts."""
        answer = _drop_language_tag(answer)
        if _DELIMITER in answer:
            return {"texts": [text.strip() for text in answer.split(_DELIMITER)]}
        lines = (line.strip() for line in answer.strip().split("\n"))
        return {"texts": [line[match.end() :].strip() if (match := _SPEAKER.match(line)) else line for line in lines]}

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the transcripts cannot be written."""
        expected = "transcripts of two or more speakers"
        return _list_problems("texts", labels, expected=expected, min_count=2, without="<\n")


# --- spans of time ------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A text with its start and end in hundredths of a second."""

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.text} ({self.start / 100:.2f}-{self.end / 100:.2f})"


class Events(AnswerFormat):
    """Sound events ordered by start, which may overlap: `dog (0.50-1.20) rain (1.00-4.00)`.

    With tags, each event is written as start, label, end.
    """

    label, has_tags = "events", True
    key: ClassVar[str] = "label"  # field that holds the text of an entry
    may_be_empty: ClassVar[bool] = True

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the spans in order."""
        spans = self._sort(self._spans(labels))
        if not tags:
            return [" ".join(map(str, spans)) or _NONE]
        return [piece for span in spans for piece in (_time(span.start), span.text, _time(span.end))] or [_NONE]

    def parse(self, answer: str) -> Labels:
        """Return the spans with times in seconds; None if there are none and the answer is not `none`."""
        spans = [(text, start, end) for start, text, end in _TAGGED_SPAN.findall(answer)]
        if not spans:
            pieces = _NATURAL_TIMES.split(answer)
            spans = list(zip(pieces[0::3], pieces[1::3], pieces[2::3], strict=False))
        entries = [
            {self.key: text.strip(), "start": float(start), "end": float(end)}
            for text, start, end in spans
            if text.strip()
        ]
        return {self.label: entries if entries or _is_none(answer) else None}

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the spans cannot be written."""
        entries, expected = labels[self.label], f"expected a list of {{{self.key}, start, end}} with times in seconds"
        if not isinstance(entries, list) or not (entries or self.may_be_empty):
            yield f"label `{self.label}` is {shorten(entries)}, {expected}"
        for number, entry in enumerate(entries):
            finding = f"`{self.label}[{number}]` is {shorten(entry)}"
            if not isinstance(entry, Mapping) or not all(_is_number(entry.get(key), float) for key in ("start", "end")):
                yield f"{finding}, {expected}"
            text = entry.get(self.key)
            yield from _piece_problems(f"`{self.key}` of `{self.label}[{number}]`", text, without="<")
            if _NATURAL_TIMES.search(text):
                yield f"{finding}: expected text without times in parentheses, because answers append times to the text"
            if not 0 <= round(100 * entry["start"]) <= round(100 * entry["end"]) <= _LAST_HUNDREDTH:
                yield f"{finding}: expected 0 <= start <= end <= {_LAST_HUNDREDTH // 100} s"

    def _spans(self, labels: Labels) -> list[Span]:
        return [
            Span(str(entry[self.key]).strip(), round(100 * entry["start"]), round(100 * entry["end"]))
            for entry in labels[self.label]
        ]

    def _sort(self, spans: Iterable[Span]) -> Sequence[Span]:
        return sorted(spans, key=lambda span: (span.start, span.end, span.text))


class Turns(Events):
    """Turns of speakers, written like events. Speakers are numbered by their first turn, because audio has no names."""

    label, key, may_be_empty = "turns", "speaker", False

    def _sort(self, spans: Iterable[Span]) -> Sequence[Span]:
        numbers: dict[str, int] = {}
        turns = super()._sort(spans)
        return [span._replace(text=f"speaker {numbers.setdefault(span.text, len(numbers) + 1)}") for span in turns]


class Words(Events):
    """Words in sequence with their times: `hello (0.00-0.42) there (0.50-1.00)`.

    With tags, an answer is word, time, word, time, ... The time between two words is both the end of the first word and
    the start of the second, and a pause is the word `<|sil|>` (Qwen-Audio EVALUATION.md). The start of the first word,
    `<|0.00|>`, belongs to the prompt. Further parts for metrics are `transcript`, the words without times, and
    `published`, the answer in the form that the released scoring script reads.
    """

    label, key, may_be_empty = "words", "word", False

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the words; with tags, pauses too."""
        if not tags:
            return super().render(labels, tags=False)
        pieces: list[str] = []
        now = 0
        for word, start, end in self._spans(labels):
            if start > now:
                pieces += [Tag(_SILENCE), _time(start)]
            pieces += [word, _time(end)]
            now = end
        return pieces

    def parse(self, answer: str) -> Labels:
        """Return the words with their times in seconds. `end` is None for a last word that no time follows."""
        answer = _drop_language_tag(answer)
        if _TIME.search(answer):
            first, *rest = _TIME.split(answer)
            words, ends = [first, *rest[1::2]], [*map(float, rest[0::2])]
            starts = [0.0, *ends]
        else:
            pieces = _NATURAL_TIMES.split(answer)
            words, starts, ends = pieces[0::3], [*map(float, pieces[1::3])], [*map(float, pieces[2::3])]
            starts.append(ends[-1] if ends else 0.0)
        timed_words = zip((word.strip() for word in words), starts, [*ends, None], strict=True)
        return {
            "words": [
                {"word": word, "start": start, "end": end}
                for word, start, end in timed_words
                if word and word != _SILENCE
            ]
        }

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the words cannot be written."""
        yield from super().problems(labels)
        now = 0
        for number, (word, start, end) in enumerate(self._spans(labels)):
            finding = f"`words[{number}]` is {shorten(labels['words'][number])}"
            if start < now:
                yield f"{finding}: expected words that do not overlap, in order"
            if labels.get("language") in ("zh", "yue") and len(_HAN.findall(word)) > 1:
                yield f"{finding}: expected one character, because in Chinese each character has its times"
            now = end

    def extract(self, answer: str, part: str) -> Any:
        """Return the part of an answer that a metric compares."""
        if part == "transcript":
            return " ".join(entry["word"] for entry in self.parse(answer)["words"])
        if part == "published":
            timed_words = [word for word in self.parse(answer)["words"] if word["end"] is not None]
            is_unchanged = _TIME.search(answer) or not timed_words
            return answer if is_unchanged else "".join(self.render({"words": timed_words}, tags=True))
        return super().extract(answer, part)

    def _sort(self, spans: Iterable[Span]) -> Sequence[Span]:
        return list(spans)


def _time(hundredths: int) -> Tag:
    return Tag(f"<|{hundredths / 100:.2f}|>")


# --- notes --------------------------------------------------------------------------------------------------------


class Notes(AnswerFormat):
    """A note as `pitch: 60; velocity: 100; instrument: guitar; qualities: bright, reverb`, with numbers as in MIDI.

    With tags, an answer has the four fields that evaluate_note_analysis.py of Qwen-Audio reads, in the same order.
    """

    label, has_tags = "notes", True

    def render(self, labels: Labels, *, tags: bool) -> list[str]:
        """Write the note's fields."""
        notes = labels["notes"]
        pitch, velocity, instrument = notes["pitch"], notes["velocity"], notes["instrument"].strip()
        qualities = ", ".join(name.strip() for name in notes.get("sonic") or ())
        if not tags:
            answer = f"pitch: {pitch}; velocity: {velocity}; instrument: {instrument}"
            return [answer + (f"; qualities: {qualities}" if qualities else "")]
        numbers = f"<|pitch|><|midi_pitch_{pitch}|><|velocity|><|midi_velocity_{velocity}|>"
        return [Tag(f"{numbers}<|instrument|>"), instrument, *([Tag("<|sonic|>"), qualities] if qualities else [])]

    def parse(self, answer: str) -> Labels:
        """Return pitch and velocity as MIDI numbers, instrument and sonic qualities.

        Missing numbers and a missing instrument are None; missing qualities are an empty list.
        """

        def find_number(name: str) -> int | None:
            match = re.search(rf"(?:<\|midi_{name}_|(?:^|;)\s*{name}:\s*)([0-9]{{1,3}})(?![0-9])", answer)
            return int(match[1]) if match else None

        def find_text(tag: str, name: str) -> str | None:
            match = re.search(rf"(?:<\|{tag}\|>|(?:^|;)\s*{name}:)([^<;]+)", answer)
            return match[1].strip() if match else None

        numbers = {name: find_number(name) for name in ("pitch", "velocity")}
        qualities = (find_text("sonic", "qualities") or "").split(",")
        qualities = [name.strip() for name in qualities if name.strip()]
        return {"notes": {**numbers, "instrument": find_text("instrument", "instrument"), "sonic": qualities}}

    def extract(self, answer: str, part: str) -> Any:
        """Return the part of an answer that a metric compares; an empty string for a missing instrument."""
        value = super().extract(answer, part)
        return "" if part == "notes.instrument" and value is None else value

    def problems(self, labels: Labels) -> Iterator[str]:
        """Yield the reasons why the notes cannot be written."""
        notes = labels["notes"]
        if not isinstance(notes, Mapping):
            yield f"label `notes` is {shorten(notes)}, expected an object {{pitch, velocity, instrument, sonic}}"
        for key in ("pitch", "velocity"):
            if not _is_number(notes.get(key), int) or not 0 <= notes[key] <= _LAST_MIDI:
                yield f"`notes.{key}` is {shorten(notes.get(key))}, expected a MIDI number from 0 to {_LAST_MIDI}"
        yield from _piece_problems("`notes.instrument`", notes.get("instrument"), without="<;")
        qualities = notes.get("sonic", [])
        if not isinstance(qualities, list):
            yield f"`notes.sonic` is {shorten(qualities)}, expected a list of words"
        for name in qualities:
            yield from _piece_problems("a word of `notes.sonic`", name, without="<;,")


_FORMATS = (Text(), Language(), Intent(), Slots(), Entities(), Texts(), Words(), Events(), Turns(), Notes())
FORMATS: dict[str, AnswerFormat] = {answer_format.label: answer_format for answer_format in _FORMATS}


# --- parsing ------------------------------------------------------------------------------------------------------


def _parse_pairs(pieces: Iterable[str]) -> list[tuple[str, str]]:
    """Return the name and the value of each piece `name: value` whose name is not empty."""
    parts = ([side.strip() for side in piece.partition(":")] for piece in pieces)
    return [(name, value) for name, _, value in parts if name]


def _is_none(answer: str) -> bool:
    return answer.strip().lower() == _NONE


def _drop_language_tag(answer: str) -> str:
    match = _LANGUAGE_TAG.match(answer)
    return answer[match.end() :] if match else answer


# --- labels that cannot be written --------------------------------------------------------------------------------

_RESERVED = {
    "<": "`<`, which starts a control token",
    ";": "`;`, which separates parts of an answer",
    ":": "`:`, which ends a name",
    ",": "`,`, which separates items of a list",
    "\n": "line breaks, which separate parts of an answer",
}


def label_problems(name: str, labels: Labels) -> Iterator[str]:
    """Yield the reasons why a label cannot be used.

    Callers take only the first reason, so each check may rely on the earlier checks.
    """
    if name in FORMATS:
        return FORMATS[name].problems(labels)
    if name == "references":
        return _list_problems(name, labels, expected="right answers")
    return _text_problems(name, labels)


def _text_problems(name: str, labels: Labels) -> Iterator[str]:
    if not isinstance(labels[name], str):
        yield f"label `{name}` is {type(labels[name]).__name__}, expected a string"
    if not labels[name].strip():
        yield f"label `{name}` is empty"


def _list_problems(name: str, labels: Labels, *, expected: str, min_count: int = 1, without: str = "") -> Iterator[str]:
    """Yield the reasons why a list of texts cannot be used. The texts must not contain the characters `without`."""
    texts = labels[name]
    if not isinstance(texts, list) or len(texts) < min_count:
        yield f"label `{name}` is {shorten(texts)}, expected a list of {expected}"
    for number, text in enumerate(texts):
        yield from _piece_problems(f"`{name}[{number}]`", text, without=without)


def _piece_problems(name: str, text: object, *, without: str = "") -> Iterator[str]:
    """Yield the reasons why a piece of an answer cannot be used.

    Args:
        name: Name of the piece in messages.
        text: The piece.
        without: Characters that the piece must not contain, because they are separators of the answer.
    """
    if not isinstance(text, str):
        yield f"{name} is {shorten(text)}, expected a string"
        return
    if not text.strip():
        yield f"{name} is {shorten(text)}, expected a string that is not empty"
    for separator in without:
        if separator in text:
            yield f"{name} is {shorten(text)}, expected text without {_RESERVED[separator]}"


def _is_number(value: object, number_type: type) -> bool:
    # An integer is accepted as a float too, because JSON may write 2.0 as 2. In Python, True is an int. The limit
    # excludes NaN and numbers that would overflow.
    return isinstance(value, (int, number_type)) and not isinstance(value, bool) and abs(value) < 1e6
