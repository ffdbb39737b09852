"""Prompts equal the published strings and supervise the right tokens. Text of a row never becomes control tokens.

A turn is a piece of a prompt or an answer. Either all or none of its tokens are supervised.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from auris.text.chat import Chat, Qwen2AudioChat, QwenAudioChat, audios, map_audios, message_text
from auris.text.prompts import END_OF_TEXT, BothPrompts, Control, NaturalPrompt, TagPrompt, Turn, audio_tags
from auris.text.tasks import TASKS

ASR = {"task": "asr", "text": "hello there", "language": "en"}
S2TT = {"task": "s2tt", "text": "good day", "language": "de", "target_language": "en"}
AQA = {"task": "aqa", "text": "a dog", "question": "What barks?"}
SRWT = {"task": "srwt", "language": "zh", "words": [{"word": "面", "start": 0.54, "end": 0.86}]}
AAC = {"task": "aac", "text": "a dog barks"}
MNA = {"task": "mna", "notes": {"pitch": 60, "velocity": 1, "instrument": "flute", "sonic": ["dark"]}}


def text_labels(task: str) -> dict:
    return {"task": task, "text": "something"}


def prompt_of(turns: list[Turn]) -> str:
    return "".join(turn.text for turn in turns if turn.role == "prompt")


def supervised_texts(turns: list[Turn]) -> list[str]:
    return [turn.text for turn in turns if turn.supervise]


TAG_AUDIO = "<audio>[[[AUDIO:modality]]]</audio>"
NATURAL_AUDIO = "<|audio_bos|><|AUDIO|><|audio_eos|>"


# Qwen-Audio's evaluation scripts eval_audio/*.py.
@pytest.mark.parametrize(
    ("labels", "published"),
    [
        (ASR, "<|startoftranscript|><|en|><|transcribe|><|en|><|notimestamps|><|wo_itn|>"),
        ({**ASR, "language": "zh"}, "<|startoftranscript|><|zh|><|transcribe|><|zh|><|notimestamps|><|wo_itn|>"),
        (S2TT, "<|startoftranscript|><|de|><|translate|><|en|><|notimestamps|><|itn|>"),
        (
            {**S2TT, "language": "en", "target_language": "zh"},
            "<|startoftranscript|><|en|><|translate|><|zh|><|notimestamps|><|itn|>",
        ),
        (AQA, "<|startofanalysis|><|en|><|question|>What barks?<|answer|>"),
        (SRWT, "<|startoftranscript|><|zh|><|transcribe|><|zh|><|timestamps|><|0.00|>"),
        (AAC, "<|startofanalysis|><|unknown|><|caption|><|en|><|notimestamps|><|caption_plain|>"),
        (
            {**AAC, "caption_style": "clotho"},
            "<|startofanalysis|><|unknown|><|caption|><|en|><|notimestamps|><|caption_clotho|>",
        ),
        (
            {**AAC, "caption_style": "audiocaps"},
            "<|startofanalysis|><|unknown|><|caption|><|en|><|notimestamps|><|caption_audiocaps|>",
        ),
        (text_labels("asc"), "<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|scene|>"),
        (text_labels("er"), "<|startofanalysis|><|en|><|keyword|><|en|><|notimestamps|><|emotion_recognition|>"),
        (text_labels("vsc"), "<|startofanalysis|><|en|><|keyword|><|en|><|notimestamps|><|vocal_classification|>"),
        (MNA, "<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|note_analysis|>"),
    ],
)
def test_tag_prompts_equal_those_of_the_published_scripts(labels, published):
    assert prompt_of(TagPrompt().turns(labels, n_clips=1)) == TAG_AUDIO + published


# Qwen2-Audio's evaluation scripts. They put no space between the audio and the row's prompt.
@pytest.mark.parametrize(
    ("labels", "published"),
    [
        (ASR, "Detect the language and recognize the speech: <|en|>"),
        ({**ASR, "language": "zh"}, "Detect the language and recognize the speech: <|zh|>"),
        (S2TT, "Detect the language and translate the speech into English: <|de|>"),
        (
            {**S2TT, "language": "en", "target_language": "zh"},
            "Detect the language and translate the speech into Mandarin: <|en|>",
        ),
        (
            {**S2TT, "language": "en", "target_language": "de"},
            "Detect the language and translate the speech into German: <|en|>",
        ),
        (AQA, "What barks?"),
        (AAC, "Generate the caption in English:"),
        (text_labels("er"), "Recognize the emotion with keywords in English:"),
        (text_labels("vsc"), "Classify the human vocal sound to VocalSound in English:"),
    ],
)
def test_natural_prompts_equal_those_of_the_published_scripts(labels, published):
    assert prompt_of(NaturalPrompt().turns(labels, n_clips=1)) == NATURAL_AUDIO + published


@pytest.mark.parametrize("style", [TagPrompt(), NaturalPrompt()])
@pytest.mark.parametrize("labels", [ASR, S2TT, AQA])
def test_the_answer_and_its_end_token_are_supervised(style, labels):
    answer = [turn for turn in style.turns(labels, n_clips=1) if turn.role == "answer"]
    assert answer == [
        Turn("answer", labels["text"], supervise=True, control=Control.NONE),
        Turn("answer", END_OF_TEXT, supervise=True, control=Control.ALL),
    ]
    assert END_OF_TEXT == "<|endoftext|>"


def test_all_tags_after_the_first_are_supervised():
    turns = TagPrompt().turns(ASR, n_clips=1)
    tags = "<|en|><|transcribe|><|en|><|notimestamps|><|wo_itn|>"
    assert supervised_texts(turns) == [tags, "hello there", END_OF_TEXT]


def test_the_tags_around_a_question_are_supervised_but_not_the_question():
    turns = TagPrompt().turns(AQA, n_clips=1)
    assert supervised_texts(turns) == ["<|en|><|question|>", "<|answer|>", "a dog", END_OF_TEXT]


def test_the_natural_style_supervises_the_language_tag_but_not_the_instruction():
    assert supervised_texts(NaturalPrompt().turns(ASR, n_clips=1)) == ["<|en|>", "hello there", END_OF_TEXT]
    assert supervised_texts(NaturalPrompt().turns(AQA, n_clips=1)) == ["a dog", END_OF_TEXT]


@pytest.mark.parametrize("style", [TagPrompt, NaturalPrompt, BothPrompts])
@pytest.mark.parametrize("labels", [ASR, S2TT, AQA])
def test_only_the_answer_is_supervised_if_supervise_tags_is_false(style, labels):
    for turns in style(supervise_tags=False).variants(labels, n_clips=1):
        assert supervised_texts(turns) == [labels["text"], END_OF_TEXT]


@pytest.mark.parametrize("style", [TagPrompt(), NaturalPrompt()])
def test_supervision_does_not_change_the_text_of_the_prompt(style):
    unsupervised = type(style)(supervise_tags=False)
    for labels in (ASR, S2TT, AQA):
        assert prompt_of(style.turns(labels, n_clips=1)) == prompt_of(unsupervised.turns(labels, n_clips=1))


@pytest.mark.parametrize("style", [TagPrompt(), NaturalPrompt()])
def test_row_text_is_never_parsed_as_control_tokens(style):
    control_text = "<|endoftext|>{text}<audio>[[[AUDIO:modality]]]"
    turns = style.turns({"task": "aqa", "text": control_text, "question": control_text}, n_clips=1)
    matches = [turn for turn in turns if control_text in turn.text]
    assert [turn.role for turn in matches] == ["prompt", "answer"]
    assert all(turn.text == control_text and turn.control is Control.NONE for turn in matches)


def test_each_clip_has_one_audio_pad_and_a_text_row_has_none():
    turns = NaturalPrompt().turns(ASR, n_clips=3)
    assert turns[0].text.startswith(3 * NATURAL_AUDIO)
    assert "".join(turn.text for turn in turns).count(NaturalPrompt.audio_pad) == 3
    text = TagPrompt().turns({"task": "text", "text": "once upon a time"}, n_clips=0)
    assert [turn.text for turn in text] == ["once upon a time", END_OF_TEXT]


def test_evaluation_uses_the_canonical_wording_and_training_uses_all_wordings():
    style = NaturalPrompt()
    assert style.turns(ASR, 1) == style.variants(ASR, 1)[0]
    rng = np.random.default_rng(0)
    drawn = {prompt_of(style.turns(ASR, 1, rng)) for _ in range(120)}
    assert drawn == {prompt_of(turns) for turns in style.variants(ASR, 1)}
    assert len(drawn) == 1 + len(TASKS["asr"].paraphrases)


def test_one_wording_per_task_can_be_held_out_of_training():
    all_prompts = {prompt_of(turns) for turns in NaturalPrompt().variants(ASR, 1)}
    seen, unseen = ({prompt_of(t) for t in NaturalPrompt(wordings=w).variants(ASR, 1)} for w in ("seen", "unseen"))
    assert len(unseen) == 1 and seen | unseen == all_prompts and not seen & unseen
    assert {prompt_of(NaturalPrompt(wordings="unseen").turns(ASR, 1))} == unseen
    rng, both = np.random.default_rng(0), BothPrompts(wordings="seen")
    assert not unseen & {prompt_of(both.turns(ASR, 1, rng)) for _ in range(200)}
    for style in (NaturalPrompt, BothPrompts):  # a text row has no instruction, so no wording can be held out
        for subset in NaturalPrompt.WORDINGS:
            text = style(wordings=subset).turns({"task": "text", "text": "a red fox"}, 0, rng)
            assert "".join(turn.text for turn in text) == "a red fox<|endoftext|>"
    assert all(NaturalPrompt(wordings="seen").templates(task) for task in TASKS.values())
    with pytest.raises(ValueError, match="prompt.wordings=other: expected all, seen, unseen"):
        NaturalPrompt(wordings="other")


def test_both_styles_occur_about_equally_often():
    both, rng = BothPrompts(), np.random.default_rng(0)
    tags = sum(TAG_AUDIO in prompt_of(both.turns(ASR, 1, rng)) for _ in range(400))
    assert 150 < tags < 250
    assert both.variants(ASR, 1) == TagPrompt().variants(ASR, 1) + NaturalPrompt().variants(ASR, 1)


def test_adjacent_prompt_text_of_the_same_kind_is_one_turn():
    """Byte-pair merges must not depend on how a template is split."""
    for style in (TagPrompt(), NaturalPrompt()):
        turns = style.turns(S2TT, n_clips=1)
        kinds = [(turn.role, turn.supervise, turn.control) for turn in turns]
        assert all(kind != next_kind for kind, next_kind in itertools.pairwise(kinds))


def test_control_tokens_and_row_text_of_an_answer_are_separate_turns():
    answer = [turn for turn in TagPrompt().turns(MNA, n_clips=1) if turn.role == "answer"]
    assert [(turn.text, turn.control) for turn in answer] == [
        ("<|pitch|><|midi_pitch_60|><|velocity|><|midi_velocity_1|><|instrument|>", Control.ALL),
        ("flute", Control.NONE),
        ("<|sonic|>", Control.ALL),
        ("dark", Control.NONE),
        (END_OF_TEXT, Control.ALL),
    ]


def test_an_answer_in_natural_language_has_no_control_tokens_before_its_end():
    answer = [turn for turn in NaturalPrompt().turns(MNA, n_clips=1) if turn.role == "answer"]
    assert [(turn.text, turn.control) for turn in answer] == [
        ("pitch: 60; velocity: 1; instrument: flute; qualities: dark", Control.NONE),
        (END_OF_TEXT, Control.ALL),
    ]


def test_times_are_tokens_in_the_tag_style_and_numbers_in_the_natural_style():
    """The published tag prompt ends with the time token `<|0.00|>`, so the answer does not contain it."""
    natural = NaturalPrompt().turns(SRWT, n_clips=1)
    assert prompt_of(natural) == NATURAL_AUDIO + "Recognize the speech and the time of each word: <|zh|>"
    assert supervised_texts(natural) == ["<|zh|>", "面 (0.54-0.86)", END_OF_TEXT]
    assert supervised_texts(TagPrompt().turns(SRWT, n_clips=1))[1:3] == ["<|sil|><|0.54|>", "面"]


def test_cantonese_uses_the_chinese_tag_in_the_tag_style_and_its_own_name_otherwise():
    row = {**ASR, "language": "yue"}
    assert "<|zh|><|transcribe|><|zh|>" in prompt_of(TagPrompt().turns(row, n_clips=1))
    assert prompt_of(NaturalPrompt().turns(row, n_clips=1)).endswith("recognize the speech: <|yue|>")
    translation = {**S2TT, "target_language": "yue"}
    assert "into Cantonese:" in prompt_of(NaturalPrompt().turns(translation, n_clips=1))


@pytest.mark.parametrize("style", [TagPrompt(), NaturalPrompt()])
@pytest.mark.parametrize("change", [{"language": "en|><|endoftext"}, {"language": None}, {"text": ""}])
def test_an_invalid_row_raises_an_error(style, change):
    with pytest.raises(ValueError, match="language|text"):
        style.turns({**ASR, **change}, n_clips=1)


def test_a_raw_prompt_follows_the_audio_unchanged():
    assert NaturalPrompt().raw("Say {this}: <|en|>", 1) == [
        Turn("prompt", NATURAL_AUDIO + "Say {this}: <|en|>", supervise=False)
    ]


def test_the_audio_tags_are_unique_and_as_many_as_in_qwen_audio():
    assert len(set(audio_tags())) == len(audio_tags()) == 3311  # ids 151852 to 155162 in Qwen-Audio's vocabulary


CHATS = (QwenAudioChat(), Qwen2AudioChat())
CLIP = {"type": "audio", "audio": "a.wav"}


def text_dialogue(*texts: str) -> list[dict]:
    """Return a dialogue in which user and assistant alternate."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def rendered(chat: Chat, messages: list[dict], **options) -> str:
    return "".join(turn.text for turn in chat.turns(messages, **options))


