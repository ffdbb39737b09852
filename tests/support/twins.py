"""AudioLM and transformers' Qwen2Audio with the same tiny random weights, and padded batches of the same rows."""

from __future__ import annotations

from functools import partial

import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from auris.audio import MAX_FRAMES
from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.weights import loading
from auris.model.weights.tensors import StateTensors
from support.packs import AUDIO_ID, VOCAB, Clip, Row, clips, row_ids, text

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

# Odd and even frame counts, 0.03 s, a clip without a token, 29.99 s and 30 s, rows of several clips, rows of text.
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


def build() -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    """Return both models with the same weights."""
    torch.manual_seed(0)
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "initializer_range": 0.1, **ENCODER},
        text_config={"vocab_size": VOCAB, **QWEN2},
        audio_token_index=AUDIO_ID,
        attn_implementation="sdpa",
    )
    reference = Qwen2AudioForConditionalGeneration(config).eval()
    with torch.no_grad():  # transformers initialises biases to 0, which would hide an error in them
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    net = AudioLM(
        encoder=Encoder(n_mels=16, width=32, n_layers=2, n_heads=2, ffn=48),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        llm=partial(llm.build_llm, QWEN2),
        vocab_size=VOCAB,
    ).eval()
    loading.load(net, StateTensors(reference.state_dict()), layout="qwen2_audio", label="transformers")
    return net, reference


def pad_ids(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    """Return rows of ids as transformers' padded batch with its mask."""
    ids = [torch.tensor(row) for row in rows]
    pad_sequence = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return {
        "input_ids": pad_sequence(ids),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids]),
    }


def processor_output(rows: list[Row], net: AudioLM, side: str) -> dict[str, torch.Tensor]:
    """Return the output of transformers' processor: padded ids and features padded to 30 s, with masks."""
    all_clips = clips(rows)
    return pad_ids([row_ids(row, net.geometry) for row in rows], side) | {
        "input_features": torch.stack([clip.features for clip in all_clips]),
        "feature_attention_mask": (torch.arange(MAX_FRAMES) < torch.tensor([[c.frames] for c in all_clips])).long(),
    }
