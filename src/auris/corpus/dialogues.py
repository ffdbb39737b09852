"""Dialogues and preferences about the rows of a corpus, put together as the two papers tell: one maker per kind.

A dialogue is drawn from a seed of its place (split, kind, number), as the corpus's rows are: the same seed gives the
same dialogues with any number of processes, and a larger set holds a smaller one. The answers are right by
construction, since all of them follow from labels. Who prefers which answer is a rule and no person:
`auris.metrics.judges.rating.rate`.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from auris.corpus import speech, wordings
from auris.corpus.augmentation import Written
from auris.corpus.grammar import ADVERBS, INTRANSITIVE, OBJECTS, PLACES, SUBJECTS, TRANSITIVE, draw_meaning, render
from auris.corpus.output import LICENCE, derive_seed, write_clips
from auris.corpus.recording import Fields, Job, cast, stage
from auris.corpus.scenes import SOUND_PHRASES
from auris.corpus.signal import SAMPLE_RATE, samples
from auris.corpus.wordings import ask, pick
from auris.data.rows import Row
from auris.errors import UserError
from auris.metrics.judges.rating import rate
from auris.text.tasks import LANGUAGES

ANNOTATOR = "a rule (auris.metrics.judges.rating.rate), not a person"
FAULTS = ("wrong", "terse", "plain")  # of a rejected answer: other content, no sentence, no polite introduction

_TEMPLATES = "templates"  # who wrote what a language model did not
_GROUP = 8  # clips that one worker speaks at a time, in one fork of eSpeak
_ATTEMPTS = 100  # to draw a dialogue that is not there yet
_GENDERS = {
    variant: gender for voices in speech.VOICES.values() for gender, names in voices.items() for variant in names
}
_SPEECH = ("asr", "ks", "sgc", "lid")  # tasks whose clips are speech, with a transcript
_FOREIGN = ("de", "es", "fr", "it")  # languages whose words are asked for as text

Rng = np.random.Generator
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """A right answer: in one word or phrase, as a sentence, the `key` that both hold, and a sentence that is wrong."""

    terse: str
    sentence: str
    key: str
    wrong: str | None  # None: the corpus has no other label to be wrong with
    language: str = "en"  # of the key

    def write(self, form: str, rng: Rng) -> str:
        """The answer in one of `wordings.FORMS`."""
        if form == "terse":
            return self.terse
        return self.sentence if form == "sentence" else f"{pick(rng, wordings.POLITE)} {self.sentence}"


@dataclass(frozen=True)
class Exchange:
    """What the user says and the answer. The user lets hear `clips`, writes `text`, or speaks.

    What is spoken becomes a clip of its own, with `clips` behind it in the same recording.
    """

    reply: Reply
    clips: tuple[Row, ...] = ()
    text: str | None = None
    spoken: str | None = None
    written_by: str = _TEMPLATES


@dataclass(frozen=True)
class Pool:
    """What dialogues of one split are made from: its rows by task and label, weights of tasks, a model's questions."""

    split: str
    rows: Mapping[str, Mapping[str, Sequence[Row]]]
    task_weights: Weights
    written: Sequence[Written] = ()

    @classmethod
    def of(cls, split: str, rows: Iterable[Row], **rest: Any) -> Pool:
        """A pool of the rows that can be used: one whole clip each, of a task that is asked about."""
        found: dict[str, dict[str, list[Row]]] = {}
        for row in filter(usable, rows):
            found.setdefault(row.labels["task"], {}).setdefault(answer(row), []).append(row)
        return cls(split, found, **rest)

    @cached_property
    def groups(self) -> dict[tuple[str, ...], list[str]]:
        """The labels that rows of one group have, sorted."""
        groups: dict[tuple[str, ...], set[str]] = {}
        for labels in self.rows.values():
            for label, rows in labels.items():
                for row in rows:
                    groups.setdefault(_group(row), set()).add(label)
        return {group: sorted(labels) for group, labels in groups.items()}

    def some(self, kind: str, tasks: Iterable[str], labels: int = 1) -> list[str]:
        """Those of `tasks` that have rows with at least `labels` different labels. Raises ValueError if none has."""
        known = [task for task in tasks if len(self.rows.get(task, ())) >= labels]
        if not known:
            raise UserError(
                f"the corpus's {self.split} split has no rows that dialogues of the kind {kind!r} can be made from "
                f"({labels} or more labels of {', '.join(tasks)}); set mix.{kind}=0"
            )
        return known

    def draw(self, rng: Rng, task: str, label: str | None = None) -> Row:
        """A row of `task`, its label with equal chance."""
        return pick(rng, self.rows[task][label or pick(rng, tuple(self.rows[task]))])

    def other(self, rng: Rng, row: Row) -> str | None:
        """A label that a row like `row` could have had."""
        labels = self.groups[_group(row)]
        if len(labels) < 2:
            return None
        place = labels.index(answer(row))
        return labels[(place + int(rng.integers(1, len(labels)))) % len(labels)]