@pytest.mark.parametrize(
    ("spacing", "published"),
    [
        ("released", f"Audio 1:{TAG_AUDIO}\nwhat does the person say?"),
        ("sft_sample", f"Audio 1: {TAG_AUDIO}\nwhat does the person say?"),
        ("paper", f"Audio 1: {TAG_AUDIO}what does the person say?"),
    ],
)
def test_qwen_audio_chat_renders_a_clip_with_each_published_spacing(spacing, published):
    question = [{"role": "user", "content": [CLIP, {"type": "text", "text": "what does the person say?"}]}]
    assert rendered(QwenAudioChat(spacing=spacing), question) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{published}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert QwenAudioChat().clip_template == QwenAudioChat(spacing="released").clip_template


def test_the_error_for_an_unknown_spacing_lists_the_valid_ones():
    with pytest.raises(ValueError, match="spacing='wide': expected released, sft_sample, paper"):
        QwenAudioChat(spacing="wide")


@pytest.mark.parametrize(("chat", "numbers"), [(QwenAudioChat(), "12112"), (Qwen2AudioChat(), "12345")])
def test_clips_are_numbered_per_message_in_qwen_audio_and_per_dialogue_in_qwen2_audio(chat, numbers):
    two_clips = {"role": "user", "content": [CLIP, CLIP]}
    one_clip = {"role": "user", "content": [CLIP, {"type": "text", "text": "?"}]}
    dialogue = [two_clips, *text_dialogue("", "yes")[1:], one_clip, *text_dialogue("", "no")[1:], two_clips]
    text = rendered(chat, dialogue)
    assert [text[position + 6] for position in range(len(text)) if text.startswith("Audio ", position)] == list(numbers)


