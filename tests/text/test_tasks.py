"""The task table: it is Qwen-Audio's, every entry is usable under both styles, unusable rows are told why."""

from __future__ import annotations

import re

import pytest

from auris.errors import UserError
from auris.files import write_yaml
from auris.metrics.measures import MEASURES
from auris.text import tasks
from auris.text.answer_formats import FORMATS, Tag
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tasks import GRADES, LANGUAGES, TASKS
from auris.text.tokenizer import control_tokens

LABELS = {
    "text": "the answer",
    "language": "de",
    "target_language": "en",
    "question": "what is it?",
    "dialect": "Scottish English",
    "intent": "alarm_set",
    "slots": {"time": "five am"},
    "entities": [{"type": "time", "value": "five am"}],
    "texts": ["hello", "good morning"],
    "words": [{"word": "hello", "start": 0.0, "end": 0.42}, {"word": "there", "start": 0.42, "end": 1.0}],
    "events": [{"label": "rain", "start": 0.5, "end": 2.25}],
    "turns": [{"speaker": "speaker 1", "start": 0.5, "end": 2.25}],
    "notes": {"pitch": 60, "velocity": 100, "instrument": "guitar", "sonic": ["bright", "reverb"]},
    "mode": "voice_chat",
    "chosen": "the answer",
    "rejected": "no answer",
}


def labels(code: str) -> dict:
    own = {"text": TASKS[code].choices[0]} if TASKS[code].choices else {}
    return {"task": code, **{field: LABELS[field] for field in TASKS[code].needs}, **own}


ASKED = [code for code, task in TASKS.items() if task.hours]

# Qwen-Audio, Table 1: tasks and hours, in its order.
SPEECH = """ASR 30k, S2TT 3.7k, OSR <1k, Dialect ASR 2k, SRWT en 10k, SRWT zh 11k, DID 2k, LID 11.7k, SGC 4.8k, ER <1k,
    SV 1.2k, SD <1k, SER <1k, KS <1k, IC <1k, SF <1k, SAP 4.8k, VSC <1k"""
SOUND = "AAC 8.4k, SEC 5.4k, ASC <1k, SED <1k, AQA <1k"
MUSIC = "SID <1k, SMER <1k, MC 25k, MIC <1k, MNA <1k, MGR 9.5k, MR <1k, MQA <1k"


def test_the_table_is_the_published_one():
    lines = [
        (*line.split()[:-1], line.split()[-1], family)
        for family, listed in (("speech", SPEECH), ("sound", SOUND), ("music", MUSIC))
        for line in listed.split(",")
    ]
    ours = [(*name.split(), task.hours[name], task.family) for name, task in tasks.published()]
    assert ours == lines and len(ours) == 31
    assert all(task.code == code for code, task in TASKS.items())


def test_every_entry_fills_all_columns_of_the_table():
    for code in ASKED:
        task = TASKS[code]
        assert task.needs and task.tags and task.natural and task.metric and task.group, code
        assert len(task.paraphrases) >= 8, code
        assert task.tags_source in ("published", "ours"), code
        assert task.natural_source in ("published", "published (as read by third parties)", "ours"), code
        assert task.grade in GRADES and task.embedded in ("C", "D"), code


def test_exactly_the_published_tags_are_marked_as_published():
    """A prompt of theirs is known: eval_audio/*.py of Qwen-Audio."""
    published = {"asr", "srwt", "s2tt", "er", "vsc", "aac", "asc", "mna", "aqa"}
    assert {code for code, task in TASKS.items() if task.tags_source == "published"} == published


def test_tags_distinguish_tasks():
    """But for two pairs that say so, in `tasks`: speech and dialects, questions on sound and on music."""
    asked = {}
    for code in ASKED:
        row = {"language": "en", "target_language": "en", "caption_style": "plain", **labels(code)}
        asked.setdefault(re.sub(r"\{(\w+)\}", lambda m, row=row: str(row.get(m[1])), TASKS[code].tags), []).append(code)
    assert [codes for codes in asked.values() if len(codes) > 1] == [["asr", "dialect_asr"], ["aqa", "mqa"]]


def test_no_two_tasks_share_an_instruction():
    """But for questions, which are their own instruction."""
    wordings = [wording for code in ASKED for wording in TASKS[code].wordings if "{question}" not in wording]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("code", TASKS)
def test_the_labels_a_task_needs_are_all_that_its_prompts_and_answer_use(code):
    row = labels(code)
    assert tasks.check(row) is None
    for style in (TagPrompt(), NaturalPrompt()):
        for turns in style.variants(row, n_clips=TASKS[code].clips):
            assert not re.search(r"[{}]", "".join(turn.text for turn in turns))


@pytest.mark.parametrize("code", TASKS)
def test_each_tag_of_a_template_is_a_token_of_the_vocabulary(code):
    task = TASKS[code]
    values = [{"language": code, "target_language": code} for code in LANGUAGES]
    for value in [*values, *({"caption_style": style} for style in tasks.CAPTION_STYLES)]:
        own = tasks.closed({"task": code, "language": "en", "target_language": "en", **value})
        filled = [re.sub(r"\{(\w+)\}", lambda m, own=own: own.get(m[1], ""), w) for w in (task.tags, *task.wordings)]
        used = set(re.findall(r"<\|[^|]*\|>", " ".join(filled)))
        # The second system's instructions name Cantonese; where its vocabulary lacks the tag it is text.
        assert used <= {*control_tokens(), "<|yue|>"} and "<|yue|>" not in filled[0]


