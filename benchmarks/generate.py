"""Greedy answers: prompts prefilled as one pack and rows decoded without padding, against transformers' `generate`."""

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
    """Both models on the same prompts; the error is the share of tokens that differ."""
    wave = waves(lengths, clips, seed)
    ours, theirs = (model.eval() for model in models(preset, seed))
    prompts = [_prompt(row) for row in samples(wave, ours.geometry, preset.vocab_size, seed)]
    pack, inputs = collate(prompts, geometry=ours.geometry), padded(prompts, wave, side="left")
    del inputs["labels"]
    settings = GenerationSettings(max_new_tokens=tokens)
    theirs.generation_config.eos_token_id = None  # all rows are as long as they may be, on both sides
    theirs.generation_config.pad_token_id = 1

    def our_answers() -> Tensor:
        return torch.tensor(ours.generate(pack, settings))

    def their_answers() -> Tensor:
        with torch.no_grad():
            answers = theirs.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return answers[:, inputs["input_ids"].shape[1] :]

    return Comparison(
        peer=f"transformers {transformers.__version__} Qwen2AudioForConditionalGeneration.generate",
        ours=our_answers,
        theirs=their_answers,
        errors={"tokens": (our_answers() != their_answers()).float().mean().item()},
        limits=LIMITS,
        work={"tokens_per_second": float(clips * tokens)},
    )


def _prompt(sample: Sample) -> Sample:
    n = int(sample.supervise.argmax())
    return replace(sample, ids=sample.ids[:n], supervise=sample.supervise[:n], audio_mask=sample.audio_mask[:n])
