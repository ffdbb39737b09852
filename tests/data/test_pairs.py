"""Tests of preference pairs: prompt, supervised tokens, planned length, and rows that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auris.audio import Geometry
from auris.data.batches import build_pack
from auris.data.lengths import measure_lengths
from auris.data.manifests import read_manifests
from auris.data.pairs import PairSamples
from auris.data.rows import Row
from auris.errors import RowError
from auris.model.pack import IGNORE
from auris.text.chat import Chat, Qwen2AudioChat, QwenAudioChat
from support.manifests import make_sample_builder, read_row, tokenizer, write_manifest, write_wave

CLIP = {"type": "audio", "audio": "a.wav"}
V1 = Geometry(n_mels=16, pool=2, boundary=True)  # Qwen-Audio: learned vectors at the begin and end of each clip
STYLES = [(Qwen2AudioChat(), Geometry(n_mels=16, pool=2)), (QwenAudioChat(), V1)]


def preference(folder: Path, messages: list[dict], **fields: Any) -> Row:
    """Return a preference row. Its messages may name a.wav (0.5 s) and b.wav (0.2 s)."""
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.2)):
        write_wave(folder / name, seconds)
    labels = {"chosen": "the cat sat on the mat", "rejected": "ein Hund", **fields}
    row = read_row(folder, messages=messages, task="preference", language=None, text=None, **labels)
    assert row.problem is None, row.problem
    return row


def user(*parts: Any) -> dict:
    return {"role": "user", "content": list(parts)}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


DIALOGUES = {
    "one clip": [user(CLIP, {"type": "text", "text": "who sat?"})],
    "audio only": [user(CLIP)],
    "several clips and turns": [
        {"role": "system", "content": "Be brief."},
        user(CLIP, {"type": "text", "text": "who?"}, {"type": "audio", "audio": "b.wav"}),
        assistant("the cat"),
        user(CLIP),
    ],
    "text only": [{"role": "user", "content": "who sat?"}],
}


@pytest.fixture(params=STYLES, ids=["v2", "v1"])
def samples(request: pytest.FixtureRequest) -> PairSamples:
    prompt, geometry = request.param
    return make_sample_builder(PairSamples, prompt=prompt, geometry=geometry)


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_only_the_two_answers_and_their_end_tokens_are_supervised(tmp_path, samples, dialogue):
    row = preference(tmp_path, DIALOGUES[dialogue])
    sample = samples.build(row, 3, epoch=0)
    end = tokenizer().id("<|im_end|>")
    chosen, rejected = ([*tokenizer().encode_plain(row.labels[side]), end] for side in ("chosen", "rejected"))
    assert sample.row == 3
    assert sample.ids[sample.supervise].tolist() == chosen
    assert sample.rejected.tolist() == rejected
    assert sample.ids[: -len(chosen)].tolist() == samples.build(row, 3, None, prompt_only=True).ids.tolist()


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_the_prompt_only_sample_is_the_encoded_dialogue(tmp_path, samples, dialogue):
    row = preference(tmp_path, DIALOGUES[dialogue])
    prompt = samples.build(row, 0, None, prompt_only=True)
    geometry = samples.geometry
    n_audio_tokens = [geometry.n_tokens(geometry.n_frames(n)) for n in [8000, 3200, 8000][: len(row.clips)]]
    turns = samples.prompt.turns(row.labels["messages"])
    pad = tokenizer().audio_pad_id(turns)
    assert prompt.ids.tolist() == tokenizer().encode(turns, [[pad] * n for n in n_audio_tokens]).ids.tolist()
    assert prompt.rejected is None and not prompt.supervise.any()
    assert prompt.audio_mask.sum() == sum(n_audio_tokens) + 2 * geometry.boundary * len(n_audio_tokens)
    assert len(prompt.mels) == len(prompt.frames) == len(row.clips)


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_the_planned_length_equals_the_length_in_a_pack(tmp_path, samples, dialogue):
    row = preference(tmp_path, DIALOGUES[dialogue])
    batch = build_pack([row], [(0, 0)], samples)
    assert samples.max_length(row, samples.audio_lengths(row)) == len(batch["ids"])
    assert (batch["labels"] != IGNORE).sum() == sum(
        len(tokenizer().encode_plain(row.labels[side])) + 1 for side in ("chosen", "rejected")
    )


def test_control_tokens_in_an_answer_are_encoded_as_text(tmp_path, samples):
    row = preference(tmp_path, DIALOGUES["text only"], chosen="a<|im_end|>", rejected="<|im_start|>b")
    sample = samples.build(row, 0, epoch=0)
    controls = {tokenizer().id("<|im_end|>"), tokenizer().id("<|im_start|>")}
    for ids in (sample.ids[sample.supervise], sample.rejected):
        assert controls & set(ids[:-1].tolist()) == set()


def test_a_pack_has_reference_log_probabilities_if_the_samples_have_them(tmp_path, samples):
    row = preference(tmp_path, DIALOGUES["one clip"])
    assert "reference" not in build_pack([row], [(0, 0)], samples)
    samples.references = {"row": (-4.5, -6.0)}
    batch = build_pack([row, row], [(0, 0), (1, 0)], samples)
    assert batch["reference"].tolist() == [[-4.5, -6.0]] * 2
    samples.references = {"another": (-4.5, -6.0)}
    batch = build_pack([row], [(0, 0)], samples)
    assert batch["rows"] == [] and "no reference log-probabilities" in batch["skipped"][0][1]


def test_a_row_that_is_not_a_preference_is_an_error(tmp_path, samples):
    write_wave(tmp_path / "a.wav", 0.5)
    chat = {"id": "chat", "messages": [*DIALOGUES["one clip"], assistant("the cat")]}
    asr = {"id": "asr", "audio": "a.wav", "task": "asr", "language": "en", "text": "a"}
    equal = {"id": "equal", "messages": DIALOGUES["one clip"], "chosen": "a", "rejected": "a"}
    good = {"id": "good", "messages": DIALOGUES["one clip"], "chosen": "a", "rejected": "b"}
    (manifest,) = read_manifests([write_manifest(tmp_path / "rows.jsonl", [chat, asr, equal, good])])
    lengths = measure_lengths([manifest], samples, tmp_path)
    assert (lengths.tokens > 0).tolist() == [False, False, False, True]
    for number, message in (
        (0, "task 'chat' is not a preference"),
        (1, "task 'asr' is not a preference"),
        (2, "equal"),
    ):
        assert message in lengths.problems[number]
    with pytest.raises(RowError, match="is not a preference, expected .* for data.view=pair"):
        samples.max_length(manifest.rows[1], [12])


def test_pair_samples_require_a_chat_prompt():
    assert PairSamples.styles == (Chat,)


def test_a_pair_is_the_same_in_every_epoch(tmp_path, samples):
    row = preference(tmp_path, DIALOGUES["several clips and turns"])
    first, later = (samples.build(row, 0, epoch) for epoch in (0, 7))
    np.testing.assert_array_equal(first.ids, later.ids)
    assert all((a == b).all() for a, b in zip(first.mels, later.mels, strict=True))
