"""The task table: every entry is usable, answers survive a round trip, unusable rows are told why."""

from __future__ import annotations

import re

import pytest

from auris import tasks
from auris.prompts import NaturalPrompt, TagPrompt
from auris.tasks import LANGUAGES, TASKS
from auris.tokenizer import control_tokens

WORDS = [{"word": "hello", "start": 0.0, "end": 0.42}, {"word": "there", "start": 0.42, "end": 1.0}]
NOTES = {"pitch": 60, "velocity": 100, "instrument": "guitar", "sonic": ["bright", "reverb"]}

LABELS = {
    "text": "the answer",
    "language": "de",
    "target_language": "en",
    "question": "what is it?",
    "intent": "alarm_set",
    "slots": {"time": "five am"},
    "words": WORDS,
    "notes": NOTES,
    "mode": "voice_chat",
    "chosen": "the answer",
    "rejected": "no answer",
}


def labels(code: str) -> dict:
    return {"task": code, **{field: LABELS[field] for field in TASKS[code].needs}}


def test_the_table_has_the_tasks_of_the_two_systems_so_far():
    published = {"asr", "srwt", "s2tt", "er", "vsc", "aac", "asc", "mna", "aqa"}  # a prompt of theirs is known
    assert set(TASKS) >= published | {"lid", "sgc", "ks", "sf", "sec", "mic"}
    assert {code for code, task in TASKS.items() if task.tags_source == "published"} == published
    assert all(task.code == code for code, task in TASKS.items())


@pytest.mark.parametrize("code", TASKS)
def test_the_labels_a_task_needs_are_all_that_its_prompts_and_answer_use(code):
    row = labels(code)
    assert tasks.check(row) is None
    for style in (TagPrompt(), NaturalPrompt()):
        for turns in style.variants(row, n_clips=1):
            assert not re.search(r"[{}]", "".join(turn.text for turn in turns))


@pytest.mark.parametrize("code", TASKS)
def test_each_tag_of_a_template_is_a_token_of_the_vocabulary(code):
    task = TASKS[code]
    wordings = (task.tags, task.natural, *task.paraphrases)
    values = [{"language": code, "target_language": code} for code in LANGUAGES]
    for value in [*values, *({"caption_style": style} for style in tasks.CAPTION_STYLES)]:
        own = tasks.closed({"task": code, "language": "en", "target_language": "en", **value})
        filled = [re.sub(r"\{(\w+)\}", lambda m, own=own: own.get(m[1], ""), wording) for wording in wordings]
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
    assert TASKS["lid"].render({"language": language}) == LANGUAGES[language]
    assert tasks.parse_language(f" {LANGUAGES[language].upper()} ") == {"language": language}


def test_an_answer_outside_the_languages_is_none():
    assert tasks.parse_language("Klingon") == {"language": None}


def test_slots_are_written_by_name_and_intent_alone_is_a_whole_answer():
    render = TASKS["sf"].render
    written = render({"intent": "play", "slots": {"time": "now", "artist": " abba "}})
    assert written == "play; artist: abba; time: now"
    assert tasks.parse_slots("play") == {"intent": "play", "slots": {}}
    assert render({"intent": "play", "slots": {}}) == "play"


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
        ({"task": "chat", "mode": "opera"}, "known modes: audio_analysis, voice_chat, text"),
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
    assert tasks.closed(row) == {}


def test_timed_words_are_written_as_published():
    """The example of Qwen-Audio's EVALUATION.md, up to its last word: the prompt ends with `<|0.00|>`."""
    spans = [("面", 0.54, 0.86), ("条", 0.86, 1.17), ("机", 1.17, 1.46)]
    row = {"words": [{"word": word, "start": start, "end": end} for word, start, end in spans]}
    written = TASKS["srwt"].write(row)
    assert "".join(written) == "<|sil|><|0.54|>面<|0.86|>条<|1.17|>机<|1.46|>"
    assert [piece for piece in written if not isinstance(piece, tasks.Tag)] == ["面", "条", "机"]