def usable(row: Row) -> bool:
    """Whether dialogues can be made about a row."""
    whole = len(row.clips) == 1 and row.clips[0].offset is None
    return row.problem is None and whole and row.labels["task"] in wordings.SENTENCES


def answer(row: Row) -> str:
    """The label of a task row as an answer says it."""
    return LANGUAGES[row.labels["language"]] if row.labels["task"] == "lid" else row.labels["text"]


def _group(row: Row) -> tuple[str, ...]:
    """Rows of one group could have had each other's labels."""
    labels = row.labels
    match labels["task"]:
        case "asr":
            return "asr", labels["language"]
        case "s2tt":
            return "s2tt", labels["target_language"]
        case "aqa":
            return "aqa", labels["question"].split()[0]  # Can ..., How many ..., What ...
        case task:
            return (task,)


def name(task: str, label: str) -> str:
    """A label as one speaks of it: 'a dog', 'the drum', 'the keyword stop'."""
    return SOUND_PHRASES.get(label, label) if task == "sec" else wordings.NAMED.get(task, "{}").format(label)


# --- answers ------------------------------------------------------------------------------------------------------


def _reply(sentence: str, right: str, wrong: str | None, language: str = "en") -> Reply:
    """An answer that fills the braces of `sentence`."""
    return Reply(right, sentence.format(right), right, wrong and sentence.format(wrong), language)


def reply_to(rng: Rng, pool: Pool, row: Row) -> Reply:
    """The answer to a row's own task."""
    labels = row.labels
    task, target = labels["task"], labels.get("target_language")
    languages = {"asr": labels.get("language"), "s2tt": target}

    def sentence(label: str) -> str:
        filled = {"answer": label, "named": name(task, label), "target": LANGUAGES.get(target, "")}
        return wordings.SENTENCES[task].format(**filled)

    right, wrong = answer(row), pool.other(rng, row)
    return Reply(right, sentence(right), right, wrong and sentence(wrong), languages.get(task) or "en")


def slots(sentence: str) -> dict[str, str]:
    """Who, what and where of an English sentence of the grammar; nothing of what is none."""
    said = sentence.split()
    verbs = [place for place, word in enumerate(said) if word in TRANSITIVE or word in INTRANSITIVE]
    if len(verbs) != 1 or "says" in said:
        return {}
    rest = said[verbs[0] + 1 :]
    rest = " ".join(rest[:-1] if rest and rest[-1] in ADVERBS else rest)
    found = {"who": " ".join(said[: verbs[0]])}
    if rest:
        found["where" if rest in PLACES else "what"] = rest
    return found


_SLOT_SENTENCES = {"who": "It is {}.", "what": "The thing is {}.", "where": "It is {}."}


def _other_slot(rng: Rng, split: str, slot: str, right: str | None = None) -> tuple[str, str]:
    """A sentence of `split` with such a slot that is not `right`, and the slot."""
    while True:
        sentence = render(draw_meaning(rng, split), "en")
        found = slots(sentence).get(slot)
        if found and found != right:
            return sentence, found


