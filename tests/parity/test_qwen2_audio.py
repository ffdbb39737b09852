"""AudioLM, packed, against transformers' Qwen2AudioForConditionalGeneration, padded: the same function."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from packs import AUDIO_ID, VOCAB, Clip, Row, clips, expand, pack, text
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from auris.audio import MAX_FRAMES
from auris.data.packing import IGNORE
from auris.model import llm, pooling, projector, weights
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.generation import Generation

QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,  # wide enough that greedy answers differ from row to row
    "max_position_embeddings": 4096,
}
ENCODER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": 16}

# Odd and even frame counts, 0.03 s, a clip of no token at all, 29.99 s and 30 s, several clips in a row, text alone.
BATCHES: dict[str, list[Row]] = {
    "one clip a row": [[text(3), Clip(37), text(4)], [text(5), Clip(398), text(9)], [Clip(101), text(2)]],
    "several clips": [
        [text(2), Clip(64), text(3), Clip(3), text(1), Clip(77), text(6)],
        [Clip(250), Clip(51), text(4)],
        [text(4), Clip(1), text(2), Clip(9), text(3)],
    ],
    "with text alone": [[text(11)], [text(2), Clip(90), text(8)], [text(6)]],
    "to 30 s": [[text(2), Clip(2999), text(3)], [Clip(3000), text(7)], [text(3), Clip(35), text(4)]],
}


@pytest.fixture(scope="module")
def models() -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    torch.manual_seed(0)
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "initializer_range": 0.1, **ENCODER},
        text_config={"vocab_size": VOCAB, **QWEN2},
        audio_token_index=AUDIO_ID,
        attn_implementation="sdpa",
    )
    theirs = Qwen2AudioForConditionalGeneration(config).eval()
    with torch.no_grad():  # transformers starts biases at zero: let parity see them
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    ours = AudioLM(
        encoder=Encoder(n_mels=16, width=32, n_layers=2, n_heads=2, ffn=48),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        llm=partial(llm.build_llm, QWEN2),
        vocab_size=VOCAB,
    ).eval()
    weights.load(ours, weights.StateTensors(theirs.state_dict()), where="transformers")
    return ours, theirs


@pytest.fixture(params=BATCHES)
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return BATCHES[request.param]


def padded(rows: list[Row], net: AudioLM, side: str) -> dict[str, torch.Tensor]:
    """What transformers' processor would make: padded ids and mask, features and mask of all clips at 30 s."""
    ids = [torch.tensor(expand(row, net.geometry)) for row in rows]
    audio = clips(rows)
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return {
        "input_ids": pad(ids),
        "attention_mask": pad([torch.ones_like(row) for row in ids]),
        "input_features": torch.stack([clip.mel for clip in audio]),
        "feature_attention_mask": (torch.arange(MAX_FRAMES) < torch.tensor([[c.frames] for c in audio])).long(),
    }


def padded_labels(batch: dict, like: torch.Tensor) -> torch.Tensor:
    """Our shifted, packed labels as transformers' unshifted, padded ones."""
    labels = torch.full_like(like, IGNORE)
    for row, part in zip(labels, batch["labels"].split(batch["cu_seqlens"].diff().tolist()), strict=True):
        row[1 : len(part)] = part[:-1]
    return labels


@torch.no_grad()
def test_logits_are_equal_at_every_valid_position(models: tuple, rows: list[Row]) -> None:
    ours, theirs = models
    inputs = padded(rows, ours, "right")
    expected = theirs(**inputs).logits[inputs["attention_mask"].bool()]
    torch.testing.assert_close(ours.logits(pack(rows, ours.geometry)), expected, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_equal(models: tuple, rows: list[Row]) -> None:
    ours, theirs = models
    ours.zero_grad()
    theirs.zero_grad()
    batch = pack(rows, ours.geometry)
    scored = batch["labels"] != IGNORE
    loss = F.cross_entropy(ours.head(ours(batch)[scored]), batch["labels"][scored])
    inputs = padded(rows, ours, "right")
    expected = theirs(**inputs, labels=padded_labels(batch, inputs["input_ids"])).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)

    loss.backward()
    expected.backward()
    released = weights.LAYOUTS["qwen2_audio"]
    grads = {released.ours(name)[0]: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert grads.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - grads[name]).norm() / grads[name].norm()
        assert grads[name].any() and error <= 1e-4, (name, error)


@torch.no_grad()
def test_greedy_tokens_are_those_of_generate(models: tuple, rows: list[Row]) -> None:
    ours, theirs = models
    batch, inputs = pack(rows, ours.geometry), padded(rows, ours, "left")
    settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 16}
    prompt = inputs["input_ids"].shape[1]

    free = theirs.generate(**inputs, **settings, eos_token_id=None)[:, prompt:].tolist()
    assert [len(row) for row in free] == [16] * len(rows) and len({tuple(row) for row in free}) > 1
    assert ours.generate(batch, Generation(max_new_tokens=16)) == free

    stop = [free[0][5], free[-1][12]]
    kept = theirs.generate(**inputs, **settings, eos_token_id=stop, min_new_tokens=3)[:, prompt:].tolist()
    kept = [row[: next((i for i, token in enumerate(row) if token in stop), None)] for row in kept]
    assert ours.generate(batch, Generation(max_new_tokens=16, stop=frozenset(stop), min_new_tokens=3)) == kept
