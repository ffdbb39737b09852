"""The task table matches Qwen-Audio's, every task works in both styles, and invalid rows get a specific error."""

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
    """Return a valid row of a task."""
    choice = {"text": TASKS[code].choices[0]} if TASKS[code].choices else {}
    return {"task": code, **{field: LABELS[field] for field in TASKS[code].needs}, **choice}


# Tasks of Qwen-Audio's Table 1: only these have published hours of training audio.
TRAINED_TASKS = [code for code, task in TASKS.items() if task.hours]

# Tasks and hours of Table 1, in order.
SPEECH = """ASR 30k, S2TT 3.7k, OSR <1k, Dialect ASR 2k, SRWT en 10k, SRWT zh 11k, DID 2k, LID 11.7k, SGC 4.8k, ER <1k,
    SV 1.2k, SD <1k, SER <1k, KS <1k, IC <1k, SF <1k, SAP 4.8k, VSC <1k"""
SOUND = "AAC 8.4k, SEC 5.4k, ASC <1k, SED <1k, AQA <1k"
MUSIC = "SID <1k, SMER <1k, MC 25k, MIC <1k, MNA <1k, MGR 9.5k, MR <1k, MQA <1k"


def test_the_table_matches_the_published_one():
    expected = [
        (*entry.split()[:-1], entry.split()[-1], family)
        for family, entries in (("speech", SPEECH), ("sound", SOUND), ("music", MUSIC))
        for entry in entries.split(",")
    ]
    actual = [(*name.split(), task.hours[name], task.family) for name, task in tasks.published_rows()]
    assert actual == expected and len(actual) == 31
    assert all(task.code == code for code, task in TASKS.items())


def test_every_entry_fills_all_columns_of_the_table():
    for code in TRAINED_TASKS:
        task = TASKS[code]
        assert task.needs and task.tags and task.natural and task.metric and task.group, code
        assert len(task.paraphrases) >= 8, code
        assert task.tags_source in ("published", "ours"), code
        assert task.natural_source in ("published", "published (as read by third parties)", "ours"), code
        assert task.grade in GRADES and task.synthetic_grade in ("C", "D"), code


def test_exactly_the_published_tags_are_marked_as_published():
    """The expected tasks are those of Qwen-Audio's eval_audio/*.py."""
    expected = {"asr", "srwt", "s2tt", "er", "vsc", "aac", "asc", "mna", "aqa"}
    assert {code for code, task in TASKS.items() if task.tags_source == "published"} == expected


def test_tags_distinguish_all_tasks_except_two_pairs():
    """One pair is the recognition of speech and of dialects, the other is questions about sound and about music."""
    codes_by_tags = {}
    for code in TRAINED_TASKS:
        row = {"language": "en", "target_language": "en", "caption_style": "plain", **labels(code)}
        codes_by_tags.setdefault(
            re.sub(r"\{(\w+)\}", lambda m, row=row: str(row.get(m[1])), TASKS[code].tags), []
        ).append(code)
    assert [codes for codes in codes_by_tags.values() if len(codes) > 1] == [["asr", "dialect_asr"], ["aqa", "mqa"]]


def test_no_two_tasks_share_an_instruction():
    """A question is excluded because it is the instruction itself."""
    wordings = [wording for code in TRAINED_TASKS for wording in TASKS[code].wordings if "{question}" not in wording]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("code", TASKS)
def test_prompts_and_answers_use_only_the_required_labels(code):
    row = labels(code)
    assert tasks.find_problem(row) is None
    for style in (TagPrompt(), NaturalPrompt()):
        for turns in style.variants(row, n_clips=TASKS[code].clips):
            assert not re.search(r"[{}]", "".join(turn.text for turn in turns))


@pytest.mark.parametrize("code", TASKS)
def test_each_tag_of_a_template_is_a_control_token(code):
    task = TASKS[code]
    values = [{"language": code, "target_language": code} for code in LANGUAGES]
    for value in [*values, *({"caption_style": style} for style in tasks.CAPTION_STYLES)]:
        fields = tasks.closed_fields({"task": code, "language": "en", "target_language": "en", **value})
        filled = [  # the tags, then the wordings
            re.sub(r"\{(\w+)\}", lambda m, fields=fields: fields.get(m[1], ""), w) for w in (task.tags, *task.wordings)
        ]
        tags = set(re.findall(r"<\|[^|]*\|>", " ".join(filled)))
        # Qwen2-Audio's instructions contain <|yue|>. A vocabulary without this tag encodes it as text.
        assert tags <= {*control_tokens(), "<|yue|>"} and "<|yue|>" not in filled[0]


@pytest.mark.parametrize("code", TRAINED_TASKS)
def test_all_wordings_of_a_task_are_different_but_have_the_same_fields(code):
    task = TASKS[code]
    assert len(set(task.wordings)) == len(task.wordings)
    fields = [re.findall(r"<\|.*?\|>|\{\w+\}", wording) for wording in task.wordings]
    assert all(wording_fields == fields[0] for wording_fields in fields)


