"""The same random model and the same random rows twice: as auris has them, and as transformers' Qwen2-Audio does.

The peer gets what its processor would make of the rows: features of every clip padded to 30 s, rows padded to the
longest. `shorten` is the one change that is made to its code.

Shapes: A clips, one in each row; L samples at 16 kHz; F stored mel frames of all clips; T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from auris.audio import MAX_FRAMES, MAX_SAMPLES, SAMPLE_RATE, Geometry, frames, log_mel, stored
from auris.data.collate import Sample
from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.pack import IGNORE
from auris.model.weights import loading
from auris.model.weights.layouts import LAYOUTS
from auris.model.weights.tensors import StateTensors
from auris.training import optim
from benchmarks import SettingError

# What is trained, by stage, in our names. Pooling has no parameters.
TRAINED = {"all": ("encoder", "projector", "llm"), "sft": ("projector", "llm"), "pretrain": ("encoder", "projector")}

# Sums of float32 in another order: a loss near 9 is rounded to 1e-6.
LIMITS = {"loss": 1e-5, "gradient": 1e-4}

N_MELS = 128  # Qwen2-Audio's
AUDIO_ID = 0  # stands where audio tokens stand; the random text has none
PROMPT = 12  # about the tokens of "Detect the language and recognize the speech:" and the marks around the audio
ANSWER_RATE = 4  # tokens of transcript for a second of speech: 150 words a minute at 1.5 tokens a word, rounded up


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of both models."""

    encoder_width: int
    encoder_layers: int
    encoder_heads: int
    llm_width: int
    llm_layers: int
    llm_heads: int
    llm_ffn: int
    vocab_size: int


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
    # Small parts under the released vocabulary, which weighs more here than it does at scale.
    "small": Preset(
        encoder_width=384,
        encoder_layers=6,
        encoder_heads=6,
        llm_width=512,
        llm_layers=6,
        llm_heads=8,
        llm_ffn=1376,
        vocab_size=156_032,
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


def step(model: nn.Module, loss_of: Callable[[], Tensor]) -> float:
    """Forward and backward; the gradients stay in the model."""
    model.zero_grad()
    loss = loss_of()
    loss.backward()
    return loss.item()


def gradient_error(ours: AudioLM, theirs: Qwen2AudioForConditionalGeneration) -> float:
    """The largest, over all trained parameters, of ||ours - theirs|| / ||theirs||."""
    expected = {_our_name(name): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    errors = [(grad - expected[name]).norm() / expected[name].norm() for name, grad in found.items()]
    return torch.stack(errors).max().item()  # unlike python's max, it lets a NaN through


def _our_name(name: str) -> str:
    return LAYOUTS["qwen2_audio"].model_names(name)[0]


def train(ours: AudioLM, theirs: Qwen2AudioForConditionalGeneration, trained: str) -> None:
    """Freeze on both sides what this stage does not train."""
    optim.freeze(ours, TRAINED[trained])
    learns = {name for name, p in ours.named_parameters() if p.requires_grad}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:  # all but the table of positions
            parameter.requires_grad_(_our_name(name) in learns)


def seconds(lengths: str) -> tuple[float, float]:
    """`lengths=2-8`: the shortest and the longest clip. Raises SettingError."""
    shortest, _, longest = lengths.partition("-")
    try:
        low, high = float(shortest), float(longest)
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 < low <= high <= MAX_SAMPLES / SAMPLE_RATE:
        raise SettingError(f"lengths={lengths}: expected seconds, from the shortest to the longest, as 2-8, at most 30")
    return low, high


def waves(lengths: str, clips: int, seed: int) -> list[Tensor]:
    """Noise: `clips` of it, evenly from the shortest to the longest. Raises SettingError."""
    if clips < 1:
        raise SettingError(f"clips={clips}: expected 1 or more")
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(int(s * SAMPLE_RATE), generator=draw) for s in np.linspace(*seconds(lengths), clips)]


def models(preset: Preset, seed: int) -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    """Random weights, the same in both models."""
    torch.manual_seed(seed)
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
    loading.load(ours, StateTensors(theirs.state_dict()), layout="qwen2_audio", label="transformers")
    return ours, theirs


def samples(clips: Sequence[Tensor], geometry: Geometry, vocab_size: int, seed: int) -> list[Sample]:
    """A row of each clip (L,): audio, prompt and answer, the answer supervised. Text is random tokens."""
    return [_sample(row, wave, geometry, vocab_size, (seed, row)) for row, wave in enumerate(clips)]


def _sample(row: int, wave: Tensor, geometry: Geometry, vocab_size: int, seed: tuple[int, int]) -> Sample:
    valid, duration = frames(len(wave)), len(wave) / SAMPLE_RATE
    audio, answer = geometry.tokens(valid), max(1, round(ANSWER_RATE * duration))
    text = np.random.default_rng(seed).integers(AUDIO_ID + 1, vocab_size, PROMPT + answer)
    ids = np.concatenate([np.full(audio, AUDIO_ID), text])
    return Sample(
        row=row,
        ids=ids,
        supervise=np.arange(len(ids)) >= audio + PROMPT,
        audio_mask=ids == AUDIO_ID,
        mels=(log_mel(wave, geometry.n_mels),),
        frames=(valid,),
        audio_seconds=duration,
        curve="asr",
    )


def padded(samples: Sequence[Sample], clips: Sequence[Tensor], *, side: str = "right") -> dict[str, Tensor]:
    """The same rows as transformers' processor would have them, labels included (transformers shifts them itself)."""
    ids = [torch.from_numpy(sample.ids) for sample in samples]
    supervise = [torch.from_numpy(sample.supervise) for sample in samples]
    valid = torch.tensor([sample.frames for sample in samples])  # (A, 1)
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    labels = [row.where(mask, IGNORE) for row, mask in zip(ids, supervise, strict=True)]
    return {
        "input_ids": pad(ids, padding_value=1),
        "attention_mask": pad([torch.ones_like(row) for row in ids]),
        "labels": pad(labels, padding_value=IGNORE),
        "input_features": torch.stack([log_mel(F.pad(wave, (0, MAX_SAMPLES - len(wave))), N_MELS) for wave in clips]),
        "feature_attention_mask": (torch.arange(MAX_FRAMES) < valid).long(),
    }


def shorten(theirs: Qwen2AudioForConditionalGeneration, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let the released encoder take features as long as the longest clip, and cut them so; its key mask it has already.

    Two frames of silence stay behind that clip, which its convolutions look at: the outputs are the same.
    """
    longest = stored(int(inputs["feature_attention_mask"].sum(1).max()))
    longest += longest % 2
    tower = theirs.model.audio_tower
    tower.config.max_source_positions = longest // 2
    tower.embed_positions = nn.Embedding.from_pretrained(tower.embed_positions.weight[: longest // 2])
    names = ("input_features", "feature_attention_mask")
    return inputs | {name: inputs[name][..., :longest].contiguous() for name in names}


def label_logps(theirs: Qwen2AudioForConditionalGeneration, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (R,) of the labels, logits computed only for these, and their rows (R,): TRL's head."""
    others = {name: value for name, value in inputs.items() if name != "labels"}
    hidden = theirs.model(**others, use_cache=False).last_hidden_state[:, :-1]
    labels = inputs["labels"][:, 1:]
    is_label = labels != IGNORE
    logits = theirs.lm_head(hidden[is_label])
    return -F.cross_entropy(logits, labels[is_label], reduction="none"), is_label.nonzero()[:, 0]
