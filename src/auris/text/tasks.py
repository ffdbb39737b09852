"""The task table, `tasks.yaml` beside this file, and what rows have to do with it: their check, their line of results.

A mistake in the table is a `UserError` that names the task and the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from auris.errors import UserError
from auris.files import read_yaml
from auris.text.answer_formats import FORMATS, LANGUAGES, AnswerFormat, Labels, Text, label_problems

# The nearest tag for a language that has none of its own (Qwen-Audio tokenization_qwen.py).
_NEAREST_TAG = {"yue": "zh"}

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

# Tasks whose `text` is what is said, word for word, in the language of the speech.
TRANSCRIPTS = ("asr", "dialect_asr")

# What evaluation data for a task can be: see `Task.grade`.
GRADES = {
    "A": "real recordings",
    "B": "real recordings mixed by us, so that labels are exact",
    "C": "synthetic audio, labels correct by construction: tests the mechanism, says nothing about people",
    "D": "the label is only a generator's knob: a test of the format, never a score",
}
_SYNTHETIC = {"tts", "procedural", "templates"}  # kinds of `provenance` that are not recordings


@dataclass(frozen=True, kw_only=True)
class Task:
    """One entry of the task table; `tasks.yaml` describes the fields.

    Attributes:
        code: Name of the task in manifests.
        family: speech, sound or music; other for tasks that are not in Qwen-Audio's Table 1.
        hours: Hours by the names that Table 1 uses; empty for tasks of the family other.
        answer: How labels are written as an answer.
        metrics: Each metric with what it compares of an answer; see `AnswerFormat.compared`.
        grade: Of the best evaluation data that exists, a key of GRADES.
        embedded: Of the best data that the embedded corpus can generate.
    """

    code: str
    family: str
    name: str
    needs: tuple[str, ...]
    hours: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    clips: int = 1
    tags: str = ""
    tags_source: str = "ours"
    natural: str = ""
    natural_source: str = "ours"
    paraphrases: tuple[str, ...] = ()
    answer: AnswerFormat = FORMATS["text"]
    choices: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False
    group: str
    grade: str = ""
    embedded: str = ""

    @property
    def metric(self) -> str:
        """The metric of the task, its first one; empty for a task that is not scored."""
        return next(iter(self.metrics), "")

    @property
    def wordings(self) -> tuple[str, ...]:
        """All instructions in natural language, the canonical one first."""
        return (self.natural, *self.paraphrases)

    @property
    def is_text(self) -> bool:
        """Whether the answer is the row's `text` as it is, whatever that says."""
        return isinstance(self.answer, Text) and not self.choices and self.clips > 0

    def render(self, labels: Labels, *, tags: bool = True) -> str:
        """Return the answer to a row as one string, with its control tokens if `tags`."""
        return "".join(self.answer.render(labels, tags=tags))

    def compared(self, answer: str, metric: str | None = None) -> Any:
        """Return what a metric compares of an answer: of one that is not in `metrics`, the same as the task's own."""
        what = self.metrics.get(metric or self.metric) or self.metrics.get(self.metric, "answer")
        return self.answer.compared(answer, what)


_SOURCES = ("published", "published (as read by third parties)", "ours")


def _load(path: Path) -> dict[str, Task]:
    families = read_yaml(path)
    families.pop("definitions")
    return {code: _task(code, family, entry) for family, tasks in families.items() for code, entry in tasks.items()}


def _task(code: str, family: str, entry: Mapping[str, Any]) -> Task:
    """Make a task of its entry in the table. Raises UserError for an entry that is incomplete or contradicts itself."""

    def check(is_right: bool, problem: str) -> None:
        if not is_right:
            raise UserError(f"tasks.yaml, task {code}: {problem}")

    grades = entry.get("grade", "/").split("/")
    values = {"group": code, **entry, "code": code, "family": family, "grade": grades[0], "embedded": grades[-1]}
    known = [one.name for one in fields(Task)]
    required = [one.name for one in fields(Task) if one.default is one.default_factory is MISSING]
    for name in values.keys() - known:
        check(False, f"unknown field {name!r}; known fields: {', '.join(known)}")
    check(values.keys() >= set(required), f"expected the fields {', '.join(required)}")
    answer = values.get("answer", "text")
    check(answer in FORMATS, f"unknown answer format {answer!r}; known formats: {', '.join(FORMATS)}")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    task = Task(**{**values, **lists, "answer": FORMATS[answer]})
    for text in (*task.needs, *task.uses, *task.paraphrases, *task.choices):
        check(isinstance(text, str), f"{text!r} is no text: put it in quotes")
    for source in (task.tags_source, task.natural_source):
        check(source in _SOURCES, f"unknown source {source!r}; known sources: {', '.join(_SOURCES)}")
    for grade in (task.grade, task.embedded):
        check(grade in ("", *GRADES), f"unknown grade {grade!r}; known grades: {', '.join(GRADES)}")
    for metric, what in task.metrics.items():
        try:
            task.answer.compared("", what)
        except (KeyError, TypeError):
            check(False, f"{metric} compares {what!r}, which answers of the format {answer!r} do not have")
    return task