@pytest.mark.parametrize("code", TASKS)
def test_parsing_a_rendered_answer_returns_its_labels(code):
    task, row = TASKS[code], labels(code)
    for tags in (True, False):
        parsed = task.answer.parse(task.render(row, tags=tags))
        assert parsed and all(parsed[field] == row[field] for field in parsed)


def test_has_tags_says_whether_an_answer_contains_control_tokens():
    for code, task in TASKS.items():
        assert task.answer.has_tags == any(
            isinstance(piece, Tag) for piece in task.answer.render(labels(code), tags=True)
        )


@pytest.mark.parametrize("code", TASKS)
def test_the_error_for_a_missing_label_names_the_label(code):
    for field in TASKS[code].needs:
        row = {name: value for name, value in labels(code).items() if name != field}
        assert f"`{field}`" in tasks.find_problem(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "  "}, "`text` is empty"),
        ({"text": 5}, "`text` is int"),
        ({"language": "xx"}, "'xx'"),
        ({"language": ["en"]}, "`language`"),
        ({"task": "singing"}, "'singing'"),
        ({"task": ["asr"]}, "['asr']"),
        ({"task": None}, "None"),
        ({"task": "chat", "mode": "opera"}, "valid modes: audio_analysis, voice_chat, text"),
    ],
)
def test_the_error_for_an_invalid_label_shows_its_value(change, message):
    assert message in tasks.find_problem({"task": "asr", "text": "hello", "language": "en", **change})


def test_a_row_without_a_task_is_reported():
    assert tasks.find_problem({"text": "hello"}) == "no `task` field"


def test_the_error_for_an_unknown_task_lists_the_valid_ones():
    with pytest.raises(ValueError, match="unknown task 'opera'; valid tasks: asr, s2tt"):
        tasks.get_task("opera")


def test_a_label_that_the_task_does_not_need_is_not_checked():
    row = {"task": "sec", "text": "rain", "language": "tlh", "target_language": 3, "events": "rain"}
    assert tasks.find_problem(row) is None
    assert tasks.closed_fields(row) == {}


def test_the_caption_style_defaults_to_plain():
    row = {"task": "aac", "text": "a dog"}
    assert tasks.closed_fields(row)["caption_style"] == "plain"
    assert tasks.closed_fields({**row, "caption_style": "clotho"})["caption_style"] == "clotho"
    assert "valid caption styles: clotho, audiocaps, plain" in tasks.find_problem({**row, "caption_style": "haiku"})


@pytest.mark.parametrize(
    ("row", "group"),
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
def test_synthetic_rows_whose_audio_does_not_carry_the_label_form_a_separate_group(row, group):
    """A group is a line of the results table. Groups `fmt_...` test only the format of answers (grade D)."""
    assert tasks.result_group(row) == group


def test_every_metric_of_a_task_is_implemented():
    for code in TRAINED_TASKS:
        task = TASKS[code]
        assert task.metrics.keys() <= set(MEASURES), code


SOUND_TASK = {"name": "a task", "needs": ["text"], "metrics": {"accuracy": "answer"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "wer"}, "unknown field 'metric'; valid fields: code, family, name"),
        ({"name": None}, "required fields are missing: name"),
        ({"answer": "opera"}, "unknown answer format 'opera'; valid formats: text, language"),
        ({"metrics": {"wer": "words"}}, "wer compares 'words', which answers of the format 'text' do not have"),
        ({"choices": [True, False]}, "True is not a string; put it in quotes"),
        ({"grade": "A/E"}, "unknown grade 'E'; valid grades: A, B, C, D"),
        ({"tags_source": "somebody"}, "unknown source 'somebody'"),
    ],
)
def test_the_error_for_an_invalid_entry_names_its_task(tmp_path, change, message):
    entry = {name: value for name, value in {**SOUND_TASK, **change}.items() if value is not None}
    write_yaml(tmp_path / "tasks.yaml", {"definitions": {}, "sound": {"new": entry}})
    with pytest.raises(UserError, match=re.escape(f"tasks.yaml, task new: {message}")):
        tasks._load(tmp_path / "tasks.yaml")


def test_an_entry_of_the_yaml_table_defines_a_task(tmp_path):
    write_yaml(tmp_path / "tasks.yaml", {"definitions": {}, "sound": {"new": {**SOUND_TASK, "grade": "A/C"}}})
    (task,) = tasks._load(tmp_path / "tasks.yaml").values()
    assert (task.code, task.family, task.group, task.metric) == ("new", "sound", "new", "accuracy")
    assert (task.grade, task.synthetic_grade, task.answer) == ("A", "C", FORMATS["text"])