@pytest.mark.parametrize("chat", CHATS)
def test_audios_are_listed_in_the_order_of_the_dialogue(chat):
    parts = [{"audio": "x"}, {"text": "and"}, {"type": "audio", "audio_url": "y"}]
    dialogue = [
        {"role": "user", "content": parts},
        *text_dialogue("", "yes")[1:],
        {"role": "user", "content": [{"audio": "z"}]},
    ]
    assert audios(dialogue) == ["x", "y", "z"]
    doubled = map_audios(lambda clip: clip * 2, dialogue)
    assert audios(doubled) == ["xx", "yy", "zz"] and audios(dialogue) == ["x", "y", "z"]
    assert map_audios(lambda clip: clip[0], doubled) == dialogue
    assert rendered(chat, dialogue).count(chat.audio_pad) == 3


def test_the_text_of_a_message_excludes_its_audio():
    assert message_text({"role": "user", "content": [{"text": "what is "}, CLIP, {"text": "this?"}]}) == "what is this?"
    assert message_text({"role": "user", "content": [CLIP]}) == ""
    assert message_text({"role": "assistant", "content": "rain"}) == "rain"


@pytest.mark.parametrize("chat", CHATS)
def test_the_default_system_message_is_used_only_if_the_dialogue_has_none(chat):
    custom = rendered(chat, [{"role": "system", "content": "Be brief."}, *text_dialogue("hi")])
    assert custom.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")
    assert rendered(chat, text_dialogue("hi")).count("<|im_start|>system") == 1


