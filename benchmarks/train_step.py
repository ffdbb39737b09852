"""One training step, forward and backward: auris, packed, against transformers' Qwen2-Audio, padded.

Peers: the released model with its own loss, and the best mix of what open trainers do (clips padded to the longest,
keys masked, logits only where a label stands). The optimizer's step, equal on all sides, and the front end are not part
of it.
"""

from __future__ import annotations

from functools import partial

import transformers
from torch import Tensor

from auris.data.collate import collate
from auris.training.objectives.next_token import NextToken
from benchmarks import Comparison
from benchmarks.models import (
    LIMITS,
    PRESETS,
    TRAINED,
    Preset,
    gradient_error,
    label_logps,
    models,
    padded,
    samples,
    shorten,
    step,
    train,
    waves,
)

__all__ = ["CHOICES", "PRESETS", "compare"]

PEERS = {
    "transformers": "Qwen2AudioForConditionalGeneration",
    "open_mix": "Qwen2AudioForConditionalGeneration, clips padded to the longest and masked, label-only head",
}
CHOICES = {"peer": tuple(PEERS), "trained": tuple(TRAINED)}


def compare(
    preset: Preset,
    *,
    peer: str = "transformers",
    lengths: str = "2-8",
    trained: str = "all",
    clips: int = 8,
    seed: int = 0,
) -> Comparison:
    """Both models on the same batch, and how far their losses (absolute) and gradients (relative) are apart."""
    wave = waves(lengths, clips, seed)
    ours, theirs = models(preset, seed)
    train(ours, theirs, trained)
    rows = samples(wave, ours.geometry, preset.vocab_size, seed)
    pack, inputs = collate(rows, geometry=ours.geometry), padded(rows, wave)
    if peer == "open_mix":
        inputs = shorten(theirs, inputs)
    objective = NextToken()

    def our_loss() -> Tensor:
        total, _ = objective(ours, pack)
        return total / objective.count(pack)

    def their_loss() -> Tensor:
        if peer == "open_mix":
            return -label_logps(theirs, inputs)[0].mean()
        return theirs(**inputs, use_cache=False).loss  # its default would fill a cache that training has no use for

    our_step, their_step = partial(step, ours, our_loss), partial(step, theirs, their_loss)
    return Comparison(
        peer=f"transformers {transformers.__version__} {PEERS[peer]}",
        ours=our_step,
        theirs=their_step,
        errors={"loss": abs(our_step() - their_step()), "gradient": gradient_error(ours, theirs)},
        limits=LIMITS,
    )
