"""The task table, read from `tasks.yaml`, and functions that look up a row's task in it.

These functions check the labels of a row, and name the line of the results table and the loss curve to which the row
belongs. A mistake in the table is a `UserError` that names the task and the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from auris.errors import UserError, shorten
from auris.files import read_yaml
from auris.text.answer_formats import FORMATS, LANGUAGES, AnswerFormat, Labels, Text, label_problems

# The nearest tag for languages that have no tag (Qwen-Audio tokenization_qwen.py).
_NEAREST_TAG = {"yue": "zh"}

CAPTION_STYLES = ("clotho", "audiocaps", "plain")  # Qwen-Audio evaluate_caption.py; plain is for other data sets

# Modes of a dialogue (Qwen2-Audio section 2). They follow from the messages; the prompt has no switch for them.
MODES = ("audio_analysis", "voice_chat", "text")

# Closed labels: their values come from a finite set, so they may become part of a control token. Each has a noun for
# messages and a collection of valid values.
_CLOSED_LABELS: dict[str, tuple[str, Collection[str]]] = {
    "language": ("languages", LANGUAGES),
    "target_language": ("languages", LANGUAGES),
    "caption_style": ("caption styles", CAPTION_STYLES),
    "mode": ("modes", MODES),
}

# Tasks whose `text` is a verbatim transcript in the language of the speech.
TRANSCRIPT_TASKS = ("asr", "dialect_asr")

# Grades of evaluation data: see `Task.grade`.
GRADES = {
    "A": "real recordings",
    "B": "real recordings mixed by auris, so that labels are exact",
    "C": "synthetic audio with labels that are correct by construction: tests the mechanism, not real speech",
    "D": "the label is only a setting of the generator: tests the format, and is never a score",
}
# Values of `provenance`, the origin of a row's audio or text, for data without real recordings.
_SYNTHETIC_PROVENANCES = {"tts", "procedural", "templates"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One entry of the task table; `tasks.yaml` describes the fields.

    Attributes:
        code: Name of the task in manifests.
        family: speech, sound or music; other for tasks that are not in Qwen-Audio's Table 1.
        hours: Hours of training audio by the names of the task in Table 1; empty for tasks that are not in Table 1.
        needs: Labels that a row must have.
        optional: Labels that the prompt contains, with values for rows that lack them.
        uses: Further labels, which the metrics use if a row has them.
        answer: Format of the answer.
        metrics: The part of an answer that each metric compares; see `AnswerFormat.extract`.
        closed: Whether the answer is one of a known set of answers.
        grade: Grade of the best existing evaluation data, a key of GRADES.
        synthetic_grade: Grade of the data of the synthetic corpus (`auris corpus`), a key of GRADES.
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
    synthetic_grade: str = ""

    @property
    def metric(self) -> str:
        """The main metric of the task, which is the first one in `metrics`; empty for a task without scores."""
        return next(iter(self.metrics), "")

    @property
    def wordings(self) -> tuple[str, ...]:
        """All instructions in natural language. The first instruction is the canonical one."""
        return (self.natural, *self.paraphrases)

    @property
    def is_text(self) -> bool:
        """Whether the task has audio and its answer is the row's `text`, not limited to certain choices."""
        return isinstance(self.answer, Text) and not self.choices and self.clips > 0

    def render(self, labels: Labels, *, tags: bool = True) -> str:
        """Return the answer to a row as one string, with control tokens if `tags`."""
        return "".join(self.answer.render(labels, tags=tags))

    def extract(self, answer: str, metric: str | None = None) -> Any:
        """Return the part of an answer that a metric compares.

        A metric that is not in `metrics` compares the same part as the main metric.
        """
        part = self.metrics.get(metric or self.metric) or self.metrics.get(self.metric, "answer")
        return self.answer.extract(answer, part)


# Who wrote a prompt; `tasks.yaml` explains the values.
_PROMPT_SOURCES = ("published", "published (as read by third parties)", "ours")


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
    values = {"group": code, **entry, "code": code, "family": family, "grade": grades[0], "synthetic_grade": grades[-1]}
    valid = [attribute.name for attribute in fields(Task)]
    required = [a.name for a in fields(Task) if a.default is a.default_factory is MISSING]
    for name in values.keys() - valid:
        fail(f"unknown field {shorten(name)}; valid fields: {', '.join(valid)}")
    if missing := [name for name in required if name not in values]:
        fail(f"required fields are missing: {', '.join(missing)}")
    answer = values.get("answer", "text")
    if answer not in FORMATS:
        fail(f"unknown answer format {shorten(answer)}; valid formats: {', '.join(FORMATS)}")
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    task = Task(**arguments | {"answer": FORMATS[answer]})
    for item in (*task.needs, *task.uses, *task.paraphrases, *task.choices):
        if not isinstance(item, str):
            fail(f"{shorten(item)} is not a string; put it in quotes to make it one")
    for source in (task.tags_source, task.natural_source):
        if source not in _PROMPT_SOURCES:
            fail(f"unknown source {shorten(source)}; valid sources: {', '.join(_PROMPT_SOURCES)}")
    for grade in (task.grade, task.synthetic_grade):
        if grade not in ("", *GRADES):
            fail(f"unknown grade {shorten(grade)}; valid grades: {', '.join(GRADES)}")
    for metric, part in task.metrics.items():
        try:
            task.answer.extract("", part)
        except (KeyError, TypeError):
            fail(f"{metric} compares {part!r}, which answers of the format {answer!r} do not have")
    return task


