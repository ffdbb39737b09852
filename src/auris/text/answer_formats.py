"""Answers: how a row's labels are written as what a model says, under each prompting style, and how that is read back.

Under hierarchical tags an answer may hold control tokens (`Tag`, apart from the row's own words, which never become
one); in natural language it is text alone. Reading takes both: brackets tell them apart. What `CHECKS` accept is read
back as it was, times to 10 ms and text without the spaces around it, so that a row can be used under both styles or
under neither. An empty list is written as `none`; an answer in which nothing of its form is found is read as None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# The languages of both systems, as their prompts name them.
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
Span = tuple[str, int, int]  # what is heard, its start and its end in hundredths of a second

_NONE = "none"
_SILENCE, _DELIMITER = "<|sil|>", "<|delim|>"
_VALUE, _END_OF_VALUE = "<|startofentityvalue|>", "<|endofentityvalue|>"
_TYPE, _END_OF_TYPE = "<|startofentitytype|>", "<|endofentitytype|>"
_LAST_HUNDREDTH = 3000  # <|30.00|> is the last timestamp of both vocabularies
_LAST_MIDI = 127

_TIME = re.compile(r"<\|([0-9]{1,2}\.[0-9]{2})\|>")
_TAGGED_SPAN = re.compile(rf"{_TIME.pattern}([^<]+)(?={_TIME.pattern})")  # an end may be the next one's start
_SAID_SPAN = re.compile(r"\(([0-9]{1,2}\.[0-9]{2})-([0-9]{1,2}\.[0-9]{2})\)")  # stands behind its label
_ENTITY = re.compile("(.*?)".join(map(re.escape, (_VALUE, _END_OF_VALUE + _TYPE, _END_OF_TYPE))), re.DOTALL)
_SPEAKER = re.compile(r"speaker [0-9]+:", re.IGNORECASE)
_LANGUAGE = re.compile(rf"\s*<\|(?:{'|'.join(LANGUAGES)})\|>")  # with which an answer begins where the model tells it
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


class Tag(str):
    """Control tokens within an answer; the plain strings beside it are text."""


def part(parse: Callable[[str], dict[str, Any]], *path: str) -> Callable[[str], Any]:
    """Reads one thing out of an answer: the value at `path` of what `parse` gives."""

    def read(answer: str) -> Any:
        found: Any = parse(answer)
        for key in path:
            found = found[key]
        return found

    return read


# --- text, names, pairs -------------------------------------------------------------------------------------------


def write_text(labels: Labels) -> list[str]:
    return [labels["text"]]


def parse_text(answer: str) -> dict[str, Any]:
    return {"text": answer.strip()}


def write_language(labels: Labels) -> list[str]:
    return [LANGUAGES[labels["language"]]]


def parse_language(answer: str) -> dict[str, Any]:
    codes = {name.lower(): code for code, name in LANGUAGES.items()}
    return {"language": codes.get(answer.strip().lower())}


def write_intent(labels: Labels) -> list[str]:
    return [labels["intent"].strip()]


def parse_intent(answer: str) -> dict[str, Any]:
    return {"intent": answer.strip()}


def write_slots(labels: Labels) -> list[str]:
    """`intent; name: value; name: value` with the slots in alphabetical order."""
    slots = sorted((name, str(value).strip()) for name, value in labels["slots"].items())
    return ["; ".join([*write_intent(labels), *(f"{name}: {value}" for name, value in slots)])]


def parse_slots(answer: str) -> dict[str, Any]:
    intent, *pieces = answer.split(";")
    return {"intent": intent.strip(), "slots": dict(_read_pairs(pieces))}


def _read_pairs(pieces: Iterable[str]) -> list[tuple[str, str]]:
    """`name: value` of each piece that has a name."""
    named = ([side.strip() for side in piece.partition(":")] for piece in pieces)
    return [(name, value) for name, _, value in named if name]


def write_entities(labels: Labels) -> list[str]:
    """Value and type of each, in the order of Qwen-Audio's tokens for them."""
    pieces: list[str] = []
    for entity in labels["entities"]:
        value, kind = entity["value"].strip(), entity["type"].strip()
        pieces += [Tag(_VALUE), value, Tag(_END_OF_VALUE + _TYPE), kind, Tag(_END_OF_TYPE)]
    return pieces or [_NONE]


def say_entities(labels: Labels) -> list[str]:
    """`type: value; type: value`"""
    said = (f"{entity['type'].strip()}: {entity['value'].strip()}" for entity in labels["entities"])
    return ["; ".join(said) or _NONE]


def parse_entities(answer: str) -> dict[str, Any]:
    pairs = [(kind, value) for value, kind in _ENTITY.findall(answer)] or _read_pairs(answer.split(";"))
    found = [{"type": kind.strip(), "value": value.strip()} for kind, value in pairs if value.strip()]
    return {"entities": found if found or _is_none(answer) else None}


