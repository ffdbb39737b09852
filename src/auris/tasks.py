"""The task table: what each task needs from a row, how both prompting styles ask for it, and how its answer is scored.

Data, not code. The table has room for all 31 rows of Qwen-Audio Table 1; a new task is a new entry. Templates name row
fields in braces; `<|...|>` are single tokens of the vocabulary (`tokenizer.py`). Where no prompt was published, the
nearest published tokens are used and `tags_source` says "ours". Some answers hold control tokens themselves (times,
notes): they are written as pieces, so that a row's own text never becomes one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The languages of both systems that have a published tag (Qwen-Audio tokenization_qwen.py), as their prompts name them.
LANGUAGES = {
    "en": "English",
    "zh": "Mandarin",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
}

CAPTION_STYLES = ("clotho", "audiocaps", "plain")  # Qwen-Audio evaluate_caption.py; plain is nobody's house style

# How a dialogue is spoken to (Qwen2-Audio section 2): told from its messages, never from a switch in the prompt.
MODES = ("audio_analysis", "voice_chat", "text")

# Labels whose value becomes part of a control token: (what they are, the values that there are).
_CLOSED: dict[str, tuple[str, Collection[str]]] = {
    "language": ("languages", LANGUAGES),
    "target_language": ("languages", LANGUAGES),
    "caption_style": ("caption styles", CAPTION_STYLES),
    "mode": ("modes", MODES),
}

_LAST_HUNDREDTH = 3000  # <|30.00|> is the last timestamp of both vocabularies
_LAST_MIDI = 127
_SILENCE = "<|sil|>"
_TIME = re.compile(r"<\|(\d{1,2}\.\d{2})\|>")


class Tag(str):
    """Control tokens within an answer; the plain strings beside it are text."""


def write_text(labels: Mapping[str, Any]) -> list[str]:
    return [labels["text"]]


def parse_text(answer: str) -> dict[str, Any]:
    return {"text": answer.strip()}


def write_language(labels: Mapping[str, Any]) -> list[str]:
    return [LANGUAGES[labels["language"]]]


def parse_language(answer: str) -> dict[str, Any]:
    codes = {name.lower(): code for code, name in LANGUAGES.items()}
    return {"language": codes.get(answer.strip().lower())}


def write_slots(labels: Mapping[str, Any]) -> list[str]:
    """`intent; name: value; name: value` with the slots in alphabetical order."""
    slots = sorted((name, str(value).strip()) for name, value in labels["slots"].items())
    return ["; ".join([labels["intent"], *(f"{name}: {value}" for name, value in slots)])]


def parse_slots(answer: str) -> dict[str, Any]:
    intent, *pairs = (piece.strip() for piece in answer.split(";"))
    named = (pair.partition(":") for pair in pairs)
    return {"intent": intent, "slots": {name.strip(): value.strip() for name, _, value in named if name.strip()}}


def write_words(labels: Mapping[str, Any]) -> list[str]:
    """Time, word, time, word, ..., time: neighbours share one time, a pause is the word `<|sil|>` (Qwen-Audio
    EVALUATION.md). The `<|0.00|>` that opens it is the end of the prompt."""
    pieces: list[str] = []
    now = 0
    for entry in labels["words"]:
        start, end = _hundredths(entry["start"]), _hundredths(entry["end"])
        if start > now:
            pieces += [Tag(_SILENCE), _time(start)]
        pieces += [entry["word"], _time(end)]
        now = end
    return pieces


def parse_words(answer: str) -> dict[str, Any]:
    """Words with their times in seconds; `end` is None for a last word whose time is missing."""
    first, *rest = _TIME.split(answer)
    spoken, times = [first, *rest[1::2]], [0.0, *map(float, rest[0::2])]
    ends = [*times[1:], None]
    heard = zip((word.strip() for word in spoken), times, ends, strict=True)
    return {"words": [{"word": w, "start": s, "end": e} for w, s, e in heard if w and w != _SILENCE]}


def spoken_words(answer: str) -> str:
    return " ".join(entry["word"] for entry in parse_words(answer)["words"])


def write_notes(labels: Mapping[str, Any]) -> list[str]:
    """The four fields that evaluate_note_analysis.py of Qwen-Audio reads, in its order."""
    notes = labels["notes"]
    pieces = [
        Tag(f"<|pitch|><|midi_pitch_{notes['pitch']}|>"),
        Tag(f"<|velocity|><|midi_velocity_{notes['velocity']}|>"),
        Tag("<|instrument|>"),
        notes["instrument"],
    ]
    return pieces + ([Tag("<|sonic|>"), ", ".join(notes["sonic"])] if notes.get("sonic") else [])


def parse_notes(answer: str) -> dict[str, Any]:
    """Pitch and velocity as MIDI numbers, the instrument, the sonic qualities; None for what is missing."""

    def number(name: str) -> int | None:
        found = re.search(rf"<\|midi_{name}_(\d+)\|>", answer)
        return int(found[1]) if found else None

    def text(name: str) -> str | None:
        found = re.search(rf"<\|{name}\|>([^<]+)", answer)
        return found[1].strip() if found else None

    notes = {"pitch": number("pitch"), "velocity": number("velocity"), "instrument": text("instrument")}
    return {"notes": notes | {"sonic": [name.strip() for name in (text("sonic") or "").split(",") if name.strip()]}}


def instrument(answer: str) -> str:
    return parse_notes(answer)["notes"]["instrument"] or ""


def _hundredths(seconds: float) -> int:
    return round(100 * seconds)


def _time(hundredths: int) -> Tag:
    return Tag(f"<|{hundredths / 100:.2f}|>")


@dataclass(frozen=True)
class Task:
    """One row of the table.

    `tags` is the hierarchical-tag prompt that follows the audio (Qwen-Audio section 3.2 and its evaluation scripts),
    `natural` the canonical instruction (Qwen2-Audio) and `paraphrases` the other wordings it is trained with.
    `optional` labels have the value given here where a row is silent. `write` turns a row's labels into the pieces of
    its answer, `parse` turns an answer back, and `compared` takes from an answer what the metric compares. `tagged`
    says that the answer holds control tokens, to be kept when it is decoded. `group` names the line of a results table.
    `closed` says that what is compared is one of a closed set, so that an answer outside it counts as unparsed.
    """

    code: str
    name: str
    needs: tuple[str, ...]
    tags: str
    natural: str
    metric: str
    tags_source: str = "published"
    natural_source: str = "ours"
    paraphrases: tuple[str, ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    closed: bool = False
    tagged: bool = False
    write: Callable[[Mapping[str, Any]], Sequence[str]] = write_text
    parse: Callable[[str], dict[str, Any]] = parse_text
    compared: Callable[[str], Any] = str

    def render(self, labels: Mapping[str, Any]) -> str:
        """The answer that a row's labels ask for, control tokens written out."""
        return "".join(self.write(labels))