def test_a_pause_between_words_is_silence_of_its_own():
    row = {"words": [{"word": "a", "start": 0, "end": 0.5}, {"word": "b", "start": 0.75, "end": 1}]}
    assert TASKS["srwt"].render(row) == "a<|0.50|><|sil|><|0.75|>b<|1.00|>"


@pytest.mark.parametrize("opening", ["", "<|0.00|>"])
def test_timed_words_are_read_with_and_without_their_opening_time(opening):
    read = tasks.parse_words(f"{opening}<|sil|><|0.54|> hello<|0.86|>you")
    assert read == {
        "words": [{"word": "hello", "start": 0.54, "end": 0.86}, {"word": "you", "start": 0.86, "end": None}]
    }


def test_what_is_compared_of_timed_words_is_their_text():
    assert TASKS["srwt"].compared(TASKS["srwt"].render({"words": WORDS})) == "hello there"


def test_notes_are_written_in_the_published_order():
    published = "<|pitch|><|midi_pitch_60|><|velocity|><|midi_velocity_100|><|instrument|>guitar<|sonic|>bright, reverb"
    assert TASKS["mna"].render({"notes": NOTES}) == published
    assert TASKS["mna"].compared(published) == "guitar"
    without = {key: value for key, value in NOTES.items() if key != "sonic"}
    assert TASKS["mna"].render({"notes": without}) == published.partition("<|sonic|>")[0]


def test_a_broken_note_answer_is_read_as_far_as_it_goes():
    read = tasks.parse_notes("<|midi_pitch_7|> nonsense")["notes"]
    assert read == {"pitch": 7, "velocity": None, "instrument": None, "sonic": []}
    assert tasks.instrument("nonsense") == ""


def test_only_tagged_answers_hold_control_tokens():
    for code, task in TASKS.items():
        assert task.tagged == any(isinstance(piece, tasks.Tag) for piece in task.write(labels(code)))


def test_the_caption_style_is_part_of_a_tag_and_plain_where_a_row_is_silent():
    row = {"task": "aac", "text": "a dog"}
    assert tasks.closed(row)["caption_style"] == "plain"
    assert tasks.closed({**row, "caption_style": "clotho"})["caption_style"] == "clotho"
    assert "known caption styles: clotho, audiocaps, plain" in tasks.check({**row, "caption_style": "haiku"})


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "`words` is []"),
        ("hello", "`words` is 'hello'"),
        (["hello"], "`words[0]`"),
        ([{"word": "a", "start": 0.0}], "expected a list of {word, start, end}"),
        ([{"word": "a", "start": 0.0, "end": float("nan")}], "expected a list of {word, start, end}"),
        ([{"word": " ", "start": 0.0, "end": 0.1}], "not empty"),
        ([{"word": "<|endoftext|>", "start": 0.0, "end": 0.1}], "without `<`"),
        ([{"word": "a", "start": 0.2, "end": 0.1}], "one after the other"),
        ([WORDS[1], WORDS[0]], "`words[1]`"),
        ([{"word": "a", "start": 29.0, "end": 30.01}], "between 0 and 30 s"),
    ],
)
def test_unusable_timed_words_are_told_why(words, said):
    assert said in tasks.check({"task": "srwt", "language": "en", "words": words})


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"pitch": 128}, "`notes.pitch` is 128"),
        ({"pitch": True}, "`notes.pitch` is True"),
        ({"velocity": 1.5}, "`notes.velocity` is 1.5"),
        ({"instrument": ""}, "not empty"),
        ({"instrument": None}, "not empty"),
        ({"sonic": "bright"}, "`notes.sonic`"),
        ({"sonic": ["<|endoftext|>"]}, "without `<`"),
    ],
)
def test_unusable_notes_are_told_why(changed, said):
    assert said in tasks.check({"task": "mna", "notes": {**NOTES, **changed}})
    assert "`notes` is [60]" in tasks.check({"task": "mna", "notes": [60]})