def _is_none(answer: str) -> bool:
    return answer.strip().lower() == _NONE


# --- what is said by whom, and what is heard when -----------------------------------------------------------------


def write_texts(labels: Labels) -> list[str]:
    """One transcript after the other, in the order in which their speakers begin."""
    first, *others = (text.strip() for text in labels["texts"])
    return [first, *(piece for text in others for piece in (Tag(_DELIMITER), text))]


def say_texts(labels: Labels) -> list[str]:
    """`speaker 1: hello`, a line for each."""
    return ["\n".join(f"speaker {n}: {text.strip()}" for n, text in enumerate(labels["texts"], start=1))]


def parse_texts(answer: str) -> dict[str, Any]:
    answer = _without_language(answer)
    if _DELIMITER in answer:
        return {"texts": [text.strip() for text in answer.split(_DELIMITER)]}
    lines = (line.strip() for line in answer.strip().split("\n"))
    return {"texts": [line[match.end() :].strip() if (match := _SPEAKER.match(line)) else line for line in lines]}


def write_words(labels: Labels) -> list[str]:
    """Time, word, time, word, ..., time: neighbours share one time, a pause is the word `<|sil|>` (Qwen-Audio
    EVALUATION.md). The `<|0.00|>` that opens it is the end of the prompt."""
    pieces: list[str] = []
    now = 0
    for word, start, end in _spans(labels, "words", "word"):
        if start > now:
            pieces += [Tag(_SILENCE), _time(start)]
        pieces += [word, _time(end)]
        now = end
    return pieces


def say_words(labels: Labels) -> list[str]:
    """`hello (0.00-0.42) there (0.50-1.00)`"""
    return _say_spans(_spans(labels, "words", "word"))


def parse_words(answer: str) -> dict[str, Any]:
    """Words with their times in seconds; `end` is None for a last word whose time is missing."""
    answer = _without_language(answer)
    if _TIME.search(answer):
        first, *rest = _TIME.split(answer)
        words, ends = [first, *rest[1::2]], [*map(float, rest[0::2])]
        starts = [0.0, *ends]
    else:
        pieces = _SAID_SPAN.split(answer)
        words, starts, ends = pieces[0::3], [*map(float, pieces[1::3])], [*map(float, pieces[2::3])]
        starts.append(ends[-1] if ends else 0.0)
    heard = zip((word.strip() for word in words), starts, [*ends, None], strict=True)
    return {"words": [{"word": w, "start": s, "end": e} for w, s, e in heard if w and w != _SILENCE]}


def _without_language(answer: str) -> str:
    match = _LANGUAGE.match(answer)
    return answer[match.end() :] if match else answer


def spoken_words(answer: str) -> str:
    """The text of a timed transcript."""
    return " ".join(entry["word"] for entry in parse_words(answer)["words"])


def published_words(answer: str) -> str:
    """A timed transcript as the released scoring script reads it, whichever style it is answered in."""
    heard = [word for word in parse_words(answer)["words"] if word["end"] is not None]
    return answer if _TIME.search(answer) or not heard else "".join(write_words({"words": heard}))


def write_events(labels: Labels) -> list[str]:
    """Start, label, end of each, by their starts; they may overlap."""
    return _write_spans(_by_time(_spans(labels, "events", "label")))


def say_events(labels: Labels) -> list[str]:
    """`dog (0.50-1.20) rain (1.00-4.00)`"""
    return _say_spans(_by_time(_spans(labels, "events", "label")))


def parse_events(answer: str) -> dict[str, Any]:
    return {"events": _read_spans(answer, "label")}


def write_turns(labels: Labels) -> list[str]:
    """As events. Speakers are numbered as they begin: their names cannot be heard."""
    return _write_spans(_numbered(_spans(labels, "turns", "speaker")))


def say_turns(labels: Labels) -> list[str]:
    """`speaker 1 (0.00-3.20) speaker 2 (3.00-5.11)`"""
    return _say_spans(_numbered(_spans(labels, "turns", "speaker")))


def parse_turns(answer: str) -> dict[str, Any]:
    return {"turns": _read_spans(answer, "speaker")}


def _spans(labels: Labels, field: str, what: str) -> list[Span]:
    return [(str(e[what]).strip(), _hundredths(e["start"]), _hundredths(e["end"])) for e in labels[field]]


def _by_time(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (*span[1:], span[0]))


def _numbered(spans: Iterable[Span]) -> list[Span]:
    numbers: dict[str, int] = {}
    return [(f"speaker {numbers.setdefault(name, len(numbers) + 1)}", *times) for name, *times in _by_time(spans)]


