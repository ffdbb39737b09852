"""The task table, read from `tasks.yaml`, and functions that relate rows to it: checks, groups, curves.

A mistake in the table is a `UserError` that names the task and the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from auris.errors import UserError
from auris.files import read_yaml
from auris.text.answer_formats import FORMATS, LANGUAGES, AnswerFormat, Labels, Text, label_problems

# Replacements for languages without a tag of their own (Qwen-Audio tokenization_qwen.py).
_NEAREST_TAG = {"yue": "zh"}

CAPTION_STYLES = ("clotho", "audiocaps", "plain")  # Qwen-Audio evaluate_caption.py; plain is the style of no data set

# Modes of a dialogue (Qwen2-Audio section 2). They follow from the messages; the prompt has no switch for them.
MODES = ("audio_analysis", "voice_chat", "text")

# Labels whose value becomes part of a control token, with a noun for messages and the valid values.
_CLOSED: dict[str, tuple[str, Collection[str]]] = {
    "language": ("languages", LANGUAGES),
    "target_language": ("languages", LANGUAGES),
    "caption_style": ("caption styles", CAPTION_STYLES),
    "mode": ("modes", MODES),
}

# Tasks whose `text` is a verbatim transcript in the language of the speech.
TRANSCRIPTS = ("asr", "dialect_asr")

# Grades of evaluation data: see `Task.grade`.
GRADES = {
    "A": "real recordings",
    "B": "real recordings mixed by auris, so that labels are exact",
    "C": "synthetic audio with labels that are correct by construction: tests the mechanism, not real speech",
    "D": "the label is only a setting of the generator: tests the format, and is never a score",
}
_SYNTHETIC = {"tts", "procedural", "templates"}  # values of `provenance` that are not recordings


@dataclass(frozen=True, kw_only=True)
class Task:
    """One entry of the task table; `tasks.yaml` describes the fields.

    Attributes:
        code: Name of the task in manifests.
        family: speech, sound or music; other for tasks that are not in Qwen-Audio's Table 1.
        hours: Hours by their names in Table 1; empty for tasks of the family other.
        answer: Format of the answer.
        metrics: The part of an answer that each metric compares; see `AnswerFormat.extract`.
        grade: Grade of the best existing evaluation data, a key of GRADES.
        embedded: Grade of the data that the embedded corpus can generate.
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
        """The main metric of the task, which is its first one; empty for a task without scores."""
        return next(iter(self.metrics), "")

    @property
    def wordings(self) -> tuple[str, ...]:
        """All instructions in natural language; the first is the canonical one."""
        return (self.natural, *self.paraphrases)

    @property
    def is_text(self) -> bool:
        """Whether the answer is the row's `text`, unchanged and not limited to certain choices."""
        return isinstance(self.answer, Text) and not self.choices and self.clips > 0

    def render(self, labels: Labels, *, tags: bool = True) -> str:
        """Return the answer to a row as one string, with control tokens if `tags`."""
        return "".join(self.answer.render(labels, tags=tags))

    def extract(self, answer: str, metric: str | None = None) -> Any:
        """Return the part of an answer that a metric compares: for one not in `metrics`, that of the main metric."""
        part = self.metrics.get(metric or self.metric) or self.metrics.get(self.metric, "answer")
        return self.answer.extract(answer, part)


_SOURCES = ("published", "published (as read by third parties)", "ours")


def _load(path: Path) -> dict[str, Task]:
    families = read_yaml(path)
    families.pop("definitions")
    return {
        code: _parse_task(code, family, entry) for family, tasks in families.items() for code, entry in tasks.items()
    }


def _parse_task(code: str, family: str, entry: Mapping[str, Any]) -> Task:
    """Return the task of an entry in the table.

    Raises:
        UserError: The entry is incomplete or contradicts itself.
    """

    def fail(problem: str) -> NoReturn:
        raise UserError(f"tasks.yaml, task {code}: {problem}")

    grades = entry.get("grade", "/").split("/")
    values = {"group": code, **entry, "code": code, "family": family, "grade": grades[0], "embedded": grades[-1]}
    valid = [attribute.name for attribute in fields(Task)]
    required = [a.name for a in fields(Task) if a.default is a.default_factory is MISSING]
    for name in values.keys() - valid:
        fail(f"unknown field {name!r}; valid fields: {', '.join(valid)}")
    if missing := [name for name in required if name not in values]:
        fail(f"expected the field {', '.join(missing)}")
    answer = values.get("answer", "text")
    if answer not in FORMATS:
        fail(f"unknown answer format {answer!r}; valid formats: {', '.join(FORMATS)}")
    arguments: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
    task = Task(**arguments | {"answer": FORMATS[answer]})
    for text in (*task.needs, *task.uses, *task.paraphrases, *task.choices):
        if not isinstance(text, str):
            fail(f"{text!r} is not a string: put it in quotes")
    for source in (task.tags_source, task.natural_source):
        if source not in _SOURCES:
            fail(f"unknown source {source!r}; valid sources: {', '.join(_SOURCES)}")
    for grade in (task.grade, task.embedded):
        if grade not in ("", *GRADES):
            fail(f"unknown grade {grade!r}; valid grades: {', '.join(GRADES)}")
    for metric, part in task.metrics.items():
        try:
            task.answer.extract("", part)
        except (KeyError, TypeError):
            fail(f"{metric} compares {part!r}, which answers of the format {answer!r} do not have")
    return task