_ROWS = (
    Task(
        code="asr",
        name="automatic speech recognition",
        needs=("text", "language"),
        tags="<|startoftranscript|><|{language}|><|transcribe|><|{language}|><|notimestamps|><|wo_itn|>",
        natural="Detect the language and recognize the speech: <|{language}|>",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Recognize the speech and write it down: <|{language}|>",
            "Transcribe the audio into text: <|{language}|>",
            "What is said in this recording? <|{language}|>",
        ),
        metric="wer",
        group="asr {language}",
    ),
    Task(
        code="s2tt",
        name="speech-to-text translation",
        needs=("text", "language", "target_language"),
        tags="<|startoftranscript|><|{language}|><|translate|><|{target_language}|><|notimestamps|><|itn|>",
        natural="Detect the language and translate the speech into {target_language_name}: <|{language}|>",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Translate what is said into {target_language_name}: <|{language}|>",
            "Write the speech in {target_language_name}: <|{language}|>",
            "What does the speaker say, in {target_language_name}? <|{language}|>",
        ),
        metric="bleu",
        group="s2tt {language}-{target_language}",
    ),
    Task(
        code="srwt",
        name="speech recognition with word-level timestamps",
        needs=("words", "language"),
        tags="<|startoftranscript|><|{language}|><|transcribe|><|{language}|><|timestamps|><|0.00|>",
        natural="Recognize the speech and the time of each word: <|{language}|><|0.00|>",
        paraphrases=(
            "Write down the speech with the times of its words: <|{language}|><|0.00|>",
            "Transcribe the audio with word timestamps: <|{language}|><|0.00|>",
            "What is said in this recording, and when? <|{language}|><|0.00|>",
        ),
        metric="wer",
        group="srwt {language}",
        tagged=True,
        write=write_words,
        parse=parse_words,
        compared=spoken_words,
    ),
    Task(
        code="lid",
        name="language identification",
        needs=("language",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|speech_understanding|>",
        tags_source="ours",
        natural="Identify the language of the speech in English:",
        paraphrases=(
            "Which language is spoken?",
            "Name the language of this recording:",
            "What language does the speaker use?",
        ),
        metric="accuracy",
        group="lid",
        closed=True,
        write=write_language,
        parse=parse_language,
    ),
    Task(
        code="sgc",
        name="speaker gender classification",
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|speaker_meta|>",
        tags_source="ours",
        natural="Recognize the gender of the speaker with keywords in English:",
        paraphrases=(
            "Is the speaker male or female?",
            "What is the gender of the speaker?",
            "Classify the voice as male or female:",
        ),
        metric="accuracy",
        group="sgc",
        closed=True,
    ),
    Task(
        code="er",
        name="speech emotion recognition",
        needs=("text",),
        tags="<|startofanalysis|><|en|><|keyword|><|en|><|notimestamps|><|emotion_recognition|>",
        natural="Recognize the emotion with keywords in English:",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Which emotion does the speaker show?",
            "What is the mood of the speaker?",
            "Name the emotion in the voice:",
        ),
        metric="accuracy",
        group="er",
        closed=True,
    ),
    Task(
        code="vsc",
        name="vocal sound classification",
        needs=("text",),
        tags="<|startofanalysis|><|en|><|keyword|><|en|><|notimestamps|><|vocal_classification|>",
        natural="Classify the human vocal sound to VocalSound in English:",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Which vocal sound does the person make?",
            "Name the sound that this person makes:",
            "What human sound can be heard?",
        ),
        metric="accuracy",
        group="vsc",
        closed=True,
    ),
    Task(
        code="ks",
        name="keyword spotting",
        needs=("text",),
        tags="<|startoftranscript|><|en|><|keyword|><|en|><|notimestamps|><|wo_itn|>",
        tags_source="ours",
        natural="Spot the keyword in the speech:",
        paraphrases=(
            "Which command word is spoken?",
            "Find the keyword in this recording:",
            "What is the keyword?",
        ),
        metric="accuracy",
        group="ks",
        closed=True,
    ),
    Task(
        code="sf",
        name="spoken-language understanding: intent and slots",
        needs=("intent", "slots"),
        tags="<|startofanalysis|><|en|><|speech_understanding|><|en|><|notimestamps|><|entities|>",
        tags_source="ours",
        natural="Recognize the intent and the slots of the speech in English:",
        paraphrases=(
            "What does the speaker want? Give the intent and its slots:",
            "Fill the slots of the command:",
            "List the intent and the slot values of this request:",
        ),
        metric="slot_f1",
        group="sf",
        write=write_slots,
        parse=parse_slots,
        compared=parse_slots,
    ),
    Task(
        code="aac",
        name="automated audio captioning",
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|caption|><|en|><|notimestamps|><|caption_{caption_style}|>",
        natural="Generate the caption in English:",
        natural_source="published",
        paraphrases=(
            "Describe the audio in one sentence:",
            "What can be heard in this recording?",
            "Write a caption for the audio:",
        ),
        optional={"caption_style": "plain"},
        metric="bleu",
        group="aac",
    ),
    Task(
        code="asc",
        name="acoustic scene classification",
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|scene|>",
        natural="Classify the acoustic scene with keywords in English:",
        paraphrases=(
            "Where was this recorded?",
            "Name the acoustic scene:",
            "What place does this recording come from?",
        ),
        metric="accuracy",
        group="asc",
        closed=True,
    ),
    Task(
        code="sec",
        name="sound event classification",
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|event|>",
        tags_source="ours",
        natural="Classify the sound with keywords in English:",
        paraphrases=(
            "What is the sound in this recording?",
            "Name the sound event:",
            "Which sound can be heard?",
        ),
        metric="accuracy",
        group="sec",
        closed=True,
    ),
    Task(
        code="mic",
        name="music instrument classification",
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|instrument|>",
        tags_source="ours",
        natural="Recognize the musical instrument with keywords in English:",
        paraphrases=(
            "Which instrument is playing?",
            "Name the instrument in the music:",
            "What instrument can be heard?",
        ),
        metric="accuracy",
        group="mic",
        closed=True,
    ),
    Task(
        code="mna",
        name="music note analysis",
        needs=("notes",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|note_analysis|>",
        natural="Analyze the pitch, velocity, instrument and qualities of the note:",
        paraphrases=(
            "Which note is played, how loud, and on what instrument?",
            "Describe the musical note:",
            "Name the pitch, the velocity, the instrument and the sound of this note:",
        ),
        metric="accuracy",
        group="mna",
        closed=True,
        tagged=True,
        write=write_notes,
        parse=parse_notes,
        compared=instrument,
    ),
    Task(
        code="aqa",
        name="audio question answering",
        needs=("text", "question"),
        tags="<|startofanalysis|><|en|><|question|>{question}<|answer|>",
        natural="{question}",
        metric="accuracy",
        group="aqa",
        closed=True,
    ),
    Task(
        code="text",
        name="plain text (no audio): next-token training of the language model alone",
        needs=("text",),
        tags="",
        natural="",
        tags_source="none",
        natural_source="none",
        metric="",
        group="text",
    ),
    Task(
        code="chat",
        name="dialogue (a row with `messages`): the assistant's messages are the answers",
        needs=("text", "mode"),  # both are read from the messages
        tags="",
        natural="",
        tags_source="none",
        natural_source="none",
        metric="contains",
        group="chat {mode}",
    ),
    Task(
        code="preference",
        name="dialogue with a better and a worse answer (`chosen` and `rejected`)",
        needs=("text", "mode", "chosen", "rejected"),
        tags="",
        natural="",
        tags_source="none",
        natural_source="none",
        metric="",
        group="preference {mode}",
    ),
)