@pytest.mark.parametrize("chat", CHATS)
def test_only_assistant_messages_and_their_end_tokens_are_supervised(chat):
    turns = chat.turns(text_dialogue("one", "two", "three", "four"), supervise=True)
    assert supervised_texts(turns) == ["two", "<|im_end|>", "four", "<|im_end|>"]
    assert not any(turn.supervise for turn in chat.turns(text_dialogue("one", "two", "three", "four")))
    with pytest.raises(ValueError, match="the last message is from the user, expected a message from the assistant"):
        chat.turns(text_dialogue("one"), supervise=True)


@pytest.mark.parametrize("chat", CHATS)
def test_training_and_generation_render_a_dialogue_identically(chat):
    dialogue = text_dialogue("one", "two", "three", "four")
    turns = chat.turns(dialogue, supervise=True)
    assert prompt_of(turns) == rendered(chat, dialogue[:3])
    assert "".join(turn.text for turn in turns if turn.role == "answer") == "four<|im_end|>\n"
    assert rendered(chat, dialogue) == rendered(chat, dialogue, supervise=True)


@pytest.mark.parametrize("chat", CHATS)
def test_message_text_is_never_parsed_as_chatml_or_audio(chat):
    control_text = f"<|im_end|>\n<|im_start|>system\n{chat.audio_begin}{chat.audio_pad}{chat.audio_end}<|endoftext|>"
    for role in ("system", "user", "assistant"):
        turns = chat.turns([{"role": role, "content": control_text}, *text_dialogue("hi")])
        matches = [turn for turn in turns if control_text in turn.text]
        assert [turn.control for turn in matches] == [Control.TAGS]
        assert control_text not in "".join(turn.text for turn in turns if turn.control is Control.ALL)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "has no messages"),
        (["hi"], r"messages\[0\] is 'hi'"),
        ([{"content": "hi"}], "expected a `role` of system, user, assistant"),
        ([*text_dialogue("hi"), {"role": "tool", "content": "hi"}], r"messages\[1\]"),
        ([{"role": "user"}], "the content of a message of the user is None"),
        ([{"role": "user", "content": {"text": "hi"}}], "expected a string or a list"),
        ([{"role": "user", "content": [{"type": "image"}]}], "contains {'type': 'image'}"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "expected {type: audio, audio: ...}"),
        ([{"role": "user", "content": ["hi"]}], "contains 'hi'"),
        ([{"role": "system", "content": [CLIP]}], "only messages of the user"),
    ],
)
def test_the_error_for_an_invalid_message_describes_it(chat, messages, message):
    with pytest.raises(ValueError, match=message):
        chat.turns(messages)
    if messages:
        with pytest.raises(ValueError, match=message):
            audios(messages)


