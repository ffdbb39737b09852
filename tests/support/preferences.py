"""Preference pairs of random answers to random prompts, packed as trees or as independent sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from auris.audio import Geometry
from auris.data.collate import Sample, collate
from support.packs import Row, audio_mask, clips, row_ids


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, which ends with text."""

    prompt: Row
    chosen: list[int]
    rejected: list[int]


def tree(pairs: Sequence[Pair], geometry: Geometry, reference_logps: Sequence[tuple[float, float]] = ()) -> dict:
    """Return one pack that contains each prompt once, with both answers as branches.

    Args:
        pairs: The preference pairs.
        geometry: Geometry of the model.
        reference_logps: Log-probabilities of the chosen and the rejected answer of each pair under a reference model;
            empty if the pack has none.
    """
    samples = [
        replace(_sample(number, pair, pair.chosen, geometry), rejected=np.array(pair.rejected))
        for number, pair in enumerate(pairs)
    ]
    if reference_logps:
        samples = [replace(sample, reference=logps) for sample, logps in zip(samples, reference_logps, strict=True)]
    return collate(samples, geometry=geometry)


def sequences(pairs: Sequence[Pair], geometry: Geometry) -> dict:
    """Return the same pairs as a pack of independent rows, which contains every prompt and every clip twice."""
    samples = [
        _sample(number, pair, answer, geometry)
        for number, pair in enumerate(pairs)
        for answer in (pair.chosen, pair.rejected)
    ]
    pack = collate(samples, geometry=geometry)
    return pack | {"rows": list(range(len(pairs))), "loss_curves": pack["loss_curves"][::2]}


def sequence(pair: Pair, answer: list[int], geometry: Geometry) -> dict:
    """Return a pack of one prompt with one answer."""
    return collate([_sample(0, pair, answer, geometry)], geometry=geometry)


def _sample(number: int, pair: Pair, answer: list[int], geometry: Geometry) -> Sample:
    prompt = row_ids(pair.prompt, geometry)
    return Sample(
        row=number,
        ids=np.array([*prompt, *answer]),
        supervise=np.arange(len(prompt) + len(answer)) >= len(prompt),
        audio_mask=np.array([*audio_mask(pair.prompt, geometry), *[False] * len(answer)]),
        mels=tuple(clip.mel[:, : geometry.n_frames_with_padding(clip.frames)] for clip in clips([pair.prompt])),
        frames=tuple(clip.frames for clip in clips([pair.prompt])),
        audio_seconds=0.0,
        loss_curve="preference voice_chat",
    )
