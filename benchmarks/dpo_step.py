"""One step of DPO: auris, where both answers share a prompt, against TRL, where each answer has its own.

auris computes the clip and the prompt of a pair once and uses precomputed log-probabilities of the reference. The peer
is written here from the description of TRL 1.16, because TRL's DPO trainer does not support audio. Its batch has all
prompts with their chosen answers, followed by all prompts with their rejected answers, so each clip is encoded twice.
A live reference is a second, frozen model that is run on the same batch. Logits are computed only at positions with a
label.

Shapes: P pairs; the two answers are in the order chosen, rejected.
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
from benchmarks import Comparison, floor
from benchmarks.models import (
    AUDIO_ID,
    LIMITS,
    PRESETS,
    TRAINED,
    Preset,
    freeze_untrained,
    gradient_error,
    label_logps,
    models,
    padded,
    samples,
    step,
    waves,
)

__all__ = ["CHOICES", "PRESETS", "compare"]

CHOICES = {"peer": ("live", "precomputed"), "trained": tuple(TRAINED), "precision": tuple(LIMITS)}
BETA = 0.1  # TRL's default


def compare(
    preset: Preset,
    *,
    peer: str = "live",
    lengths: str = "2-8",
    trained: str = "all",
    pairs: int = 2,
    precision: str = "float32",
    seed: int = 0,
) -> Comparison:
    """Run both models on the same pairs. The loss has an absolute error, the gradients have a relative one.

    The reference has other weights than the policy. With the same weights every loss would be log 2.
    """
    clip_waves = waves(lengths, pairs, seed)
    reference, peer_reference = models(preset, seed + 1)
    net, peer_net = models(preset, seed)
    freeze_untrained(net, peer_net, trained)
    chosen = samples(clip_waves, net.geometry, preset.vocab_size, seed)
    rejected_answers = [_random_answer(row, preset.vocab_size, (seed, row.row, 1)) for row in chosen]
    objective = DPO(beta=BETA)
    pairs_of_answers = [replace(row, rejected=answer) for row, answer in zip(chosen, rejected_answers, strict=True)]
    rejected = [_replace_answer(row, answer) for row, answer in zip(chosen, rejected_answers, strict=True)]
    inputs = padded([*chosen, *rejected], [*clip_waves, *clip_waves], preset.n_mels)
    with torch.no_grad():
        pack = collate(pairs_of_answers, geometry=net.geometry)
        pack["reference"] = answer_logps(reference, pack)[0]
        precomputed = _pair_logps(peer_reference, inputs)  # (P, 2)

    def auris_loss() -> Tensor:
        total, _ = objective(net, pack)
        return total / objective.count(pack)

    def peer_loss() -> Tensor:
        reference_logps = precomputed
        if peer == "live":
            with torch.no_grad():
                reference_logps = _pair_logps(peer_reference, inputs)
        rewards = BETA * (_pair_logps(peer_net, inputs) - reference_logps)
        return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()

    auris_step, peer_step = partial(step, net, auris_loss, precision), partial(step, peer_net, peer_loss, precision)
    return Comparison(
        peer=f"TRL 1.16's DPO, {peer} reference, written over transformers {transformers.__version__} Qwen2-Audio",
        run_auris=auris_step,
        run_peer=peer_step,
        errors={"loss": abs(auris_step() - peer_step()), "gradient": gradient_error(net, peer_net)},
        limits=LIMITS[precision],
        run_floor=floor.measure(net, auris_loss, torch.bfloat16 if precision == "bf16" else torch.float32),
    )


def _random_answer(sample: Sample, vocab_size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return random tokens, about as many as the answer of the sample has."""
    length = int(sample.supervise.sum())
    draw = np.random.default_rng(seed)
    return draw.integers(AUDIO_ID + 1, vocab_size, draw.integers(max(1, length - 3), length + 4))


def _replace_answer(sample: Sample, answer: np.ndarray) -> Sample:
    prompt = int(sample.supervise.argmax())
    ids = np.concatenate([sample.ids[:prompt], answer])
    return replace(sample, ids=ids, supervise=np.arange(len(ids)) >= prompt, audio_mask=ids == AUDIO_ID)


def _pair_logps(model: Qwen2AudioForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    """Return the summed log-probabilities (P, 2) of both answers."""
    logps, row = label_logps(model, inputs)
    sums = logps.new_zeros(len(inputs["input_ids"])).index_add(0, row, logps)
    return rearrange(sums, "(two p) -> p two", two=2)
