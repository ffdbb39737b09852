"""The task table: what each task needs from a row, how both prompting styles ask for it, and how its answer is scored.

Data, not code. The table has room for all 31 rows of Qwen-Audio Table 1; a new task is a new entry. Templates name row
fields in braces; `<|...|>` are single tokens of the vocabulary (`tokenizer.py`). Where no prompt was published, the
nearest published tokens are used and `tags_source` says "ours".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


def render_text(labels: Mapping[str, Any]) -> str:
    return labels["text"]


def parse_text(answer: str) -> dict[str, Any]:
    return {"text": answer.strip()}


def render_language(labels: Mapping[str, Any]) -> str:
    return LANGUAGES[labels["language"]]


def parse_language(answer: str) -> dict[str, Any]:
    codes = {name.lower(): code for code, name in LANGUAGES.items()}
    return {"language": codes.get(answer.strip().lower())}


def render_slots(labels: Mapping[str, Any]) -> str:
    """`intent; name: value; name: value` with the slots in alphabetical order."""
    slots = sorted((name, str(value).strip()) for name, value in labels["slots"].items())
    return "; ".join([labels["intent"], *(f"{name}: {value}" for name, value in slots)])


def parse_slots(answer: str) -> dict[str, Any]:
    intent, *pairs = (piece.strip() for piece in answer.split(";"))
    named = (pair.partition(":") for pair in pairs)
    return {"intent": intent, "slots": {name.strip(): value.strip() for name, _, value in named if name.strip()}}


@dataclass(frozen=True)
class Task:
    """One row of the table.

    `tags` is the hierarchical-tag prompt that follows the audio (Qwen-Audio section 3.2 and its evaluation scripts),
    `natural` the canonical instruction (Qwen2-Audio) and `paraphrases` the other wordings it is trained with.
    `render` turns a row's labels into the answer, `parse` turns an answer back. `group` names the line of a results
    table. `closed` says that the answer is one of a closed set, so that an answer outside it counts as unparsed.
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
    group: str = ""
    closed: bool = False
    render: Callable[[Mapping[str, Any]], str] = render_text
    parse: Callable[[str], dict[str, Any]] = parse_text


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
        render=render_language,
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
        render=render_slots,
        parse=parse_slots,
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
)

TASKS: dict[str, Task] = {task.code: task for task in _ROWS}


def find(code: str) -> Task:
    """The task with this code. Raises ValueError that lists the known codes."""
    if code not in TASKS:
        raise ValueError(f"unknown task {code!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[code]


def fields(labels: Mapping[str, Any]) -> dict[str, str]:
    """A row's labels as template fields, languages also under the names that prompts use."""
    texts = {key: value for key, value in labels.items() if isinstance(value, str)}
    languages = {key: texts[key] for key in ("language", "target_language") if texts.get(key) in LANGUAGES}
    return {**texts, **{f"{key}_name": LANGUAGES[code] for key, code in languages.items()}}


def check(labels: Mapping[str, Any]) -> str | None:
    """Why a row cannot be used for its task, or None if it can."""
    if "task" not in labels:
        return "no `task` field"
    if not isinstance(labels["task"], str) or labels["task"] not in TASKS:
        return f"unknown task {labels['task']!r}; known tasks: {', '.join(TASKS)}"
    task = TASKS[labels["task"]]
    for field in task.needs:
        value = labels.get(field)
        if value is None:
            return f"task {task.code!r} needs the label `{field}`"
        if field == "slots":
            if not isinstance(value, Mapping):
                return f"label `slots` is {type(value).__name__}, expected an object {{name: value}}"
        elif not isinstance(value, str):
            return f"label `{field}` is {type(value).__name__}, expected a string"
        elif not value.strip():
            return f"label `{field}` is empty"
        elif field.endswith("language") and value not in LANGUAGES:
            return f"label `{field}` is {value!r}; known languages: {', '.join(LANGUAGES)}"
    return None