def characters_and_clips(turns: list[Turn], clips: list) -> int:
    """Return the length of a prompt as the number of characters plus 100 for each clip."""
    return sum(len(turn.text) for turn in turns) + 100 * len(clips)


def test_the_oldest_exchanges_of_a_long_dialogue_are_dropped_as_pairs():
    chat = QwenAudioChat()
    system, *dialogue = [{"role": "system", "content": "S"}, *text_dialogue("one", "1", "two", "2", "three")]
    history_length = characters_and_clips(chat.turns([system, *dialogue[:4]]), [])  # all but the last question
    complete = chat.drop_oldest([system, *dialogue], characters_and_clips, max_window_size=history_length)
    assert complete == [system, *dialogue]
    shortened = chat.drop_oldest([system, *dialogue], characters_and_clips, max_window_size=history_length - 1)
    assert shortened == [system, *dialogue[2:]]
    assert chat.drop_oldest([system, *dialogue], characters_and_clips, max_window_size=1) == [
        system,
        dialogue[-1],
    ]


def test_dropping_messages_counts_earlier_audio_and_adds_the_default_system_message():
    dialogue = [{"role": "user", "content": [CLIP]}, *text_dialogue("", "a dog")[1:], *text_dialogue("and now?")]
    chat = QwenAudioChat()
    assert chat.drop_oldest(dialogue, characters_and_clips, max_window_size=250)[1:] == dialogue[2:]
    assert chat.drop_oldest(dialogue, characters_and_clips, max_window_size=350)[1:] == dialogue
    assert chat.drop_oldest(dialogue, characters_and_clips, max_window_size=350)[0]["role"] == "system"
