"""The kinds of dialogues, and a function for each that draws questions and replies from a pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from auris.corpus.dialogues import wordings
from auris.corpus.dialogues.pool import Pool, answer_text, draw_key, noun_phrase
from auris.corpus.dialogues.replies import FACTS, INFERENCES, Reply, make_follow_up_replies, make_reply, reply_to_row
from auris.corpus.dialogues.wordings import draw_question
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import PLACES
from auris.data.rows import Row
from auris.errors import UserError
from auris.text.tasks import LANGUAGES

TEMPLATES = "templates"  # author of the questions that were not written by a language model
ATTEMPTS = 100  # number of draws without success after which a kind of dialogue is considered exhausted
_SPEECH_TASKS = ("asr", "ks", "sgc", "lid")  # tasks whose clips are speech with a transcript


@dataclass(frozen=True)
class Exchange:
    """A message of the user and the assistant's answer.

    Attributes:
        reply: The assistant's answer.
        clip_rows: Rows whose clips are part of the user's message.
        text: Written part of the message.
        spoken: Spoken part of the message. A new clip is recorded for it, in which the clips of `clip_rows` follow it.
        written_by: Author of the question and answer.
    """

    reply: Reply
    clip_rows: tuple[Row, ...] = ()
    text: str | None = None
    spoken: str | None = None
    written_by: str = TEMPLATES


def _ask_about_row(rng: Rng, pool: Pool, row: Row) -> Exchange:
    """Make an exchange about the clip of a row: a question that asks for the row's label, and the answer."""
    target = LANGUAGES.get(row.labels.get("target_language") or "", "")
    question = draw_question(
        rng, row.labels["task"], pool.split, question=row.labels.get("question", ""), target=target
    )
    return Exchange(reply_to_row(rng, pool, row), (row,), question)


def _draw_demonstration(rng: Rng, pool: Pool, kind: str) -> Exchange:
    tasks = pool.select_tasks(kind, [task for task, weight in pool.task_weights.items() if weight > 0])
    return _ask_about_row(
        rng, pool, pool.draw_row(rng, draw_key(rng, {task: pool.task_weights[task] for task in tasks}))
    )