def _classify(rng: Rng, table: Mapping[str, Sequence[str]], item: str) -> tuple[str, str] | None:
    """The heading of `table` under which `item` stands and another one, or None if it stands nowhere."""
    right = next((heading for heading, items in table.items() if item in items), None)
    return right and (right, pick(rng, [heading for heading in table if heading != right]))


def follow_ups(rng: Rng, pool: Pool, row: Row) -> dict[str, Reply]:
    """What else a row's labels answer, by family of question."""
    labels, task = row.labels, row.labels["task"]
    if task == "sec":
        found = _classify(rng, wordings.SOURCES, answer(row))
        return {"then source": _reply("It comes from {}.", *found)} if found else {}
    if task == "mic":
        found = _classify(rng, wordings.FAMILIES, answer(row))
        return {"then family": _reply("It is a {} instrument.", *found)} if found else {}
    replies = {}
    language = LANGUAGES.get(labels.get("language"))  # which not every task's rows need to say
    if language and task != "lid":
        other = pick(rng, [known for known in LANGUAGES.values() if known != language])
        replies["then language"] = _reply("It is {}.", language, other)
    if task != "sgc" and (gender := _GENDERS.get(labels.get("speaker"))):
        replies["then gender"] = _reply("It is a {} voice.", gender, {"male": "female", "female": "male"}[gender])
    said = labels.get("transcript", labels.get("text", ""))
    for slot, right in slots(said).items() if labels.get("language") == "en" else ():
        replies[f"then {slot}"] = _reply(_SLOT_SENTENCES[slot], right, _other_slot(rng, pool.split, slot, right)[1])
    return replies


# --- small facts, asked without any other audio -------------------------------------------------------------------

Fact = tuple[dict[str, str], Reply]


