"""One step of direct preference optimisation: a pair as a tree, against TRL's way, a sequence for each answer.

The peer is written here from TRL 1.16's description, as TRL's own DPO trainer takes no audio: a batch is all prompts
with their chosen answers, then all prompts with their rejected ones, so that each clip is encoded twice (with a live
reference, by a frozen second model as well); logits only where a label stands. Ours has the reference precomputed.

Shapes: P pairs; answers stand in the order chosen, rejected.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from einops import rearrange
from torch import Tensor
from transformers import Qwen2AudioForConditionalGeneration

from auris.data.collate import Sample, collate
from auris.training.objectives.dpo import DPO, answer_logps
from benchmarks import Comparison
from benchmarks.models import (
    AUDIO_ID,
    LIMITS,
    PRESETS,
    TRAINED,
    Preset,
    gradient_error,
    label_logps,
    models,
    padded,
    samples,
    step,
    train,
    waves,
)

__all__ = ["CHOICES", "PRESETS", "compare"]

CHOICES = {"peer": ("live", "precomputed"), "trained": tuple(TRAINED)}
BETA = 0.1  # TRL's default


def compare(
    preset: Preset, *, peer: str = "live", lengths: str = "2-8", trained: str = "all", pairs: int = 2, seed: int = 0
) -> Comparison:
    """Both models on the same pairs, and how far their losses (absolute) and gradients (relative) are apart.

    The reference has other weights than the policy: with the same ones every loss would be log 2.
    """
    wave = waves(lengths, pairs, seed)
    reference, their_reference = models(preset, seed + 1)
    ours, theirs = models(preset, seed)
    train(ours, theirs, trained)
    chosen = samples(wave, ours.geometry, preset.vocab_size, seed)
    others = [_other_answer(row, preset.vocab_size, (seed, row.row, 1)) for row in chosen]
    objective = DPO(beta=BETA)
    trees = [replace(row, rejected=answer) for row, answer in zip(chosen, others, strict=True)]
    rejected = [_replace_answer(row, answer) for row, answer in zip(chosen, others, strict=True)]
    inputs = padded([*chosen, *rejected], [*wave, *wave])
    with torch.no_grad():
        pack = collate(trees, geometry=ours.geometry)
        pack["reference"] = answer_logps(reference, pack)[0]
        precomputed = _their_logps(their_reference, inputs)  # (P, 2)

    def our_loss() -> Tensor:
        total, _ = objective(ours, pack)
        return total / objective.count(pack)

    def their_loss() -> Tensor:
        expected = precomputed
        if peer == "live":
            with torch.no_grad():
                expected = _their_logps(their_reference, inputs)
        rewards = BETA * (_their_logps(theirs, inputs) - expected)
        return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()

    our_step, their_step = partial(step, ours, our_loss), partial(step, theirs, their_loss)
    return Comparison(
        peer=f"TRL 1.16's DPO, {peer} reference, written over transformers {transformers.__version__} Qwen2-Audio",
        ours=our_step,
        theirs=their_step,
        errors={"loss": abs(our_step() - their_step()), "gradient": gradient_error(ours, theirs)},
        limits=LIMITS,
    )


def _other_answer(sample: Sample, vocab_size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Random tokens, about as many as the answer has."""
    length = int(sample.supervise.sum())
    draw = np.random.default_rng(seed)
    return draw.integers(AUDIO_ID + 1, vocab_size, draw.integers(max(1, length - 3), length + 4))


def _replace_answer(sample: Sample, answer: np.ndarray) -> Sample:
    prompt = int(sample.supervise.argmax())
    ids = np.concatenate([sample.ids[:prompt], answer])
    return replace(sample, ids=ids, supervise=np.arange(len(ids)) >= prompt, audio_mask=ids == AUDIO_ID)


def _their_logps(model: Qwen2AudioForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    """Summed log-probabilities (P, 2) of both answers."""
    logps, row = label_logps(model, inputs)
    sums = logps.new_zeros(len(inputs["input_ids"])).index_add(0, row, logps)
    return rearrange(sums, "(two p) -> p two", two=2)