TASKS: dict[str, Task] = _load(Path(__file__).with_name("tasks.yaml"))


def find(code: str) -> Task:
    """Return the task with this code.

    Raises:
        UserError: There is none; the message lists the known codes.
    """
    if code not in TASKS:
        raise UserError(f"unknown task {code!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[code]


def published() -> Iterator[tuple[str, Task]]:
    """Yield the 31 rows of Qwen-Audio's Table 1: the name there, and the task. Two are `srwt`."""
    return ((name, task) for task in TASKS.values() for name in task.hours)


def is_synthetic(provenance: object) -> bool:
    """Return whether a `provenance`, kinds joined by `+`, names synthetic data alone."""
    return isinstance(provenance, str) and set(provenance.split("+")) <= _SYNTHETIC


def group(labels: Labels) -> str:
    """Return the line of a results table that a row belongs to, as `asr en` or `s2tt de-en`.

    Synthetic rows of a task for which synthetic data tests only the format are on a line of their own, `fmt_...`.
    """
    task = find(labels["task"])
    is_format = task.embedded == "D" and is_synthetic(labels.get("provenance"))
    return ("fmt_" if is_format else "") + task.group.format(**labels)


# Curves of the training loss in TensorBoard: one for each task, and for each mode of dialogues.
CURVES = tuple(
    name
    for code, task in TASKS.items()
    for name in ([f"{code} {mode}" for mode in MODES] if "mode" in task.needs else [code])
)


def curve(labels: Labels) -> str:
    """Return the one of `CURVES` that a row's loss counts for."""
    task = find(labels["task"])
    return f"{task.code} {labels['mode']}" if "mode" in task.needs else task.code


def closed(labels: Labels) -> dict[str, str]:
    """Return the template fields whose values are known words, which may thus be part of a control token."""
    optional = find(labels["task"]).optional
    known: dict[str, str] = {}
    for key, (_, values) in _CLOSED.items():
        given = labels.get(key)
        given = given if isinstance(given, str) else optional.get(key)
        if given in values:
            known[key] = given
    languages = {key: code for key, code in known.items() if key.endswith("language")}
    names = {f"{key}_name": LANGUAGES[code] for key, code in languages.items()}
    return known | names | {f"{key}_tag": _NEAREST_TAG.get(code, code) for key, code in languages.items()}


def own_labels(task: Task) -> list[str]:
    """Return all labels except `text` that matter for a row of this task: for its check, its prompts or its score."""
    return sorted({*task.needs, *task.optional, *task.uses, *_CLOSED} - {"text"})


def check(labels: Labels) -> str | None:
    """Return why a row cannot be used for its task, or None if it can."""
    if "task" not in labels:
        return "no `task` field"
    if not isinstance(labels["task"], str) or labels["task"] not in TASKS:
        return f"unknown task {labels['task']!r}; known tasks: {', '.join(TASKS)}"
    task = TASKS[labels["task"]]
    for name in task.needs:
        if labels.get(name) is None:
            return f"task {task.code!r} needs the label `{name}`"
    asked = (name for name in (*task.needs, *task.optional, *task.uses) if labels.get(name) is not None)
    return next((problem for name in asked for problem in _problems(task, name, labels)), None)


def _problems(task: Task, name: str, labels: Labels) -> Iterator[str]:
    """Yield what is wrong with a label, the first thing first."""
    yield from label_problems(name, labels)
    value = labels[name]
    what, known = _CLOSED.get(name, ("", ()))
    if what and value not in known:
        yield f"label `{name}` is {value!r}; known {what}: {', '.join(known)}"
    if name == "text" and task.choices and value not in task.choices:
        yield f"label `text` is {value!r:.40}; task {task.code!r} has the answers {', '.join(task.choices)}"
