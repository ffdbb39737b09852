"""The same random model and the same random rows for both sides: auris, and Qwen2-Audio of transformers.

The weights of preset `base` are those of Whisper base and SmolLM2-135M-Instruct if the variable WEIGHTS names their
directories.

The peer receives the rows as its processor would prepare them: the features of every clip are padded to 30 s, and rows
are padded to the longest. `shorten` makes the only change to the peer's model.

Shapes: A clips, one in each row; L samples at 16 kHz; T tokens of a row; R labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from auris.audio import MAX_FRAMES, MAX_SAMPLES, SAMPLE_RATE, Geometry, log_mel, n_frames, n_frames_with_padding
from auris.data.collate import Sample
from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.pack import IGNORE
from auris.model.weights import loading
from auris.model.weights.identify import identify
from auris.model.weights.layouts import LAYOUTS
from auris.model.weights.tensors import StateTensors
from auris.training import optim
from benchmarks import SettingError

# Name of the environment variable with the directories of encoder and LLM for preset `base`: ENCODER:LLM.
WEIGHTS = "BENCHMARK_WEIGHTS"

# Trained parts of each stage, by their names in auris. Pooling has no parameters.
TRAINED = {"all": ("encoder", "projector", "llm"), "sft": ("projector", "llm"), "pretrain": ("encoder", "projector")}

# Largest differences between the sides, absolute for the loss and relative for the gradients. The sides add numbers in
# different orders. A loss near 9 is rounded to 1e-6 in float32, and its products to 0.4 % in bf16.
LIMITS = {"float32": {"loss": 1e-5, "gradient": 1e-4}, "bf16": {"loss": 5e-2, "gradient": 1e-1}}

AUDIO_ID = 0  # id at the positions of audio tokens; does not occur in the random text
# Number of tokens of a prompt such as "Detect the language and recognize the speech:", with begin and end of audio.
PROMPT_TOKENS = 12
ANSWER_RATE = 4  # transcript tokens per second of speech: 150 words per minute with 1.5 tokens per word, rounded up


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of both models."""

    encoder_width: int
    encoder_layers: int
    encoder_heads: int
    llm_width: int
    llm_layers: int
    llm_heads: int
    llm_kv_heads: int
    llm_ffn: int
    vocab_size: int
    llm_type: str = "qwen2"
    n_mels: int = 128  # as in Qwen2-Audio
    has_tied_head: bool = False
    llm_settings: Mapping[str, float] = field(default_factory=dict)
    has_weights: bool = False  # whether there are real weights of these sizes


PRESETS = {
    # The sizes of scale=tiny, with one layer less in the LLM.
    "tiny": Preset(
        encoder_width=128,
        encoder_layers=2,
        encoder_heads=4,
        llm_width=128,
        llm_layers=2,
        llm_heads=4,
        llm_kv_heads=4,
        llm_ffn=384,
        vocab_size=8000,
    ),
    # Small parts with the released vocabulary, whose share of the work is larger than in the released model.
    "small": Preset(
        encoder_width=384,
        encoder_layers=6,
        encoder_heads=6,
        llm_width=512,
        llm_layers=6,
        llm_heads=8,
        llm_kv_heads=8,
        llm_ffn=1376,
        vocab_size=156_032,
    ),
    # 84 M parameters. Encoder, LLM and head have about the same shares of the work as in the released model of 8.4 B.
    "prop": Preset(
        encoder_width=512,
        encoder_layers=2,
        encoder_heads=8,
        llm_width=1024,
        llm_layers=5,
        llm_heads=8,
        llm_kv_heads=8,
        llm_ffn=2752,
        vocab_size=6144,
    ),
    # The encoder of Whisper base and SmolLM2-135M, which `scale=base` trains.
    "base": Preset(
        encoder_width=512,
        encoder_layers=6,
        encoder_heads=8,
        llm_width=576,
        llm_layers=30,
        llm_heads=9,
        llm_kv_heads=3,
        llm_ffn=1536,
        vocab_size=49_152,
        llm_type="llama",
        n_mels=80,
        has_tied_head=True,
        llm_settings={"rope_theta": 100_000.0, "rms_norm_eps": 1e-5},
        has_weights=True,
    ),
}


