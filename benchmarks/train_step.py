"""One training step, forward and backward: auris, packed, against transformers' Qwen2-Audio, padded.

Both sides have the same weights and the same clips. The peer gets what its processor would make of them: features of
every clip padded to 30 s, rows padded to the longest, its own loss. The optimizer's step, equal on both sides, and the
front end are not part of it.

Shapes: A clips, one in each row; L samples at 16 kHz; F stored mel frames of all clips; T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from auris.audio import MAX_FRAMES, MAX_SAMPLES, SAMPLE_RATE, Geometry, frames, log_mel
from auris.data.packing import IGNORE, Sample, collate
from auris.model import llm, pooling, projector, weights
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.objectives.next_token import NextToken
from benchmarks import Comparison

# Sums of float32 in another order: a loss near 9 is rounded to 1e-6.
LIMITS = {"loss": 1e-5, "gradient": 1e-4}

N_MELS = 128  # Qwen2-Audio's
AUDIO_ID = 0  # stands where audio tokens stand; the random text has none
PROMPT = 12  # about the tokens of "Detect the language and recognize the speech:" and the marks around the audio
ANSWER_RATE = 4  # tokens of transcript for a second of speech: 150 words a minute at 1.5 tokens a word, rounded up


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of both models, and the clips: `clips` of them, evenly from the shortest to the longest, in seconds."""

    encoder_width: int
    encoder_layers: int
    encoder_heads: int
    llm_width: int
    llm_layers: int
    llm_heads: int
    llm_ffn: int
    vocab_size: int
    clips: int = 8
    shortest: float = 2.0
    longest: float = 8.0


PRESETS = {
    # The sizes of scale=tiny, with a layer less in the LLM.
    "tiny": Preset(
        encoder_width=128,
        encoder_layers=2,
        encoder_heads=4,
        llm_width=128,
        llm_layers=2,
        llm_heads=4,
        llm_ffn=384,
        vocab_size=8000,
    ),
    # 84 M parameters in the proportions of the released 8.4 B: encoder, LLM and head do about its shares of the work.
    "prop": Preset(
        encoder_width=512,
        encoder_layers=2,
        encoder_heads=8,
        llm_width=1024,
        llm_layers=5,
        llm_heads=8,
        llm_ffn=2752,
        vocab_size=6144,
    ),
}


def compare(preset: Preset) -> Comparison:
    """Both models on the same batch, and how far their losses (absolute) and gradients (relative) are apart.

    The gradient's error is the largest over all parameters of ||ours - theirs|| / ||theirs||.
    """
    torch.manual_seed(0)
    ours, theirs = _models(preset)
    waves = [
        torch.randn(int(seconds * SAMPLE_RATE))
        for seconds in np.linspace(preset.shortest, preset.longest, preset.clips)
    ]
    samples = [_sample(row, wave, ours.geometry, preset.vocab_size) for row, wave in enumerate(waves)]
    pack, inputs = collate(samples, geometry=Geometry(n_mels=N_MELS, pool=2)), _padded(samples, waves)
    objective = NextToken()

    def our_loss() -> Tensor:
        total, _ = objective(ours, pack)
        return total / objective.count(pack)

    def their_loss() -> Tensor:
        return theirs(**inputs, use_cache=False).loss  # its default would fill a cache that training has no use for

    our_step, their_step = partial(_step, ours, our_loss), partial(_step, theirs, their_loss)
    return Comparison(
        peer=f"transformers {transformers.__version__} Qwen2AudioForConditionalGeneration",
        ours=our_step,
        theirs=their_step,
        errors={"loss": abs(our_step() - their_step()), "gradient": _gradient_error(ours, theirs)},
        limits=LIMITS,
    )


def _step(model: nn.Module, loss_of: Callable[[], Tensor]) -> float:
    """Forward and backward; the gradients stay in the model."""
    model.zero_grad()
    loss = loss_of()
    loss.backward()
    return loss.item()


def _gradient_error(ours: AudioLM, theirs: Qwen2AudioForConditionalGeneration) -> float:
    released = weights.LAYOUTS["qwen2_audio"]
    expected = {released.ours(name)[0]: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert expected.keys() == dict(ours.named_parameters()).keys()
    errors = [(p.grad - expected[name]).norm() / expected[name].norm() for name, p in ours.named_parameters()]
    return torch.stack(errors).max().item()  # unlike python's max, it lets a NaN through


def _models(preset: Preset) -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    """Random weights, the same in both models."""
    text = {
        "model_type": "qwen2",
        "hidden_size": preset.llm_width,
        "intermediate_size": preset.llm_ffn,
        "num_hidden_layers": preset.llm_layers,
        "num_attention_heads": preset.llm_heads,
        "num_key_value_heads": preset.llm_heads,
        "tie_word_embeddings": False,
    }
    audio = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": N_MELS,
        "d_model": preset.encoder_width,
        "encoder_layers": preset.encoder_layers,
        "encoder_attention_heads": preset.encoder_heads,
        "encoder_ffn_dim": 4 * preset.encoder_width,
    }
    config = Qwen2AudioConfig(
        audio_config=audio,
        text_config={"vocab_size": preset.vocab_size, **text},
        audio_token_index=AUDIO_ID,
        attn_implementation="sdpa",
    )
    theirs = Qwen2AudioForConditionalGeneration(config).train()
    with torch.no_grad():  # transformers starts biases at zero, where parity could not see them
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    ours = AudioLM(
        encoder=Encoder(
            n_mels=N_MELS, width=preset.encoder_width, n_layers=preset.encoder_layers, n_heads=preset.encoder_heads
        ),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        llm=partial(llm.build_llm, text),
        vocab_size=preset.vocab_size,
    ).train()
    weights.load(ours, weights.StateTensors(theirs.state_dict()), where="transformers")
    return ours, theirs


def _sample(row: int, wave: Tensor, geometry: Geometry, vocab_size: int) -> Sample:
    """Audio, prompt and answer, the answer supervised: random tokens for a clip (L,)."""
    valid, seconds = frames(len(wave)), len(wave) / SAMPLE_RATE
    audio, answer = geometry.tokens(valid), max(1, round(ANSWER_RATE * seconds))
    text = np.random.default_rng(row).integers(AUDIO_ID + 1, vocab_size, PROMPT + answer)
    ids = np.concatenate([np.full(audio, AUDIO_ID), text])
    return Sample(
        row=row,
        ids=ids,
        supervise=np.arange(len(ids)) >= audio + PROMPT,
        audio_mask=ids == AUDIO_ID,
        mels=(log_mel(wave, geometry.n_mels),),
        frames=(valid,),
        audio_seconds=seconds,
    )


def _padded(samples: list[Sample], waves: list[Tensor]) -> dict[str, Tensor]:
    """The same rows as transformers' processor would have them, labels included (transformers shifts them itself)."""
    ids = [torch.from_numpy(sample.ids) for sample in samples]
    supervise = [torch.from_numpy(sample.supervise) for sample in samples]
    valid = torch.tensor([sample.frames for sample in samples])  # (A, 1)
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    labels = [row.where(mask, IGNORE) for row, mask in zip(ids, supervise, strict=True)]
    return {
        "input_ids": pad(ids, padding_value=1),
        "attention_mask": pad([torch.ones_like(row) for row in ids]),
        "labels": pad(labels, padding_value=IGNORE),
        "input_features": torch.stack([log_mel(F.pad(wave, (0, MAX_SAMPLES - len(wave))), N_MELS) for wave in waves]),
        "feature_attention_mask": (torch.arange(MAX_FRAMES) < valid).long(),
    }
