"""The task table: every entry is usable, answers survive a round trip, unusable rows are told why."""

from __future__ import annotations

import re

import pytest

from auris import tasks
from auris.prompts import NaturalPrompt, TagPrompt
from auris.tasks import LANGUAGES, TASKS
from auris.tokenizer import control_tokens

LABELS = {
    "text": "the answer",
    "language": "de",
    "target_language": "en",
    "question": "what is it?",
    "intent": "alarm_set",
    "slots": {"time": "five am"},
}


def labels(code: str) -> dict:
    return {"task": code, **{field: LABELS[field] for field in TASKS[code].needs}}


def test_the_table_has_the_tasks_of_the_two_systems_so_far():
    assert set(TASKS) >= {"asr", "s2tt", "lid", "sgc", "ks", "sf", "sec", "mic", "aqa"}
    assert all(task.code == code for code, task in TASKS.items())


@pytest.mark.parametrize("code", TASKS)
def test_the_labels_a_task_needs_are_all_that_its_prompts_and_answer_use(code):
    row = labels(code)
    assert tasks.check(row) is None
    for style in (TagPrompt(), NaturalPrompt()):
        for turns in style.variants(row, n_clips=1):
            assert not re.search(r"\{\w+\}", "".join(turn.text for turn in turns))


@pytest.mark.parametrize("code", TASKS)
def test_each_tag_of_a_template_is_a_token_of_the_vocabulary(code):
    task = TASKS[code]
    wordings = (task.tags, task.natural, *task.paraphrases)
    for language in LANGUAGES:
        filled = [re.sub(r"\{(target_)?language\}", language, wording) for wording in wordings]
        used = set(re.findall(r"<\|[^|]*\|>", " ".join(filled)))
        assert used <= set(control_tokens())


@pytest.mark.parametrize("code", [code for code, task in TASKS.items() if task.natural])
def test_a_paraphrase_differs_from_the_canonical_wording_and_keeps_its_tag(code):
    task = TASKS[code]
    assert len({task.natural, *task.paraphrases}) == 1 + len(task.paraphrases)
    tags = [re.findall(r"<\|.*?\|>", wording) for wording in (task.natural, *task.paraphrases)]
    assert all(found == tags[0] for found in tags)


@pytest.mark.parametrize("code", TASKS)
def test_parse_reads_back_what_render_wrote(code):
    task, row = TASKS[code], labels(code)
    parsed = task.parse(task.render(row))
    assert parsed and all(parsed[field] == row[field] for field in parsed)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_answer_is_its_english_name_and_is_read_in_any_case(language):
    assert tasks.render_language({"language": language}) == LANGUAGES[language]
    assert tasks.parse_language(f" {LANGUAGES[language].upper()} ") == {"language": language}


def test_an_answer_outside_the_languages_is_none():
    assert tasks.parse_language("Klingon") == {"language": None}


def test_slots_are_written_by_name_and_intent_alone_is_a_whole_answer():
    written = tasks.render_slots({"intent": "play", "slots": {"time": "now", "artist": " abba "}})
    assert written == "play; artist: abba; time: now"
    assert tasks.parse_slots("play") == {"intent": "play", "slots": {}}
    assert tasks.render_slots({"intent": "play", "slots": {}}) == "play"


def test_a_slot_value_may_hold_a_colon_and_a_broken_pair_loses_only_itself():
    assert tasks.parse_slots("wake; time: 7:30; ; : x")["slots"] == {"time": "7:30"}


@pytest.mark.parametrize("code", TASKS)
def test_a_missing_label_is_named(code):
    for field in TASKS[code].needs:
        row = {name: value for name, value in labels(code).items() if name != field}
        assert f"`{field}`" in tasks.check(row)


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"text": "  "}, "`text` is empty"),
        ({"text": 5}, "`text` is int"),
        ({"language": "xx"}, "'xx'"),
        ({"language": ["en"]}, "`language`"),
        ({"task": "singing"}, "'singing'"),
        ({"task": ["asr"]}, "['asr']"),
        ({"task": None}, "None"),
    ],
)
def test_a_wrong_label_is_named_with_its_value(changed, named):
    assert named in tasks.check({"task": "asr", "text": "hello", "language": "en", **changed})


def test_slots_must_be_an_object():
    assert "`slots` is list" in tasks.check({"task": "sf", "intent": "play", "slots": [["time", "now"]]})


def test_a_row_without_a_task_is_told_so():
    assert tasks.check({"text": "hello"}) == "no `task` field"


def test_an_unknown_task_error_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown task 'opera'; known tasks: asr, s2tt"):
        tasks.find("opera")


def test_a_label_that_the_task_does_not_need_can_hold_anything():
    row = {"task": "sec", "text": "rain", "language": "tlh", "target_language": 3}
    assert tasks.check(row) is None
    assert tasks.fields(row)["text"] == "rain"