def _write_spans(spans: Sequence[Span]) -> list[str]:
    return [piece for what, start, end in spans for piece in (_time(start), what, _time(end))] or [_NONE]


def _say_spans(spans: Sequence[Span]) -> list[str]:
    return [" ".join(f"{what} ({start / 100:.2f}-{end / 100:.2f})" for what, start, end in spans) or _NONE]


def _read_spans(answer: str, what: str) -> list[dict[str, Any]] | None:
    spans = [(heard, start, end) for start, heard, end in _TAGGED_SPAN.findall(answer)]
    if not spans:
        pieces = _SAID_SPAN.split(answer)
        spans = list(zip(pieces[0::3], pieces[1::3], pieces[2::3], strict=False))
    found = [{what: heard.strip(), "start": float(s), "end": float(e)} for heard, s, e in spans if heard.strip()]
    return found if found or _is_none(answer) else None


def _hundredths(seconds: float) -> int:
    return round(100 * seconds)


def _time(hundredths: int) -> Tag:
    return Tag(f"<|{hundredths / 100:.2f}|>")


# --- notes --------------------------------------------------------------------------------------------------------


def write_notes(labels: Labels) -> list[str]:
    """The four fields that evaluate_note_analysis.py of Qwen-Audio reads, in its order."""
    notes = labels["notes"]
    pieces = [
        Tag(f"<|pitch|><|midi_pitch_{notes['pitch']}|>"),
        Tag(f"<|velocity|><|midi_velocity_{notes['velocity']}|>"),
        Tag("<|instrument|>"),
        notes["instrument"].strip(),
    ]
    return pieces + ([Tag("<|sonic|>"), _sonic(notes)] if notes.get("sonic") else [])


def say_notes(labels: Labels) -> list[str]:
    """`pitch: 60; velocity: 100; instrument: guitar; qualities: bright, reverb`, pitch and velocity as in MIDI."""
    notes = labels["notes"]
    said = f"pitch: {notes['pitch']}; velocity: {notes['velocity']}; instrument: {notes['instrument'].strip()}"
    return [said + (f"; qualities: {_sonic(notes)}" if notes.get("sonic") else "")]


def _sonic(notes: Mapping[str, Any]) -> str:
    return ", ".join(name.strip() for name in notes["sonic"])


def parse_notes(answer: str) -> dict[str, Any]:
    """Pitch and velocity as MIDI numbers, the instrument, the sonic qualities; None for what is missing."""

    def number(name: str) -> int | None:
        found = re.search(rf"(?:<\|midi_{name}_|(?:^|;)\s*{name}:\s*)([0-9]{{1,3}})(?![0-9])", answer)
        return int(found[1]) if found else None

    def text(tag: str, name: str) -> str | None:
        found = re.search(rf"(?:<\|{tag}\|>|(?:^|;)\s*{name}:)([^<;]+)", answer)
        return found[1].strip() if found else None

    notes = {"pitch": number("pitch"), "velocity": number("velocity"), "instrument": text("instrument", "instrument")}
    sonic = (text("sonic", "qualities") or "").split(",")
    return {"notes": notes | {"sonic": [name.strip() for name in sonic if name.strip()]}}


def instrument(answer: str) -> str:
    return parse_notes(answer)["notes"]["instrument"] or ""


# --- labels that cannot be written --------------------------------------------------------------------------------
# Each check yields what is wrong. Only the first is asked for: what stands behind a `yield` takes it for settled.

_RESERVED = {
    "<": "`<`, which opens a control token",
    ";": "`;`, which divides an answer",
    ":": "`:`, which ends a name",
    ",": "`,`, which divides a list",
    "\n": "line ends, which divide an answer",
}


def _check_intent(labels: Labels) -> Iterator[str]:
    yield from _check_piece("label `intent`", labels["intent"], without=";")


def _check_slots(labels: Labels) -> Iterator[str]:
    slots = labels["slots"]
    if not isinstance(slots, Mapping):
        yield f"label `slots` is {type(slots).__name__}, expected an object {{name: value}}"
    for name, value in slots.items():
        yield from _check_piece("a name of label `slots`", name, without=":;")
        if name != name.strip():
            yield f"a name of label `slots` is {name!r:.40}, expected no spaces around it"
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            yield f"`slots.{name}` is {value!r:.40}, expected a string"
        if ";" in str(value):
            yield f"`slots.{name}` is {value!r:.40}, expected text without {_RESERVED[';']}"


def _check_entities(labels: Labels) -> Iterator[str]:
    expected = "expected a list of {type, value}"
    if not isinstance(labels["entities"], list):
        yield f"label `entities` is {labels['entities']!r:.40}, {expected}"
    for number, entity in enumerate(labels["entities"]):
        where = f"`entities[{number}]`"
        if not isinstance(entity, Mapping):
            yield f"{where} is {entity!r:.80}, {expected}"
        yield from _check_piece(f"`type` of {where}", entity.get("type"), without="<;:")
        yield from _check_piece(f"`value` of {where}", entity.get("value"), without="<;")