def make_demonstration(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make one exchange: a clip, the question of its task and the answer."""
    return [_draw_demonstration(rng, pool, "demonstration")]


def make_augmented(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make one exchange: a clip with a question and an answer that a language model wrote from its label."""
    entries = [entry for entry in pool.written_questions if entry.label in pool.rows.get(entry.task, ())]
    if not entries:
        raise UserError(
            "no question that the language model wrote is about a label of the corpus's "
            f"{pool.split} split; set llm.tasks to tasks of the corpus, or set dialogues.mix.augmented=0 to leave "
            "these dialogues out"
        )
    entry = pick(rng, entries)
    reply = Reply(entry.answer, entry.answer, entry.label, None)
    row = pool.draw_row(rng, entry.task, entry.label)
    return [Exchange(reply, (row,), entry.question, written_by=entry.model)]


def make_turns(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make two or three demonstrations, usually about different clips."""
    return [_draw_demonstration(rng, pool, "turns") for _ in range(pick(rng, (2, 2, 3)))]


def make_follow_up(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make a demonstration and one or two further questions about the same clip."""
    for _ in range(ATTEMPTS):
        row = pool.draw_row(rng, pick(rng, pool.select_tasks("follow_up", (*_SPEECH_TASKS, "sec", "mic"))))
        if replies := make_follow_up_replies(rng, pool, row):
            break
    else:
        raise UserError(
            f"none of {ATTEMPTS} rows drawn from the corpus's {pool.split} split has labels for a further question; "
            "set dialogues.mix.follow_up=0 to leave these dialogues out"
        )
    families = [str(family) for family in rng.permutation(sorted(replies))[: pick(rng, (1, 1, 2))]]
    return [
        _ask_about_row(rng, pool, row),
        *(Exchange(replies[family], text=draw_question(rng, family, pool.split)) for family in families),
    ]


def make_comparison(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make one exchange: two or three clips of one task, and a question about all of them."""
    task = pick(rng, pool.select_tasks("comparison", wordings.LABEL_KINDS, min_labels=2))
    thing, family = wordings.LABEL_KINDS[task], pick(rng, ("same", "which", "order"))
    labels = [str(label) for label in rng.permutation(sorted(pool.rows[task]))[: pick(rng, (2, 2, 2, 3))]]
    names = [noun_phrase(task, label) for label in labels]
    in_order = ", then ".join(names)
    clips = tuple(pool.draw_row(rng, task, label) for label in labels)
    if family == "which":
        right = int(rng.integers(len(labels)))
        wrong = pick(rng, [index for index in range(len(labels)) if index != right])
        text = draw_question(rng, family, pool.split, named=names[right])
        return [Exchange(make_reply("It is {}.", f"audio {right + 1}", f"audio {wrong + 1}"), clips, text)]
    text = draw_question(rng, family, pool.split, thing=thing)
    if family == "order":
        return [Exchange(make_reply("They are: {}.", in_order, ", then ".join(names[::-1])), clips, text)]
    rows_with_first_label = pool.rows[task][labels[0]]
    yes, no = f"Yes, it is {names[0]} in each.", f"No, it is {in_order}."
    if rng.random() < 0.5 and len(rows_with_first_label) >= len(labels):
        indices = rng.permutation(len(rows_with_first_label))[: len(labels)]
        clips = tuple(rows_with_first_label[index] for index in indices)
        return [Exchange(Reply("yes", yes, "yes", no), clips, text)]
    return [Exchange(Reply("no", no, "no", yes), clips, text)]


def make_reasoning(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make one exchange: a question that needs the audio and some knowledge, or a request for a story."""
    task = pick(rng, pool.select_tasks("reasoning", INFERENCES))
    topic, labels_by_answer, conclusion = INFERENCES[task]
    available = {
        answer: [label for label in labels if label in pool.rows[task]] for answer, labels in labels_by_answer.items()
    }
    possible_answers = [answer for answer, labels in available.items() if labels]
    if not possible_answers or rng.random() < 0.3:
        return [_make_story(rng, pool, pool.draw_row(rng, task))]
    right = pick(rng, possible_answers)  # drawn before the label, so that all answers are equally frequent
    row = pool.draw_row(rng, task, pick(rng, available[right]))
    wrong = pick(rng, [answer for answer in labels_by_answer if answer != right])
    reply = make_reply(f"I hear {noun_phrase(task, answer_text(row))}, so {conclusion}.", right, wrong)
    return [Exchange(reply, (row,), draw_question(rng, topic, pool.split))]


def _make_story(rng: Rng, pool: Pool, row: Row) -> Exchange:
    person, place = f"the {pick(rng, wordings.CATEGORIES['a person'])}", pick(rng, PLACES)
    task, wrong_label = row.labels["task"], pool.draw_wrong_label(rng, row)
    right, wrong = noun_phrase(task, answer_text(row)), wrong_label and noun_phrase(task, wrong_label)
    story = f"{person.capitalize()} is {place} and hears {{}}."
    reply = Reply(f"{person} hears {right}", story.format(right), right, wrong and story.format(wrong))
    return Exchange(reply, (row,), draw_question(rng, "story", pool.split, person=person, place=place))


def make_command(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make one exchange: a spoken command, followed in the same recording by the clip that it is about."""
    tasks = [task for task in wordings.question_families(spoken=True) if task in wordings.ANSWER_SENTENCES]
    row = pool.draw_row(rng, pick(rng, pool.select_tasks("command", tasks)))
    question = draw_question(rng, row.labels["task"], pool.split, spoken=True)
    return [Exchange(reply_to_row(rng, pool, row), (row,), spoken=question)]


def make_voice(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make one exchange: a spoken question, answered in text."""
    text, reply = _ask_fact(rng, pool, spoken=True)
    return [Exchange(reply, spoken=text)]


def make_text(rng: Rng, pool: Pool) -> list[Exchange]:
    """Make one exchange without audio: a written question, answered in text."""
    text, reply = _ask_fact(rng, pool, spoken=False)
    return [Exchange(reply, text=text)]


def _ask_fact(rng: Rng, pool: Pool, *, spoken: bool) -> tuple[str, Reply]:
    family = pick(rng, [family for family in wordings.question_families(spoken=spoken) if family in FACTS])
    fields, reply = FACTS[family](rng, pool.split)
    return draw_question(rng, family, pool.split, spoken=spoken, **fields), reply


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