def computing_in(precision: str) -> AbstractContextManager:
    """Return a context in which models compute in float32 or, as with `trainer.precision=bf16-mixed`, in bf16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def step(model: nn.Module, compute_loss: Callable[[], Tensor], precision: str = "float32") -> float:
    """Run forward and backward, and return the loss. The gradients stay in the model."""
    model.zero_grad()
    with computing_in(precision):
        loss = compute_loss()
    loss.backward()
    return loss.item()


def gradient_error(net: AudioLM, peer_net: Qwen2AudioForConditionalGeneration) -> float:
    """Return the largest relative error ||actual - expected|| / ||expected|| of the gradients of trained parameters."""
    expected = {_auris_name(name): p.grad for name, p in peer_net.named_parameters() if p.requires_grad}
    actual = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    assert expected.keys() == actual.keys(), expected.keys() ^ actual.keys()
    errors = [(grad - expected[name]).norm() / expected[name].norm() for name, grad in actual.items()]
    return torch.stack(errors).max().item()  # unlike max of Python, it returns NaN if any error is NaN


def _auris_name(name: str) -> str:
    """Return the name of a parameter of transformers in auris."""
    return LAYOUTS["qwen2_audio"].model_names(name)[0]


def freeze_untrained(net: AudioLM, peer_net: Qwen2AudioForConditionalGeneration, trained: str) -> None:
    """Freeze the parts that a stage does not train, on both sides."""
    optim.freeze(net, TRAINED[trained])
    trainable = {name for name, p in net.named_parameters() if p.requires_grad}
    for name, parameter in peer_net.named_parameters():
        if parameter.requires_grad:  # position embeddings are never trained
            parameter.requires_grad_(_auris_name(name) in trainable)


def parse_lengths(lengths: str) -> tuple[float, float]:
    """Parse the seconds of the shortest and the longest clip, such as `2-8`. Raise SettingError if they are invalid."""
    shortest, _, longest = lengths.partition("-")
    try:
        low, high = float(shortest), float(longest)
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 < low <= high <= MAX_SAMPLES / SAMPLE_RATE:
        raise SettingError(f"lengths={lengths}: expected seconds of the shortest and longest clip, as 2-8, at most 30")
    return low, high


def waves(lengths: str, clips: int, seed: int) -> list[Tensor]:
    """Return clips of noise whose durations are evenly spaced in `lengths`. Raise SettingError if one is invalid."""
    if clips < 1:
        raise SettingError(f"clips={clips}: expected 1 or more")
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(int(s * SAMPLE_RATE), generator=draw) for s in np.linspace(*parse_lengths(lengths), clips)]


def models(preset: Preset, seed: int) -> tuple[AudioLM, Qwen2AudioForConditionalGeneration]:
    """Return both models with the same weights: random ones, or those of `WEIGHTS`."""
    torch.manual_seed(seed)
    text = {
        "model_type": preset.llm_type,
        "hidden_size": preset.llm_width,
        "intermediate_size": preset.llm_ffn,
        "num_hidden_layers": preset.llm_layers,
        "num_attention_heads": preset.llm_heads,
        "num_key_value_heads": preset.llm_kv_heads,
        "tie_word_embeddings": preset.has_tied_head,
        **preset.llm_settings,
    }
    audio = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": preset.n_mels,
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
    peer_net = Qwen2AudioForConditionalGeneration(config).train()
    if preset.has_tied_head:  # transformers ties the head of this class only if it loads a checkpoint
        peer_net.lm_head.weight = peer_net.get_input_embeddings().weight
    with torch.no_grad():  # transformers initialises biases with zero, which would hide an error in them
        for name, parameter in peer_net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    net = AudioLM(
        encoder=Encoder(
            n_mels=preset.n_mels,
            width=preset.encoder_width,
            n_layers=preset.encoder_layers,
            n_heads=preset.encoder_heads,
        ),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        llm=partial(llm.build_llm, text),
        vocab_size=preset.vocab_size,
    ).train()
    loading.load(net, StateTensors(peer_net.state_dict()), layout="qwen2_audio", label="transformers")
    if preset.has_weights and (paths := os.environ.get(WEIGHTS)):
        _load_weights(net, peer_net, paths)
    return net, peer_net


def _load_weights(net: AudioLM, peer_net: Qwen2AudioForConditionalGeneration, paths: str) -> None:
    """Load the encoder and the LLM of two directories, `ENCODER:LLM`, into both models."""
    if paths.count(os.pathsep) != 1:
        raise SettingError(f"{WEIGHTS}={paths}: expected ENCODER{os.pathsep}LLM")
    for part, path in zip(("encoder", "llm"), paths.split(os.pathsep), strict=True):
        source = identify(path)
        loading.load(net, source.open_tensors(), layout=source.layout, parts=[part], label=path)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        for name, parameter in peer_net.named_parameters():
            parameter.copy_(tensors[_auris_name(name)])
    print(f"  weights: {paths}")


def samples(clips: Sequence[Tensor], geometry: Geometry, vocab_size: int, seed: int) -> list[Sample]:
    """Return one row per clip (L,): audio, a prompt and a supervised answer, both of random tokens."""
    return [_sample(row, wave, geometry, vocab_size, (seed, row)) for row, wave in enumerate(clips)]


def _sample(row: int, wave: Tensor, geometry: Geometry, vocab_size: int, seed: tuple[int, int]) -> Sample:
    frames, duration = n_frames(len(wave)), len(wave) / SAMPLE_RATE
    n_audio_tokens, n_answer_tokens = geometry.n_tokens(frames), max(1, round(ANSWER_RATE * duration))
    text = np.random.default_rng(seed).integers(AUDIO_ID + 1, vocab_size, PROMPT_TOKENS + n_answer_tokens)
    ids = np.concatenate([np.full(n_audio_tokens, AUDIO_ID), text])
    return Sample(
        row=row,
        ids=ids,
        supervise=np.arange(len(ids)) >= n_audio_tokens + PROMPT_TOKENS,
        audio_mask=ids == AUDIO_ID,
        mels=(log_mel(wave, geometry.n_mels),),
        frames=(frames,),
        audio_seconds=duration,
        loss_curve="asr",
    )


def padded(
    samples: Sequence[Sample], clips: Sequence[Tensor], n_mels: int, *, side: str = "right"
) -> dict[str, Tensor]:
    """Return the same rows as the processor of transformers prepares them, with labels, which transformers shifts."""
    ids = [torch.from_numpy(sample.ids) for sample in samples]
    supervise = [torch.from_numpy(sample.supervise) for sample in samples]
    valid = torch.tensor([sample.frames for sample in samples])  # (A, 1)
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    labels = [row.where(mask, IGNORE) for row, mask in zip(ids, supervise, strict=True)]
    return {
        "input_ids": pad(ids, padding_value=1),
        "attention_mask": pad([torch.ones_like(row) for row in ids]),
        "labels": pad(labels, padding_value=IGNORE),
        "input_features": torch.stack([log_mel(F.pad(wave, (0, MAX_SAMPLES - len(wave))), n_mels) for wave in clips]),
        "feature_attention_mask": (torch.arange(MAX_FRAMES) < valid).long(),
    }


def shorten(peer_net: Qwen2AudioForConditionalGeneration, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut the features to the longest clip, and change the peer's encoder so that it accepts them.

    Two frames of silence stay after the longest clip, because the convolutions read them. The outputs do not change.
    """
    longest = n_frames_with_padding(int(inputs["feature_attention_mask"].sum(1).max()))
    longest += longest % 2
    tower = peer_net.model.audio_tower
    tower.config.max_source_positions = longest // 2
    tower.embed_positions = nn.Embedding.from_pretrained(tower.embed_positions.weight[: longest // 2])
    names = ("input_features", "feature_attention_mask")
    return inputs | {name: inputs[name][..., :longest].contiguous() for name in names}


def label_logps(peer_net: Qwen2AudioForConditionalGeneration, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (R,) of the labels, and their rows (R,).

    As in TRL, logits are computed only at positions with a label.
    """
    model_inputs = {name: value for name, value in inputs.items() if name != "labels"}
    hidden = peer_net.model(**model_inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = inputs["labels"][:, 1:]
    is_label = labels != IGNORE
    logits = peer_net.lm_head(hidden[is_label])
    return -F.cross_entropy(logits, labels[is_label], reduction="none"), is_label.nonzero()[:, 0]
