"""Tokens and dialogues of both released systems: golden ids of Qwen-Audio, and transformers' Qwen2AudioProcessor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

from auris.text.chat import Chat, Qwen2AudioChat, QwenAudioChat, audios
from auris.text.prompts import Control, NaturalPrompt, TagPrompt, Turn
from auris.text.tokenizer import Tokenizer
from support.manifests import tokenizer
from support.vocabularies import qwen2_audio


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> Path:
    return shared_data / "golden/qwen_audio_v1"


@pytest.fixture(scope="module")
def qwen_audio(golden: Path) -> Tokenizer:
    """Return the released vocabulary of Qwen-Audio."""
    return Tokenizer.load(golden, audio_pads=())


def read_lines(path: Path, *kinds: str) -> list[dict[str, Any]]:
    all_lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    matches = [line for line in all_lines if not kinds or line["kind"] in kinds]
    assert matches
    return matches


def ids_of(tok: Tokenizer, turns: list[Turn], spans: list[int]) -> list[int]:
    """Return the ids of turns whose k-th clip has `spans[k]` audio tokens."""
    return tok.encode(turns, [[tok.audio_pad_id(turns)] * n for n in spans]).ids.tolist()


def test_the_released_vocabulary_has_its_size(qwen_audio):
    assert (qwen_audio.size, qwen_audio.n_text, qwen_audio.end) == (155165, 151643, 151643)
    assert qwen_audio.id("[[[AUDIO:modality]]]") == 151851
    assert (qwen_audio.id("<audio>"), qwen_audio.id("</audio>")) == (155163, 155164)


@pytest.mark.parametrize(
    ("key", "control"),
    [("ids", Control.ALL), ("ids_audio_tags_only", Control.TAGS), ("ids_no_special", Control.NONE)],
)
def test_every_golden_string_has_the_released_ids(qwen_audio, golden, key, control):
    matches = [line for line in read_lines(golden / "tokenizer.jsonl", "encode") if key in line]
    assert len(matches) > 50
    for line in matches:
        assert list(qwen_audio.ids(line["text"], control)) == line[key], line["text"][:100]


def test_decoding_equals_that_of_the_released_tokenizer(qwen_audio, golden):
    for line in read_lines(golden / "tokenizer.jsonl", "encode", "decode"):
        assert qwen_audio.decode(line["ids"], keep_control_tokens=True) == line["decoded"]
        assert qwen_audio.decode(line["ids"]) == line["decoded_skip_special"]


def test_audio_spans_have_the_released_ids(qwen_audio, golden):
    """A released span counts its begin and end token. Our pad token replaces the path between these two."""
    for line in read_lines(golden / "tokenizer.jsonl", "encode_audio"):
        text = line["text"]
        for url in line["audio_urls"]:
            text = text.replace(f"<audio>{url}</audio>", f"<audio>{TagPrompt.audio_pad}</audio>", 1)
        spans = [n - 2 for n in line["audio_span_tokens"]]
        assert ids_of(qwen_audio, TagPrompt().raw(text, n_clips=0), spans) == line["ids"]


def dialogue(line: dict[str, Any]) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": line["system"]}]
    for question, answer in [*line["history_list"], (line["query_list"], None)]:
        messages.append({"role": "user", "content": question})
        messages += [{"role": "assistant", "content": answer}] if answer is not None else []
    return messages


def test_dialogues_have_the_released_ids(qwen_audio, golden):
    """The golden contexts include history windows that drop the oldest exchanges."""
    chat = QwenAudioChat()
    golden_lines = read_lines(golden / "chat.jsonl")
    span_tokens = {
        url: n for line in golden_lines for url, n in zip(line["audio_urls"], line["audio_span_tokens"], strict=True)
    }
    for line in golden_lines:

        def length(turns: list[Turn], clips: list[str]) -> int:
            return len(ids_of(qwen_audio, turns, [span_tokens[clip] - 2 for clip in clips]))

        recent = chat.drop_oldest(dialogue(line), length, max_window_size=line["max_window_size"])
        turns, clips = chat.turns(recent), audios(recent)
        assert clips == line["audio_urls"], line["name"]
        assert ids_of(qwen_audio, turns, [n - 2 for n in line["audio_span_tokens"]]) == line["ids"], line["name"]
        text = "".join(turn.text for turn in turns)
        for clip in clips:
            text = text.replace(TagPrompt.audio_pad, clip, 1)
        assert text == line["raw_text"], line["name"]


@pytest.mark.parametrize("text", ["\n\nhi", " hi", "\n", ""])
def test_role_and_content_of_a_message_are_tokenised_separately(qwen_audio, text):
    """The released `make_context` joins the ids of the role, a line end and the content."""
    begin, line_end, end = qwen_audio.id("<|im_start|>"), *qwen_audio.encode_plain("\n"), qwen_audio.id("<|im_end|>")
    message = [begin, *qwen_audio.encode_plain("user"), line_end, *qwen_audio.encode_plain(text), end, line_end]
    answer = [begin, *qwen_audio.encode_plain("assistant"), line_end]
    ids = ids_of(qwen_audio, QwenAudioChat().turns([{"role": "user", "content": text}]), [])
    assert ids[-len(message + answer) :] == message + answer


def test_a_reply_ends_at_the_released_stop_words(qwen_audio, golden):
    stop = {qwen_audio.id(word) for word in QwenAudioChat.stop}
    for line in read_lines(golden / "chat.jsonl"):
        end = next(n for n, token in enumerate(line["reply_ids"]) if token in stop)
        assert qwen_audio.decode(line["reply_ids"][:end]) == line["decode_tokens"]


CLIPS = {"short.wav": 4_000, "long.wav": 23_456}  # samples


def user(*parts: str) -> dict[str, Any]:
    """Return a user message. Names of clips become audio."""
    kinds = ({"type": "audio", "audio": p} if p in CLIPS else {"type": "text", "text": p} for p in parts)
    return {"role": "user", "content": list(kinds)}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


DIALOGUES = {
    "voice chat": [user("long.wav"), assistant("The cat sat."), user("short.wav")],
    "audio analysis": [user("long.wav", "What's that sound?")],
    "text first": [user("Listen first.\n", "short.wav", "and then")],
    "two clips": [user("short.wav", "long.wav", "which?"), assistant("the second"), user("long.wav", "\n\nsure?")],
    "own system": [{"role": "system", "content": "Be\nbrief."}, user("short.wav")],
    "plain strings": [
        {"role": "user", "content": " the cat "},
        assistant("\n\nsat 猫"),
        {"role": "user", "content": ""},
    ],
    "two questions": [user("one"), user("short.wav", "two")],
    "ends with an answer": [user("short.wav"), assistant(" ein Hund")],
}


@pytest.fixture(scope="module")
def processor() -> Qwen2AudioProcessor:
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), qwen2_audio())


def process(processor: Qwen2AudioProcessor, text: str, clips: list[str]) -> tuple[list[int], list[int]]:
    """Return the ids of transformers, and the number of audio tokens of each clip."""
    waves = [np.zeros(CLIPS[clip], dtype=np.float32) for clip in clips]
    batch = processor(text=text, **({"audio": waves, "sampling_rate": 16_000} if waves else {}))
    frames = np.sum(batch["feature_attention_mask"], axis=-1) if waves else []
    return np.ravel(batch["input_ids"]).tolist(), [int(((n - 1) // 2 + 1 - 2) // 2 + 1) for n in frames]


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogues_are_rendered_as_by_the_chat_template_of_the_processor(processor, name):
    messages, chat = DIALOGUES[name], Qwen2AudioChat()
    ends_with_question = messages[-1]["role"] == "user"
    text = processor.apply_chat_template(messages, add_generation_prompt=ends_with_question, tokenize=False)
    turns, tok = chat.turns(messages), Tokenizer(qwen2_audio())
    assert "".join(turn.text for turn in turns) == text
    expected, spans = process(processor, text, audios(messages))
    assert ids_of(tok, turns, spans) == expected


@pytest.mark.parametrize("chat", [QwenAudioChat(), Qwen2AudioChat()])
def test_training_and_inference_have_the_same_tokens(chat: Chat):
    """Supervised answers are separate turns, as in generation. This must not change the tokens."""
    messages = [user("one"), assistant("the cat sat"), user("two"), assistant("on the mat")]
    supervised, unsupervised = (ids_of(tokenizer(), chat.turns(messages, supervise=s), []) for s in (True, False))
    assert supervised == unsupervised


@pytest.mark.parametrize("prompt", ["Detect the language and recognize the speech: <|en|>", "the cat", ""])
def test_raw_prompts_equal_those_of_the_processor(processor, prompt):
    turns = NaturalPrompt().raw(prompt, n_clips=2)
    expected, spans = process(processor, "".join(turn.text for turn in turns), ["short.wav", "long.wav"])
    assert ids_of(Tokenizer(qwen2_audio()), turns, spans) == expected


def test_a_rows_prompt_equals_that_of_the_processor(processor):
    row = {"task": "asr", "text": "the cat", "language": "en"}
    turns = [turn for turn in NaturalPrompt().turns(row, n_clips=1) if turn.role == "prompt"]
    text = "<|audio_bos|><|AUDIO|><|audio_eos|>Detect the language and recognize the speech: <|en|>"
    expected, spans = process(processor, text, ["short.wav"])
    assert ids_of(Tokenizer(qwen2_audio()), turns, spans) == expected
