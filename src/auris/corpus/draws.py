"""Random draws from collections."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")


def pick(rng: Rng, options: Collection[T]) -> T:
    """Return one of `options`, each with the same probability."""
    return tuple(options)[int(rng.integers(len(options)))]


def pick_or_none(rng: Rng, probability: float, options: Collection[T]) -> T | None:
    """Return one of `options` with probability `probability`, otherwise None."""
    return pick(rng, options) if rng.random() < probability else None