@pytest.mark.parametrize("code", ASKED)
def test_a_paraphrase_differs_from_the_canonical_wording_and_keeps_its_tag(code):
    task = TASKS[code]
    assert len(set(task.wordings)) == len(task.wordings)
    kept = [re.findall(r"<\|.*?\|>|\{\w+\}", wording) for wording in task.wordings]
    assert all(found == kept[0] for found in kept)


@pytest.mark.parametrize("code", TASKS)
def test_parse_inverts_render(code):
    task, row = TASKS[code], labels(code)
    for tags in (True, False):
        parsed = task.answer.parse(task.render(row, tags=tags))
        assert parsed and all(parsed[field] == row[field] for field in parsed)


def test_only_tagged_answers_hold_control_tokens():
    for code, task in TASKS.items():
        assert task.answer.tagged == any(
            isinstance(piece, Tag) for piece in task.answer.render(labels(code), tags=True)
        )


@pytest.mark.parametrize("code", TASKS)
def test_a_missing_label_is_named(code):
    for field in TASKS[code].needs:
        row = {name: value for name, value in labels(code).items() if name != field}
        assert f"`{field}`" in tasks.check(row)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"text": "  "}, "`text` is empty"),
        ({"text": 5}, "`text` is int"),
        ({"language": "xx"}, "'xx'"),
        ({"language": ["en"]}, "`language`"),
        ({"task": "singing"}, "'singing'"),
        ({"task": ["asr"]}, "['asr']"),
        ({"task": None}, "None"),
        ({"task": "chat", "mode": "opera"}, "known modes: audio_analysis, voice_chat, text"),
    ],
)
def test_a_wrong_label_is_named_with_its_value(changed, named):
    assert named in tasks.check({"task": "asr", "text": "hello", "language": "en", **changed})


def test_a_row_without_a_task_is_reported():
    assert tasks.check({"text": "hello"}) == "no `task` field"


def test_an_unknown_task_error_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown task 'opera'; known tasks: asr, s2tt"):
        tasks.find("opera")


def test_a_label_that_the_task_does_not_need_can_hold_anything():
    row = {"task": "sec", "text": "rain", "language": "tlh", "target_language": 3, "events": "rain"}
    assert tasks.check(row) is None
    assert tasks.closed(row) == {}


def test_the_caption_style_is_part_of_a_tag_and_plain_where_a_row_is_silent():
    row = {"task": "aac", "text": "a dog"}
    assert tasks.closed(row)["caption_style"] == "plain"
    assert tasks.closed({**row, "caption_style": "clotho"})["caption_style"] == "clotho"
    assert "known caption styles: clotho, audiocaps, plain" in tasks.check({**row, "caption_style": "haiku"})


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"task": "s2tt", "language": "de", "target_language": "en"}, "s2tt de-en"),
        ({"task": "dialect_asr", "language": "en", "dialect": "Scottish English"}, "dialect_asr Scottish English"),
        ({"task": "er", "provenance": "real"}, "er"),
        ({"task": "er"}, "er"),
        ({"task": "er", "provenance": "tts"}, "fmt_er"),
        ({"task": "mgr", "provenance": "procedural"}, "fmt_mgr"),
        ({"task": "ks", "provenance": "tts"}, "ks"),
    ],
)
def test_lines_that_synthetic_data_cannot_fill_are_separate(row, line):
    assert tasks.group(row) == line


def test_every_metric_is_a_measure():
    for code in ASKED:
        task = TASKS[code]
        assert task.metrics.keys() <= set(MEASURES), code


SOUND_TASK = {"name": "a task", "needs": ["text"], "metrics": {"accuracy": "answer"}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": "wer"}, "unknown field 'metric'; known fields: code, family, name"),
        ({"name": None}, "expected the fields code, family, name, needs"),
        ({"answer": "opera"}, "unknown answer format 'opera'; known formats: text, language"),
        ({"metrics": {"wer": "words"}}, "wer compares 'words', which answers of the format 'text' do not have"),
        ({"choices": [True, False]}, "True is no text: put it in quotes"),
        ({"grade": "A/E"}, "unknown grade 'E'; known grades: A, B, C, D"),
        ({"tags_source": "somebody"}, "unknown source 'somebody'"),
    ],
)
def test_a_mistake_in_the_table_is_named_with_its_task(tmp_path, changed, message):
    entry = {name: value for name, value in {**SOUND_TASK, **changed}.items() if value is not None}
    write_yaml(tmp_path / "tasks.yaml", {"definitions": {}, "sound": {"new": entry}})
    with pytest.raises(UserError, match=re.escape(f"tasks.yaml, task new: {message}")):
        tasks._load(tmp_path / "tasks.yaml")


def test_a_new_entry_of_the_table_is_a_task(tmp_path):
    write_yaml(tmp_path / "tasks.yaml", {"definitions": {}, "sound": {"new": {**SOUND_TASK, "grade": "A/C"}}})
    (task,) = tasks._load(tmp_path / "tasks.yaml").values()
    assert (task.code, task.family, task.group, task.metric) == ("new", "sound", "new", "accuracy")
    assert (task.grade, task.embedded, task.answer) == ("A", "C", FORMATS["text"])
