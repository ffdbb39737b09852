"""Greedy decoding: a packed prefill and decoding without padding, against `generate` of transformers."""

from __future__ import annotations

from dataclasses import replace

import torch
import transformers
from torch import Tensor

from auris.data.collate import Sample, collate
from auris.model.generation import GenerationSettings
from benchmarks import Comparison
from benchmarks.models import PRESETS, Preset, models, padded, samples, waves

__all__ = ["PRESETS", "compare"]

LIMITS = {"tokens": 0.0}


def compare(preset: Preset, *, lengths: str = "2-8", clips: int = 8, tokens: int = 32, seed: int = 0) -> Comparison:
    """Run both models on the same prompts. The error is the share of tokens that differ."""
    clip_waves = waves(lengths, clips, seed)
    net, peer_net = (model.eval() for model in models(preset, seed))
    prompts = [_prompt(row) for row in samples(clip_waves, net.geometry, preset.vocab_size, seed)]
    pack, inputs = collate(prompts, geometry=net.geometry), padded(prompts, clip_waves, preset.n_mels, side="left")
    del inputs["labels"]
    settings = GenerationSettings(max_new_tokens=tokens)
    peer_net.generation_config.eos_token_id = None  # all responses reach the length limit, on both sides
    peer_net.generation_config.pad_token_id = 1

    def auris_responses() -> Tensor:
        return torch.tensor(net.generate(pack, settings))

    def peer_responses() -> Tensor:
        with torch.no_grad():
            ids = peer_net.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return ids[:, inputs["input_ids"].shape[1] :]

    return Comparison(
        peer=f"transformers {transformers.__version__} Qwen2AudioForConditionalGeneration.generate",
        run_auris=auris_responses,
        run_peer=peer_responses,
        errors={"tokens": (auris_responses() != peer_responses()).float().mean().item()},
        limits=LIMITS,
        work={"tokens_per_second": float(clips * tokens)},
    )


def _prompt(sample: Sample) -> Sample:
    """Return the sample without its answer."""
    n = int(sample.supervise.argmax())
    return replace(sample, ids=sample.ids[:n], supervise=sample.supervise[:n], audio_mask=sample.audio_mask[:n])