TASKS: dict[str, Task] = _load(Path(__file__).with_name("tasks.yaml"))


def get_task(code: str) -> Task:
    """Return the task with this code.

    Raises:
        UserError: There is no such task; the message lists the valid codes.
    """
    if code not in TASKS:
        raise UserError(f"unknown task {shorten(code)}; valid tasks: {', '.join(TASKS)}")
    return TASKS[code]


def published_rows() -> Iterator[tuple[str, Task]]:
    """Yield the 31 rows of Qwen-Audio's Table 1 as (name in the table, task). The task `srwt` has two rows."""
    return ((name, task) for task in TASKS.values() for name in task.hours)


def is_synthetic(provenance: object) -> bool:
    """Return whether a row's `provenance`, which may be several origins joined by `+`, names only synthetic ones."""
    return isinstance(provenance, str) and set(provenance.split("+")) <= _SYNTHETIC_PROVENANCES


def result_group(labels: Labels) -> str:
    """Return the name of the line of a results table to which a row belongs, such as `asr en` or `s2tt de-en`.

    If synthetic data tests only the format of a task (grade D), its synthetic rows have a separate line, `fmt_...`.
    """
    task = get_task(labels["task"])
    tests_only_format = task.synthetic_grade == "D" and is_synthetic(labels.get("provenance"))
    return ("fmt_" if tests_only_format else "") + task.group.format(**labels)


# Names of the curves of the training loss in TensorBoard. There is one curve for each task and, for tasks with
# dialogues, one for each mode.
LOSS_CURVES = tuple(
    name
    for code, task in TASKS.items()
    for name in ([f"{code} {mode}" for mode in MODES] if "mode" in task.needs else [code])
)


def loss_curve(labels: Labels) -> str:
    """Return the entry of `LOSS_CURVES` to which the loss of a row belongs."""
    task = get_task(labels["task"])
    return f"{task.code} {labels['mode']}" if "mode" in task.needs else task.code


def closed_fields(labels: Labels) -> dict[str, str]:
    """Return the values of a row's closed fields by name.

    These are the template fields whose values come from a finite set, so that they may be part of a control token: the
    closed labels, and names and tags of their languages.
    """
    defaults = get_task(labels["task"]).optional
    closed_labels: dict[str, str] = {}
    for key, (_, values) in _CLOSED_LABELS.items():
        label = labels.get(key)
        value = label if isinstance(label, str) else defaults.get(key)
        if value is not None and value in values:
            closed_labels[key] = value
    languages = {key: code for key, code in closed_labels.items() if key.endswith("language")}
    names = {f"{key}_name": LANGUAGES[code] for key, code in languages.items()}
    tags = {f"{key}_tag": _NEAREST_TAG.get(code, code) for key, code in languages.items()}
    return closed_labels | names | tags


def relevant_labels(task: Task) -> list[str]:
    """Return the names of all labels except `text` that affect the check, the prompt or the score of a task's rows."""
    return sorted({*task.needs, *task.optional, *task.uses, *_CLOSED_LABELS} - {"text"})


def find_problem(labels: Labels) -> str | None:
    """Return the reason why a row cannot be used for its task, or None if it can."""
    if "task" not in labels:
        return "no `task` field"
    if not isinstance(labels["task"], str) or labels["task"] not in TASKS:
        return f"unknown task {shorten(labels['task'])}; valid tasks: {', '.join(TASKS)}"
    task = TASKS[labels["task"]]
    for name in task.needs:
        if labels.get(name) is None:
            return f"task {task.code!r} needs the label `{name}`"
    names = (name for name in (*task.needs, *task.optional, *task.uses) if labels.get(name) is not None)
    return next((problem for name in names for problem in _problems(task, name, labels)), None)


def _problems(task: Task, name: str, labels: Labels) -> Iterator[str]:
    """Yield the reasons why a label cannot be used.

    `find_problem` takes only the first reason, so each check may rely on the earlier checks.
    """
    yield from label_problems(name, labels)
    value = labels[name]
    noun, valid = _CLOSED_LABELS.get(name, ("", ()))
    if noun and value not in valid:
        yield f"label `{name}` is {shorten(value)}; valid {noun}: {', '.join(valid)}"
    if name == "text" and task.choices and value not in task.choices:
        yield f"label `text` is {shorten(value)}; valid answers of task {task.code!r}: {', '.join(task.choices)}"
