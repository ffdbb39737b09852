"""Forward and backward of one training step: auris with packing, against Qwen2-Audio of transformers with padding.

There are two peers: the released model with its own loss, and the same model with the best combination of what open
trainers do (clips padded to the longest and masked, logits only at positions with a label). The log-mel front end and
the step of the optimizer, which is the same on both sides, are not measured.
"""

from __future__ import annotations

from functools import partial

import torch
import transformers
from torch import Tensor

from auris.data.collate import collate
from auris.training.objectives.next_token import NextToken
from benchmarks import Comparison, floor
from benchmarks.models import (
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
    shorten,
    step,
    waves,
)

__all__ = ["CHOICES", "PRESETS", "compare"]

PEERS = {
    "transformers": "Qwen2AudioForConditionalGeneration",
    "open_mix": "Qwen2AudioForConditionalGeneration, clips padded to the longest and masked, label-only head",
}
CHOICES = {"peer": tuple(PEERS), "trained": tuple(TRAINED), "precision": tuple(LIMITS)}


def compare(
    preset: Preset,
    *,
    peer: str = "transformers",
    lengths: str = "2-8",
    trained: str = "all",
    clips: int = 8,
    precision: str = "float32",
    seed: int = 0,
) -> Comparison:
    """Run both models on the same batch. The loss has an absolute error, the gradients have a relative one."""
    clip_waves = waves(lengths, clips, seed)
    net, peer_net = models(preset, seed)
    freeze_untrained(net, peer_net, trained)
    rows = samples(clip_waves, net.geometry, preset.vocab_size, seed)
    pack, inputs = collate(rows, geometry=net.geometry), padded(rows, clip_waves, preset.n_mels)
    if peer == "open_mix":
        inputs = shorten(peer_net, inputs)
    objective = NextToken()

    def auris_loss() -> Tensor:
        total, _ = objective(net, pack)
        return total / objective.count(pack)

    def peer_loss() -> Tensor:
        if peer == "open_mix":
            return -label_logps(peer_net, inputs)[0].mean()
        return peer_net(**inputs, use_cache=False).loss  # by default it would also fill a cache for generation

    auris_step, peer_step = partial(step, net, auris_loss, precision), partial(step, peer_net, peer_loss, precision)
    return Comparison(
        peer=f"transformers {transformers.__version__} {PEERS[peer]}",
        run_auris=auris_step,
        run_peer=peer_step,
        errors={"loss": abs(auris_step() - peer_step()), "gradient": gradient_error(net, peer_net)},
        limits=LIMITS[precision],
        run_floor=floor.measure(net, auris_loss, torch.bfloat16 if precision == "bf16" else torch.float32),
    )