TASKS: dict[str, Task] = {task.code: task for task in _ROWS}


def find(code: str) -> Task:
    """The task with this code. Raises ValueError that lists the known codes."""
    if code not in TASKS:
        raise ValueError(f"unknown task {code!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[code]


def closed(labels: Mapping[str, Any]) -> dict[str, str]:
    """Template fields whose values are our own, and so may stand within a control token."""
    optional = find(labels["task"]).optional
    known: dict[str, str] = {}
    for key, (_, values) in _CLOSED.items():
        given = labels.get(key)
        given = given if isinstance(given, str) else optional.get(key)
        if given in values:
            known[key] = given
    return known | {f"{key}_name": LANGUAGES[known[key]] for key in known if key.endswith("language")}


def check(labels: Mapping[str, Any]) -> str | None:
    """Why a row cannot be used for its task, or None if it can."""
    if "task" not in labels:
        return "no `task` field"
    if not isinstance(labels["task"], str) or labels["task"] not in TASKS:
        return f"unknown task {labels['task']!r}; known tasks: {', '.join(TASKS)}"
    task = TASKS[labels["task"]]
    for name in task.needs:
        if labels.get(name) is None:
            return f"task {task.code!r} needs the label `{name}`"
    for name in (*task.needs, *task.optional):
        if labels.get(name) is not None and (problem := _STRUCTURES.get(name, _check_string)(name, labels[name])):
            return problem
    return None


def _check_string(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"label `{name}` is {type(value).__name__}, expected a string"
    if not value.strip():
        return f"label `{name}` is empty"
    what, known = _CLOSED.get(name, ("", (value,)))
    return None if value in known else f"label `{name}` is {value!r}; known {what}: {', '.join(known)}"


def _check_slots(name: str, value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f"label `{name}` is {type(value).__name__}, expected an object {{name: value}}"
    return None


def _check_words(name: str, value: Any) -> str | None:
    expected = "expected a list of {word, start, end} with times in seconds"
    if not isinstance(value, list) or not value:
        return f"label `{name}` is {value!r:.40}, {expected}"
    now = 0
    for number, entry in enumerate(value):
        where = f"`{name}[{number}]` is {entry!r:.80}"
        if not isinstance(entry, Mapping) or not all(_is_number(entry.get(end), float) for end in ("start", "end")):
            return f"{where}, {expected}"
        if problem := _check_piece(entry.get("word")):
            return f"{where}: {problem}"
        start, end = _hundredths(entry["start"]), _hundredths(entry["end"])
        if not now <= start <= end <= _LAST_HUNDREDTH:
            return f"{where}: expected words one after the other, between 0 and {_LAST_HUNDREDTH / 100:.0f} s"
        now = end
    return None


def _check_notes(name: str, value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f"label `{name}` is {value!r:.40}, expected an object {{pitch, velocity, instrument, sonic}}"
    for key in ("pitch", "velocity"):
        if not _is_number(value.get(key), int) or not 0 <= value[key] <= _LAST_MIDI:
            return f"`{name}.{key}` is {value.get(key)!r}, expected a MIDI number from 0 to {_LAST_MIDI}"
    qualities = value.get("sonic", [])
    if not isinstance(qualities, list):
        return f"`{name}.sonic` is {qualities!r:.40}, expected a list of words"
    for piece in (value.get("instrument"), *qualities):
        if problem := _check_piece(piece):
            return f"`{name}` has {piece!r:.40}: {problem}"
    return None


def _check_piece(text: Any) -> str | None:
    """Text beside control tokens is told from them by their brackets."""
    if not isinstance(text, str) or not text.strip():
        return "expected a string that is not empty"
    return "expected text without `<`, which opens a control token" if "<" in text else None


def _is_number(value: Any, kind: type) -> bool:
    # JSON writes 2.0 as 2, and Python takes True for 1.
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and math.isfinite(value)


_STRUCTURES: dict[str, Callable[[str, Any], str | None]] = {
    "slots": _check_slots,
    "words": _check_words,
    "notes": _check_notes,
}