def _opposite(rng: Rng, split: str) -> Fact:
    pair = pick(rng, wordings.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    wrong = pick(rng, [other for others in wordings.OPPOSITES for other in others if other not in pair])
    return {"word": word}, _reply(f"The opposite of {word} is {{}}.", right, wrong)


def _category(rng: Rng, split: str) -> Fact:
    right = pick(rng, tuple(wordings.CATEGORIES))
    noun = f"the {pick(rng, wordings.CATEGORIES[right])}"
    wrong = pick(rng, [other for other in wordings.CATEGORIES if other != right])
    return {"noun": noun}, _reply(f"{noun.capitalize()} is {{}}.", right, wrong)


def _sum(rng: Rng, split: str) -> Fact:
    a, b = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    numbers = wordings.NUMBERS
    right = numbers[a + b - 1]
    wrong = pick(rng, [number for number in numbers[max(a, b) :] if number != right])
    first, second = numbers[a - 1], numbers[b - 1]
    return {"a": first, "b": second}, _reply(f"{first.capitalize()} plus {second} is {{}}.", right, wrong)


def _word(rng: Rng, split: str) -> Fact:
    language, noun, wrong = pick(rng, _FOREIGN), pick(rng, tuple(SUBJECTS)), pick(rng, tuple(OBJECTS))
    right, target = SUBJECTS[noun][language], LANGUAGES[language]
    reply = _reply(f"In {target}: {{}}.", right, OBJECTS[wrong][language], language)
    return {"noun": f"the {noun}", "target": target}, reply


def _recall(rng: Rng, split: str, slot: str) -> Fact:
    statement, right = _other_slot(rng, split, slot)
    _, wrong = _other_slot(rng, split, slot, right)
    return {"statement": statement}, _reply(_SLOT_SENTENCES[slot], right, wrong)


FACTS: dict[str, Callable[[Rng, str], Fact]] = {
    "opposite": _opposite,
    "category": _category,
    "sum": _sum,
    "word": _word,
    **{f"recall {slot}": partial(_recall, slot=slot) for slot in _SLOT_SENTENCES},
}


# --- kinds --------------------------------------------------------------------------------------------------------


def _ask(rng: Rng, pool: Pool, row: Row) -> Exchange:
    """A clip with the question of its own task."""
    target = LANGUAGES.get(row.labels.get("target_language"), "")
    question = ask(rng, row.labels["task"], pool.split, question=row.labels.get("question", ""), target=target)
    return Exchange(reply_to(rng, pool, row), (row,), question)


def _draw_demonstration(rng: Rng, pool: Pool) -> Exchange:
    tasks = pool.some("demonstration", [task for task, weight in pool.task_weights.items() if weight > 0])
    return _ask(rng, pool, pool.draw(rng, draw(rng, {task: pool.task_weights[task] for task in tasks})))


def make_demonstration(rng: Rng, pool: Pool) -> list[Exchange]:
    """One clip, the question of its task, the answer."""
    return [_draw_demonstration(rng, pool)]


def make_augmented(rng: Rng, pool: Pool) -> list[Exchange]:
    """One clip with a question and an answer that a language model wrote from its label."""
    known = [entry for entry in pool.written if entry.label in pool.rows.get(entry.task, ())]
    if not known:
        raise UserError(
            f"no label of the corpus's {pool.split} split has a question in the recording; "
            "set llm.tasks to tasks of the corpus, or mix.augmented=0"
        )
    entry = pick(rng, known)
    reply = Reply(entry.answer, entry.answer, entry.label, None)
    row = pool.draw(rng, entry.task, entry.label)
    return [Exchange(reply, (row,), entry.question, written_by=entry.model)]


def make_turns(rng: Rng, pool: Pool) -> list[Exchange]:
    """Two or three demonstrations one after the other, each on a clip of its own."""
    return [_draw_demonstration(rng, pool) for _ in range(pick(rng, (2, 2, 3)))]


def make_follow_up(rng: Rng, pool: Pool) -> list[Exchange]:
    """A demonstration, then one or two further questions on the same clip."""
    for _ in range(_ATTEMPTS):
        row = pool.draw(rng, pick(rng, pool.some("follow_up", (*_SPEECH, "sec", "mic"))))
        if replies := follow_ups(rng, pool, row):
            break
    else:
        raise UserError(
            f"{_ATTEMPTS} rows of the corpus's {pool.split} split say nothing that could be asked further: "
            "set mix.follow_up=0"
        )
    families = rng.permutation(sorted(replies))[: pick(rng, (1, 1, 2))]
    return [
        _ask(rng, pool, row),
        *(Exchange(replies[family], text=ask(rng, family, pool.split)) for family in families),
    ]


def make_comparison(rng: Rng, pool: Pool) -> list[Exchange]:
    """Two or three clips of one task, and a question that needs all of them."""
    task = pick(rng, pool.some("comparison", wordings.THINGS, labels=2))
    thing, family = wordings.THINGS[task], pick(rng, ("same", "which", "order"))
    labels = [str(label) for label in rng.permutation(sorted(pool.rows[task]))[: pick(rng, (2, 2, 2, 3))]]
    names = [name(task, label) for label in labels]
    listed = ", then ".join(names)
    clips = tuple(pool.draw(rng, task, label) for label in labels)
    if family == "which":
        place = int(rng.integers(len(labels)))
        wrong = pick(rng, [other for other in range(len(labels)) if other != place])
        text = ask(rng, family, pool.split, named=names[place])
        return [Exchange(_reply("It is {}.", f"audio {place + 1}", f"audio {wrong + 1}"), clips, text)]
    text = ask(rng, family, pool.split, thing=thing)
    if family == "order":
        return [Exchange(_reply("They are: {}.", listed, ", then ".join(names[::-1])), clips, text)]
    same = pool.rows[task][labels[0]]
    yes, no = f"Yes, it is {names[0]} in each.", f"No, it is {listed}."
    if rng.random() < 0.5 and len(same) >= len(labels):
        clips = tuple(same[place] for place in rng.permutation(len(same))[: len(labels)])
        return [Exchange(Reply("yes", yes, "yes", no), clips, text)]
    return [Exchange(Reply("no", no, "no", yes), clips, text)]


def make_reasoning(rng: Rng, pool: Pool) -> list[Exchange]:
    """A question whose answer follows from what is heard and a little knowledge, or a story about it."""
    tables = {"sec": wordings.SOURCES, "mic": wordings.FAMILIES}
    task = pick(rng, pool.some("reasoning", tables))
    table = {heading: [item for item in items if item in pool.rows[task]] for heading, items in tables[task].items()}
    known = [heading for heading, items in table.items() if items]
    if not known or rng.random() < 0.3:
        return [_tell(rng, pool, pool.draw(rng, task))]
    right = pick(rng, known)  # so that no answer is more frequent than another
    row = pool.draw(rng, task, pick(rng, table[right]))
    wrong = pick(rng, [heading for heading in table if heading != right])
    family = {"sec": "source", "mic": "family"}[task]
    conclusion = {"sec": "it comes from {}", "mic": "it is a {} instrument"}[task]
    reply = _reply(f"I hear {name(task, answer(row))}, so {conclusion}.", right, wrong)
    return [Exchange(reply, (row,), ask(rng, family, pool.split))]


def _tell(rng: Rng, pool: Pool, row: Row) -> Exchange:
    person, place = f"the {pick(rng, wordings.CATEGORIES['a person'])}", pick(rng, tuple(PLACES))
    other = pool.other(rng, row)
    right, wrong = (label and name(row.labels["task"], label) for label in (answer(row), other))
    story = f"{person.capitalize()} is {place} and hears {{}}."
    reply = Reply(f"{person} hears {right}", story.format(right), right, wrong and story.format(wrong))
    return Exchange(reply, (row,), ask(rng, "story", pool.split, person=person, place=place))


def make_command(rng: Rng, pool: Pool) -> list[Exchange]:
    """A spoken command and, in the same recording, the clip that it is about."""
    asked = [task for task in wordings.families(spoken=True) if task in wordings.SENTENCES]
    row = pool.draw(rng, pick(rng, pool.some("command", asked)))
    question = ask(rng, row.labels["task"], pool.split, spoken=True)
    return [Exchange(reply_to(rng, pool, row), (row,), spoken=question)]


def make_voice(rng: Rng, pool: Pool) -> list[Exchange]:
    """A spoken question, answered in text."""
    family = pick(rng, [family for family in wordings.families(spoken=True) if family in FACTS])
    fields, reply = FACTS[family](rng, pool.split)
    return [Exchange(reply, spoken=ask(rng, family, pool.split, spoken=True, **fields))]


def make_text(rng: Rng, pool: Pool) -> list[Exchange]:
    """A written question, answered in text: no audio."""
    family = pick(rng, tuple(FACTS))
    fields, reply = FACTS[family](rng, pool.split)
    return [Exchange(reply, text=ask(rng, family, pool.split, **fields))]


KINDS: dict[str, Callable[[Rng, Pool], list[Exchange]]] = {
    "demonstration": make_demonstration,
    "augmented": make_augmented,
    "turns": make_turns,
    "follow_up": make_follow_up,
    "comparison": make_comparison,
    "reasoning": make_reasoning,
    "command": make_command,
    "voice": make_voice,
    "text": make_text,
}


# --- rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """A recording to be made: where it goes (below the data's folder), what is said in it, and what follows.

    `place` is its number in a series: eSpeak speaks for neighbours at a time, and what it says depends on those before.
    """

    audio: str
    place: tuple[str, int]
    line: speech.Line
    seed: int
    clips: tuple[Path, ...]


@dataclass(frozen=True)
class Made:
    """A finished row and, if somebody speaks in it, the recording that it needs."""

    row: Fields
    spoken: Spoken | None


def plan_chat(
    pool: Pool, counts: Mapping[str, int], *, forms: Weights, locate: Callable[[Path], str], seed: int
) -> list[Made]:
    """Chat rows of a split: `counts` by kind, every stretch of them with the kinds in proportion.

    Args:
        forms: weights of the forms that answers take.
        locate: from a clip's path to the one that the row names.

    Raises ValueError if the corpus lacks what a kind needs, or a kind has no more different dialogues.
    """

    def finish(job: Job, exchanges: Sequence[Exchange], rng: Rng) -> Made:
        augmented = exchanges[0].written_by != _TEMPLATES  # its answer stays as the language model wrote it
        form = "sentence" if augmented else draw(rng, forms)
        made = _write(job, exchanges, [exchange.reply.write(form, rng) for exchange in exchanges], locate, rng)
        return Made({**made.row, "form": form}, made.spoken)

    return _plan(pool, "chat", counts, seed, finish)


def plan_preferences(
    pool: Pool,
    counts: Mapping[str, int],
    *,
    forms: Weights,
    faults: Weights,
    locate: Callable[[Path], str],
    seed: int,
) -> list[Made]:
    """Preference rows: the polite right answer, and one with a fault of `FAULTS`. Otherwise as `plan_chat`."""

    def finish(job: Job, exchanges: Sequence[Exchange], rng: Rng) -> Made | None:
        reply, fault, form = exchanges[-1].reply, draw(rng, faults), draw(rng, forms)
        if fault == "wrong" and (reply.wrong is None or wordings.contains(reply.wrong, reply.key)):
            return None  # another sentence may go on where the right one ends
        before = [exchange.reply.write(form, rng) for exchange in exchanges[:-1]]
        made = _write(job, exchanges, [*before, None], locate, rng)
        worse = {"wrong": f"{pick(rng, wordings.POLITE)} {reply.wrong}", "terse": reply.terse, "plain": reply.sentence}
        pair = {"chosen": reply.write("polite", rng), "rejected": worse[fault]}
        scores = [rate(answer, reply.key) for answer in pair.values()]
        return Made({**made.row, **pair, "fault": fault, "scores": scores, "annotator": ANNOTATOR}, made.spoken)

    return _plan(pool, "preference", counts, seed, finish)


def _plan(
    pool: Pool,
    variant: str,
    counts: Mapping[str, int],
    seed: int,
    finish: Callable[[Job, Sequence[Exchange], Rng], Made | None],
) -> list[Made]:
    placed: list[tuple[float, str, Made]] = []
    for kind, count in counts.items():
        seen: set[str] = set()
        for index in range(count):
            made = _draw_new(pool, kind, variant, index, seed, finish, seen)
            placed.append((index / count, kind, made))
    return [made for _, _, made in sorted(placed, key=lambda entry: entry[:2])]


def _draw_new(
    pool: Pool,
    kind: str,
    variant: str,
    index: int,
    seed: int,
    finish: Callable[[Job, Sequence[Exchange], Rng], Made | None],
    seen: set[str],
) -> Made:
    """A dialogue that is not in `seen`, to which it is added; what is spoken is another each time it is said."""
    for attempt in range(_ATTEMPTS):
        place = (pool.split, kind, variant, index)
        job = Job(*place, derive_seed(seed, "dialogue", *place, attempt))
        rng = np.random.default_rng(job.seed)
        made = finish(job, KINDS[kind](rng, pool), rng)
        if made is None:
            continue
        content = json.dumps(made.row["messages"])
        if content not in seen:
            seen.add(content)
            return made
    raise UserError(
        f"there are about {index} different dialogues of the kind {kind!r} in the {pool.split} split, and more are "
        f"asked for: lower mix.{kind} or the number of rows"
    )


def _write(
    job: Job,
    exchanges: Sequence[Exchange],
    replies: Sequence[str | None],
    locate: Callable[[Path], str],
    rng: Rng,
) -> Made:
    """The row of a dialogue; a reply of None is left out."""
    messages: list[Fields] = []
    spoken: Spoken | None = None
    for exchange, reply in zip(exchanges, replies, strict=True):
        paths = [row.clips[0].path for row in exchange.clips]
        heard = list(map(locate, paths))
        if exchange.spoken:
            assert spoken is None, exchanges
            line = cast(rng, job, exchange.spoken, "en")
            place = (f"{job.split} {job.task} {job.variant}", job.index)
            spoken = Spoken(job.audio, place, line, job.seed, tuple(paths))
            heard = [job.audio]
        content: Any = [{"type": "audio", "audio": path} for path in heard]
        if exchange.text:
            content = [*content, {"type": "text", "text": exchange.text}] if heard else exchange.text
        messages.append({"role": "user", "content": content})
        if reply is not None:
            messages.append({"role": "assistant", "content": reply})
    last = exchanges[-1]
    sources = [row for exchange in exchanges for row in exchange.clips]
    row = {
        "id": job.id,
        "messages": messages,
        "mode": _mode(exchanges),
        "kind": job.task,
        "key": last.reply.key,
        "language": last.reply.language,
        "split": job.split,
        "sources": [row.id for row in sources],
        "provenance": _provenance(sources, spoken is not None),
        "written_by": exchanges[0].written_by,
        "seed": job.seed,
        "licence": " and ".join(sorted({str(row.labels.get("licence", "unknown")) for row in sources})) or LICENCE,
    }
    if job.task in ("demonstration", "turns"):  # whose last question is that of a task
        row["skill"] = sources[-1].labels["task"]
    if spoken:
        row |= {"spoken": " ".join(spoken.line.words), "speaker": spoken.line.variant}
    return Made(row, spoken)


def _mode(exchanges: Sequence[Exchange]) -> str:
    """A clip to be analysed anywhere makes it audio analysis, also where the command is spoken."""
    if any(exchange.clips for exchange in exchanges):
        return "audio_analysis"
    return "voice_chat" if any(exchange.spoken for exchange in exchanges) else "text"


def _provenance(sources: Sequence[Row], spoken: bool) -> str:
    """Kinds of sound, as `procedural+tts`; of a dialogue without any, that its words are templates."""
    kinds = {str(row.labels.get("provenance", "unknown")) for row in sources} | ({"tts"} if spoken else set())
    return "+".join(sorted(kinds)) or "templates"


def draw(rng: Rng, weights: Weights) -> str:
    """A key of `weights`, by its weight."""
    values = np.array(list(weights.values()), dtype=float)
    return str(rng.choice(list(weights), p=values / values.sum()))


# --- recordings ---------------------------------------------------------------------------------------------------


def speak(recordings: Iterable[Spoken], folder: Path, processes: int) -> Iterator[list[bytes]]:
    """Make `recordings` below `folder`; yields the SHA-256 of the samples of those that one worker made together."""
    groups: dict[tuple[str, int], list[Spoken]] = {}
    for recording in sorted(recordings, key=lambda recording: recording.place):
        series, index = recording.place
        groups.setdefault((series, index // _GROUP), []).append(recording)
    context = multiprocessing.get_context("spawn")  # as in `build`: a fork would copy the locks of threads
    with ProcessPoolExecutor(processes, mp_context=context) as workers:
        yield from workers.map(partial(record, folder=folder), groups.values())


def record(recordings: Sequence[Spoken], folder: Path) -> list[bytes]:
    """Make a few recordings, in one fork of eSpeak; returns the SHA-256 of the samples of each."""
    utterances = speech.say([recording.line for recording in recordings])
    return [_stage_and_write(*parts, folder) for parts in zip(recordings, utterances, strict=True)]


def _stage_and_write(recording: Spoken, utterance: speech.Utterance, folder: Path) -> bytes:
    rng = np.random.default_rng(derive_seed(recording.seed, "recording"))
    pieces = [*stage({}, recording.line, utterance, rng).clips]
    for path in recording.clips:
        clip, rate_of_clip = soundfile.read(path, dtype="int16")
        if rate_of_clip != SAMPLE_RATE or clip.ndim != 1:
            raise UserError(
                f"{path}: {rate_of_clip} Hz, {clip.ndim} channels; a spoken command goes before clips of "
                f"{SAMPLE_RATE} Hz with one channel only: set mix.command=0"
            )
        pieces += [np.zeros(samples(rng.uniform(0.15, 0.35)), np.int16), clip]
    return write_clips([(folder / recording.audio, np.concatenate(pieces))])
