"""Forward and backward of one training step of auris in bf16-mixed, against the same step in float32."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from auris.data.collate import collate
from auris.training import optim
from auris.training.objectives.next_token import NextToken
from benchmarks import Comparison, floor
from benchmarks.models import PRESETS, TRAINED, Preset, models, samples, step, waves

__all__ = ["CHOICES", "PRESETS", "compare"]

CHOICES = {"trained": tuple(TRAINED)}
LIMITS = {"loss": 1e-2}


def compare(preset: Preset, *, lengths: str = "2-8", trained: str = "all", clips: int = 8, seed: int = 0) -> Comparison:
    """Compute the same batch in both precisions. The error is the relative difference of the losses."""
    clip_waves = waves(lengths, clips, seed)
    net, _ = models(preset, seed)
    optim.freeze(net, TRAINED[trained])
    pack = collate(samples(clip_waves, net.geometry, preset.vocab_size, seed), geometry=net.geometry)
    objective = NextToken()

    def compute_loss() -> Tensor:
        return objective(net, pack)[0] / objective.count(pack)

    bf16, float32 = (partial(step, net, compute_loss, precision) for precision in ("bf16", "float32"))
    return Comparison(
        peer="auris in float32",
        run_auris=bf16,
        run_peer=float32,
        run_floor=floor.measure(net, compute_loss, torch.bfloat16),
        errors={"loss": abs(bf16() / float32() - 1)},
        limits=LIMITS,
    )