TASKS: dict[str, Task] = _load(Path(__file__).with_name("tasks.yaml"))


def find(code: str) -> Task:
    """Return the task with this code.

    Raises:
        UserError: There is none; the message lists the valid codes.
    """
    if code not in TASKS:
        raise UserError(f"unknown task {code!r}; valid tasks: {', '.join(TASKS)}")
    return TASKS[code]


def published() -> Iterator[tuple[str, Task]]:
    """Yield the 31 rows of Qwen-Audio's Table 1 as name and task; two of them are `srwt`."""
    return ((name, task) for task in TASKS.values() for name in task.hours)


def is_synthetic(provenance: object) -> bool:
    """Return whether a `provenance`, kinds joined by `+`, names only synthetic data."""
    return isinstance(provenance, str) and set(provenance.split("+")) <= _SYNTHETIC


def group(labels: Labels) -> str:
    """Return the line of a results table to which a row belongs, as `asr en` or `s2tt de-en`.

    If synthetic data tests only the format of a task, its synthetic rows have a line of their own, `fmt_...`.
    """
    task = find(labels["task"])
    is_format = task.embedded == "D" and is_synthetic(labels.get("provenance"))
    return ("fmt_" if is_format else "") + task.group.format(**labels)


# Curves of the training loss in TensorBoard: one for each task, and one for each mode of dialogues.
CURVES = tuple(
    name
    for code, task in TASKS.items()
    for name in ([f"{code} {mode}" for mode in MODES] if "mode" in task.needs else [code])
)


def curve(labels: Labels) -> str:
    """Return the entry of `CURVES` to which the loss of a row belongs."""
    task = find(labels["task"])
    return f"{task.code} {labels['mode']}" if "mode" in task.needs else task.code


def closed_fields(labels: Labels) -> dict[str, str]:
    """Return the template fields whose values come from a fixed set, so that they may be part of a control token."""
    optional = find(labels["task"]).optional
    closed: dict[str, str] = {}
    for key, (_, values) in _CLOSED.items():
        label = labels.get(key)
        value = label if isinstance(label, str) else optional.get(key)
        if value is not None and value in values:
            closed[key] = value
    languages = {key: code for key, code in closed.items() if key.endswith("language")}
    names = {f"{key}_name": LANGUAGES[code] for key, code in languages.items()}
    return closed | names | {f"{key}_tag": _NEAREST_TAG.get(code, code) for key, code in languages.items()}


def own_labels(task: Task) -> list[str]:
    """Return all labels except `text` that affect a row of this task: its check, its prompts or its score."""
    return sorted({*task.needs, *task.optional, *task.uses, *_CLOSED} - {"text"})


def check(labels: Labels) -> str | None:
    """Return the reason why a row cannot be used for its task, or None if it can."""
    if "task" not in labels:
        return "no `task` field"
    if not isinstance(labels["task"], str) or labels["task"] not in TASKS:
        return f"unknown task {labels['task']!r}; valid tasks: {', '.join(TASKS)}"
    task = TASKS[labels["task"]]
    for name in task.needs:
        if labels.get(name) is None:
            return f"task {task.code!r} needs the label `{name}`"
    names = (name for name in (*task.needs, *task.optional, *task.uses) if labels.get(name) is not None)
    return next((problem for name in names for problem in _problems(task, name, labels)), None)


def _problems(task: Task, name: str, labels: Labels) -> Iterator[str]:
    """Yield the reasons why a label cannot be used. Later checks rely on earlier ones."""
    yield from label_problems(name, labels)
    value = labels[name]
    noun, valid = _CLOSED.get(name, ("", ()))
    if noun and value not in valid:
        yield f"label `{name}` is {value!r}; valid {noun}: {', '.join(valid)}"
    if name == "text" and task.choices and value not in task.choices:
        yield f"label `text` is {value!r:.40}; valid answers of task {task.code!r}: {', '.join(task.choices)}"