def _check_references(labels: Labels) -> Iterator[str]:
    references = labels["references"]
    if not isinstance(references, list) or not references:
        yield f"label `references` is {references!r:.40}, expected a list of all the right answers"
    for number, text in enumerate(references):
        yield from _check_piece(f"`references[{number}]`", text, without="")


def _check_texts(labels: Labels) -> Iterator[str]:
    texts = labels["texts"]
    if not isinstance(texts, list) or len(texts) < 2:
        yield f"label `texts` is {texts!r:.40}, expected a list of transcripts, of two speakers or more"
    for number, text in enumerate(texts):
        yield from _check_piece(f"`texts[{number}]`", text, without="<\n")


def _check_words(labels: Labels) -> Iterator[str]:
    yield from _check_spans(labels, "words", "word")
    now = 0
    for number, (word, start, end) in enumerate(_spans(labels, "words", "word")):
        where = f"`words[{number}]` is {labels['words'][number]!r:.80}"
        if start < now:
            yield f"{where}: expected words one after the other"
        if labels.get("language") in ("zh", "yue") and len(_HAN.findall(word)) > 1:
            yield f"{where}: expected one character, Chinese is timed by character"
        now = end


def _check_events(labels: Labels) -> Iterator[str]:
    yield from _check_spans(labels, "events", "label", may_be_empty=True)


def _check_turns(labels: Labels) -> Iterator[str]:
    yield from _check_spans(labels, "turns", "speaker")


def _check_spans(labels: Labels, field: str, what: str, *, may_be_empty: bool = False) -> Iterator[str]:
    listed, expected = labels[field], f"expected a list of {{{what}, start, end}} with times in seconds"
    if not isinstance(listed, list) or not (listed or may_be_empty):
        yield f"label `{field}` is {listed!r:.40}, {expected}"
    for number, entry in enumerate(listed):
        where = f"`{field}[{number}]` is {entry!r:.80}"
        if not isinstance(entry, Mapping) or not all(_is_number(entry.get(end), float) for end in ("start", "end")):
            yield f"{where}, {expected}"
        yield from _check_piece(f"`{what}` of `{field}[{number}]`", entry.get(what), without="<")
        if _SAID_SPAN.search(entry[what]):
            yield f"{where}: expected text without times in brackets, which stand behind it in an answer"
        if not 0 <= _hundredths(entry["start"]) <= _hundredths(entry["end"]) <= _LAST_HUNDREDTH:
            yield f"{where}: expected its end after its start, between 0 and {_LAST_HUNDREDTH // 100} s"


def _check_notes(labels: Labels) -> Iterator[str]:
    notes = labels["notes"]
    if not isinstance(notes, Mapping):
        yield f"label `notes` is {notes!r:.40}, expected an object {{pitch, velocity, instrument, sonic}}"
    for key in ("pitch", "velocity"):
        if not _is_number(notes.get(key), int) or not 0 <= notes[key] <= _LAST_MIDI:
            yield f"`notes.{key}` is {notes.get(key)!r}, expected a MIDI number from 0 to {_LAST_MIDI}"
    yield from _check_piece("`notes.instrument`", notes.get("instrument"), without="<;")
    sonic = notes.get("sonic", [])
    if not isinstance(sonic, list):
        yield f"`notes.sonic` is {sonic!r:.40}, expected a list of words"
    for name in sonic:
        yield from _check_piece("a word of `notes.sonic`", name, without="<;,")


def _check_piece(what: str, text: Any, *, without: str) -> Iterator[str]:
    """A piece of an answer is told from its neighbours by what divides them, so it cannot hold that itself."""
    if not isinstance(text, str):
        yield f"{what} is {text!r:.40}, expected a string"
    if not text.strip():
        yield f"{what} is {text!r:.40}, expected a string that is not empty"
    for sign in without:
        if sign in text:
            yield f"{what} is {text!r:.40}, expected text without {_RESERVED[sign]}"


def _is_number(value: Any, kind: type) -> bool:
    # JSON writes 2.0 as 2, Python takes True for 1, and what is no time at all must not overflow.
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and abs(value) < 1e6  # so no NaN either


# By label, those that are more than a string.
CHECKS: dict[str, Callable[[Labels], Iterator[str]]] = {
    "intent": _check_intent,
    "slots": _check_slots,
    "entities": _check_entities,
    "references": _check_references,
    "texts": _check_texts,
    "words": _check_words,
    "events": _check_events,
    "turns": _check_turns,
    "notes": _check_notes,
}
