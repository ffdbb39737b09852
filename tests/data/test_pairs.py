"""Preference rows: what is asked, which tokens are trained, how long a pair is, and what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auris.audio import Geometry
from auris.data.batches import pack
from auris.data.lengths import measure
from auris.data.manifests import read_manifests
from auris.data.pairs import PairSamples
from auris.data.rows import Row
from auris.errors import RowError
from auris.model.pack import IGNORE
from auris.text.chat import Chat, Qwen2AudioChat, QwenAudioChat
from support.manifests import read_row, samples_of, tokenizer, write_manifest, write_wave

CLIP = {"type": "audio", "audio": "a.wav"}
V1 = Geometry(n_mels=16, pool=2, boundary=True)
STYLES = [(Qwen2AudioChat(), Geometry(n_mels=16, pool=2)), (QwenAudioChat(), V1)]


def preference(folder: Path, messages: list[dict], **fields: Any) -> Row:
    """A row about files of 0.5 s (a.wav) and 0.2 s (b.wav)."""
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.2)):
        write_wave(folder / name, seconds)
    labels = {"chosen": "the cat sat on the mat", "rejected": "ein Hund", **fields}
    row = read_row(folder, messages=messages, task="preference", language=None, text=None, **labels)
    assert row.problem is None, row.problem
    return row


def asked(*parts: Any) -> dict:
    return {"role": "user", "content": list(parts)}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


DIALOGUES = {
    "one clip": [asked(CLIP, {"type": "text", "text": "who sat?"})],
    "a voice": [asked(CLIP)],
    "several clips and turns": [
        {"role": "system", "content": "Be brief."},
        asked(CLIP, {"type": "text", "text": "who?"}, {"type": "audio", "audio": "b.wav"}),
        assistant("the cat"),
        asked(CLIP),
    ],
    "text alone": [{"role": "user", "content": "who sat?"}],
}


@pytest.fixture(params=STYLES, ids=["v2", "v1"])
def samples(request: pytest.FixtureRequest) -> PairSamples:
    prompt, geometry = request.param
    return samples_of(PairSamples, prompt=prompt, geometry=geometry)


def ids_of(turns: list) -> list[int]:
    return tokenizer().encode(turns, []).ids.tolist()


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_both_answers_and_their_ends_are_trained_and_nothing_else(tmp_path, samples, dialogue):
    row = preference(tmp_path, DIALOGUES[dialogue])
    sample = samples.build(row, 3, epoch=0)
    end = tokenizer().id("<|im_end|>")
    chosen, rejected = ([*tokenizer().plain(row.labels[side]), end] for side in ("chosen", "rejected"))
    assert sample.row == 3
    assert sample.ids[sample.supervise].tolist() == chosen
    assert sample.rejected.tolist() == rejected
    assert sample.ids[: -len(chosen)].tolist() == samples.build(row, 3, None, prompt_only=True).ids.tolist()


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_the_prompt_of_a_pair_equals_the_prompt_of_generation(tmp_path, samples, dialogue):
    row = preference(tmp_path, DIALOGUES[dialogue])
    prompt = samples.build(row, 0, None, prompt_only=True)
    geometry = samples.geometry
    spans = [geometry.tokens(geometry.frames(n)) for n in [8000, 3200, 8000][: len(row.clips)]]
    turns = samples.prompt.turns(row.labels["messages"])
    pad = tokenizer().pad_of(turns)
    assert prompt.ids.tolist() == tokenizer().encode(turns, [[pad] * n for n in spans]).ids.tolist()
    assert prompt.rejected is None and not prompt.supervise.any()
    assert prompt.audio_mask.sum() == sum(spans) + 2 * geometry.boundary * len(spans)
    assert len(prompt.mels) == len(prompt.frames) == len(row.clips)


@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_the_planned_length_is_that_of_the_pair_in_a_pack(tmp_path, samples, dialogue):
    row = preference(tmp_path, DIALOGUES[dialogue])
    batch = pack([row], [(0, 0)], samples)
    assert samples.length(row, samples.spans(row)) == len(batch["ids"])
    assert (batch["labels"] != IGNORE).sum() == sum(
        len(tokenizer().plain(row.labels[side])) + 1 for side in ("chosen", "rejected")
    )


def test_a_dialogue_cannot_be_left_from_within_an_answer(tmp_path, samples):
    row = preference(tmp_path, DIALOGUES["text alone"], chosen="a<|im_end|>", rejected="<|im_start|>b")
    sample = samples.build(row, 0, epoch=0)
    controls = {tokenizer().id("<|im_end|>"), tokenizer().id("<|im_start|>")}
    for ids in (sample.ids[sample.supervise], sample.rejected):
        assert controls & set(ids[:-1].tolist()) == set()


def test_a_pair_brings_its_reference_if_there_is_one(tmp_path, samples):
    row = preference(tmp_path, DIALOGUES["one clip"])
    assert "reference" not in pack([row], [(0, 0)], samples)
    samples.references = {"row": (-4.5, -6.0)}
    batch = pack([row, row], [(0, 0), (1, 0)], samples)
    assert batch["reference"].tolist() == [[-4.5, -6.0]] * 2
    samples.references = {"another": (-4.5, -6.0)}
    batch = pack([row], [(0, 0)], samples)
    assert batch["rows"] == [] and "no reference log-probabilities" in batch["skipped"][0][1]


def test_a_row_that_is_no_preference_is_named(tmp_path, samples):
    write_wave(tmp_path / "a.wav", 0.5)
    chat = {"id": "chat", "messages": [*DIALOGUES["one clip"], assistant("the cat")]}
    asr = {"id": "asr", "audio": "a.wav", "task": "asr", "language": "en", "text": "a"}
    equal = {"id": "equal", "messages": DIALOGUES["one clip"], "chosen": "a", "rejected": "a"}
    good = {"id": "good", "messages": DIALOGUES["one clip"], "chosen": "a", "rejected": "b"}
    (manifest,) = read_manifests([write_manifest(tmp_path / "rows.jsonl", [chat, asr, equal, good])])
    lengths = measure([manifest], samples, tmp_path)
    assert (lengths.tokens > 0).tolist() == [False, False, False, True]
    for number, said_of in (
        (0, "task 'chat' is not a preference"),
        (1, "task 'asr' is not a preference"),
        (2, "equal"),
    ):
        assert said_of in lengths.problems[number]
    with pytest.raises(RowError, match="is not a preference, expected .* for data.view=pair"):
        samples.length(manifest.rows[1], [12])


def test_the_view_is_written_in_chat_styles():
    assert PairSamples.styles == (Chat,)


def test_a_pair_is_the_same_in_every_epoch(tmp_path, samples):
    row = preference(tmp_path, DIALOGUES["several clips and turns"])
    first, later = (samples.build(row, 0, epoch) for epoch in (0, 7))
    np.testing.assert_array_equal(first.ids, later.ids)
    assert all((a == b).all() for a, b in zip(first.mels, later.mels, strict=True))
