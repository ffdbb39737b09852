"""Audio marks in texts, and escaped marks, which are ordinary text."""

from __future__ import annotations

import pytest

from auris.text.audio_marks import QWEN2_AUDIO_TOKENS, QWEN_AUDIO_TOKENS, escape_marks, has_marks, split_at_marks
from auris.text.chat import Qwen2AudioChat, QwenAudioChat, escape_audio_marks
from auris.text.prompts import Control, NaturalPrompt, TagPrompt, Turn
from support.vocabularies import tokenizer

MARKS = [*QWEN_AUDIO_TOKENS, *QWEN2_AUDIO_TOKENS, "".join(QWEN_AUDIO_TOKENS), "".join(QWEN2_AUDIO_TOKENS)]


@pytest.mark.parametrize("mark", MARKS)
def test_a_backslash_makes_a_mark_ordinary_text_and_two_are_a_backslash(mark):
    assert list(split_at_marks(f"a {mark}{mark} b")) == [("text", "a "), ("mark", mark), ("mark", mark), ("text", " b")]
    assert list(split_at_marks(rf"a \{mark} b")) == [("text", "a "), ("escaped", mark), ("text", " b")]
    assert list(split_at_marks(rf"\\{mark}")) == [("text", "\\"), ("mark", mark)]
    assert list(split_at_marks(rf"\\\{mark}")) == [("text", "\\"), ("escaped", mark)]


@pytest.mark.parametrize("text", ["", "\\", r"C:\a\\b <audi\o> \<|im_start|>", "<AUDIO> <audio/> < audio>"])
def test_other_text_has_no_marks_and_keeps_its_backslashes(text):
    assert not has_marks(text) and escape_marks(text) == text
    assert "".join(piece for _, piece in split_at_marks(text)) == text


@pytest.mark.parametrize("text", [*MARKS, r"\<audio>", r"\\<audio></audio>", r"<audio>\ <|AUDIO|>", "no mark"])
def test_an_escaped_text_is_read_as_the_text_without_marks(text):
    pieces = list(split_at_marks(escape_marks(text)))
    assert "".join(piece for _, piece in pieces) == text and all(kind != "mark" for kind, _ in pieces)


def test_only_texts_of_the_user_are_escaped():
    clip = {"type": "audio", "audio": "<audio>.wav"}
    messages = [
        {"role": "system", "content": "<audio>"},
        {"role": "user", "content": "<audio>"},
        {"role": "assistant", "content": "<audio>"},
        {"role": "user", "content": [clip, {"type": "text", "text": "<audio>"}]},
    ]
    escaped = escape_audio_marks(messages)
    assert (escaped[0], escaped[2]) == (messages[0], messages[2])
    assert escaped[1] == {"role": "user", "content": r"\<audio>"}
    assert escaped[3] == {"role": "user", "content": [clip, {"type": "text", "text": r"\<audio>"}]}


CONTROL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", *QWEN_AUDIO_TOKENS, *QWEN2_AUDIO_TOKENS]


@pytest.mark.parametrize("token", CONTROL_TOKENS)
@pytest.mark.parametrize("style", [QwenAudioChat(), Qwen2AudioChat(), TagPrompt(), NaturalPrompt()])
def test_names_of_control_tokens_in_a_user_s_text_never_stand_for_audio(style, token):
    """A message of a dialogue and a question of a task row, each with one clip."""
    tok = tokenizer()
    text = f"What does {token} mean?"
    if isinstance(style, (TagPrompt, NaturalPrompt)):
        turns = style.turns({"task": "aqa", "question": text, "text": "Nothing."}, n_clips=1)
    else:
        turns = style.turns([{"role": "user", "content": [{"audio": "a.wav"}, {"text": text}]}])
    encoded = tok.encode(turns, [[tok.audio_pad_id(turns)] * 3])
    assert encoded.audio.sum() == 3
    plain_ids = tok.encode_plain(text)
    ids = encoded.ids.tolist()
    if isinstance(style, QwenAudioChat | Qwen2AudioChat) and token == TagPrompt.audio_pad:
        return  # as in the released chat models, it becomes a control token that is not audio
    assert any(tuple(ids[n : n + len(plain_ids)]) == plain_ids for n in range(len(ids)))


@pytest.mark.parametrize("style", [TagPrompt(), NaturalPrompt()])
@pytest.mark.parametrize("mark", MARKS)
def test_an_escaped_mark_of_a_raw_prompt_or_a_wording_is_ordinary_text(style, mark):
    tok = tokenizer()
    prompt = rf"What is \{mark}? <|en|>"
    expected = [
        Turn("prompt", "What is ", False),
        Turn("prompt", mark, False, Control.NONE),
        Turn("prompt", "? <|en|>", False),
    ]
    assert style.raw(prompt, 0)[-3:] == expected
    wording = style.with_wording(prompt).turns({"task": "sec", "text": "dog"}, n_clips=1)
    assert [turn for turn in wording if turn.text == mark] == [expected[1]]
    for turns in (style.raw(prompt, 1), wording):
        encoded = tok.encode(turns, [[tok.audio_pad_id(turns)] * 3])
        assert encoded.audio.sum() == 3 and tok.id("<|en|>") in encoded.ids
