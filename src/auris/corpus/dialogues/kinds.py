"""The kinds of dialogues, with one maker for each: from random numbers and a pool to questions and replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from auris.corpus.dialogues import wordings
from auris.corpus.dialogues.pool import Pool, answer, draw, name
from auris.corpus.dialogues.replies import FACTS, ORIGINS, Reply, fill, follow_ups, reply_to
from auris.corpus.dialogues.wordings import ask
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import PLACES
from auris.data.rows import Row
from auris.errors import UserError
from auris.text.tasks import LANGUAGES

TEMPLATES = "templates"  # who wrote what a language model did not
ATTEMPTS = 100  # at drawing a dialogue that is possible and new
_SPEECH = ("asr", "ks", "sgc", "lid")  # tasks whose clips are speech, with a transcript


@dataclass(frozen=True)
class Exchange:
    """A user turn and its answer. The user lets hear `clips`, writes `text`, or speaks.

    What is spoken becomes a clip of its own, with `clips` behind it in the same recording.
    """

    reply: Reply
    clips: tuple[Row, ...] = ()
    text: str | None = None
    spoken: str | None = None
    written_by: str = TEMPLATES


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
    for _ in range(ATTEMPTS):
        row = pool.draw(rng, pick(rng, pool.some("follow_up", (*_SPEECH, "sec", "mic"))))
        if replies := follow_ups(rng, pool, row):
            break
    else:
        raise UserError(
            f"{ATTEMPTS} rows of the corpus's {pool.split} split say nothing that could be asked further: "
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
        return [Exchange(fill("It is {}.", f"audio {place + 1}", f"audio {wrong + 1}"), clips, text)]
    text = ask(rng, family, pool.split, thing=thing)
    if family == "order":
        return [Exchange(fill("They are: {}.", listed, ", then ".join(names[::-1])), clips, text)]
    same = pool.rows[task][labels[0]]
    yes, no = f"Yes, it is {names[0]} in each.", f"No, it is {listed}."
    if rng.random() < 0.5 and len(same) >= len(labels):
        clips = tuple(same[place] for place in rng.permutation(len(same))[: len(labels)])
        return [Exchange(Reply("yes", yes, "yes", no), clips, text)]
    return [Exchange(Reply("no", no, "no", yes), clips, text)]


def make_reasoning(rng: Rng, pool: Pool) -> list[Exchange]:
    """A question whose answer follows from what is heard and a little knowledge, or a story about it."""
    task = pick(rng, pool.some("reasoning", ORIGINS))
    family, headings, conclusion = ORIGINS[task]
    table = {heading: [item for item in items if item in pool.rows[task]] for heading, items in headings.items()}
    known = [heading for heading, items in table.items() if items]
    if not known or rng.random() < 0.3:
        return [_tell(rng, pool, pool.draw(rng, task))]
    right = pick(rng, known)  # so that no answer is more frequent than another
    row = pool.draw(rng, task, pick(rng, table[right]))
    wrong = pick(rng, [heading for heading in table if heading != right])
    reply = fill(f"I hear {name(task, answer(row))}, so {conclusion}.", right, wrong)
    return [Exchange(reply, (row,), ask(rng, family, pool.split))]


def _tell(rng: Rng, pool: Pool, row: Row) -> Exchange:
    person, place = f"the {pick(rng, wordings.CATEGORIES['a person'])}", pick(rng, PLACES)
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
    text, reply = _ask_fact(rng, pool, spoken=True)
    return [Exchange(reply, spoken=text)]


def make_text(rng: Rng, pool: Pool) -> list[Exchange]:
    """A written question, answered in text: no audio."""
    text, reply = _ask_fact(rng, pool, spoken=False)
    return [Exchange(reply, text=text)]


def _ask_fact(rng: Rng, pool: Pool, *, spoken: bool) -> tuple[str, Reply]:
    family = pick(rng, [family for family in wordings.families(spoken=spoken) if family in FACTS])
    fields, reply = FACTS[family](rng, pool.split)
    return ask(rng, family, pool.split, spoken=spoken, **fields), reply


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
