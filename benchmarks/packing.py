"""Packs filled from simulated corpora: the share of useful tokens, and the balance between ranks. There is no peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from auris.audio import MAX_SAMPLES, SAMPLE_RATE, Geometry, n_frames
from auris.data.manifests import Manifest
from auris.data.plan import Plan
from auris.data.rows import Row
from benchmarks import Report
from benchmarks.models import ANSWER_RATE, PROMPT_TOKENS

TOKEN_BUDGET = 8192
WORLD = 8

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Draws n durations (n,) in seconds."""


@dataclass(frozen=True)
class Preset:
    """A simulated corpus. Its durations are drawn from a distribution like that of the real corpus.

    Attributes:
        durations: Draws the durations.
        rows: Number of rows.
    """

    durations: Draw
    rows: int = 60_000


def _librispeech(draw: np.random.Generator, n: int) -> np.ndarray:
    """Draw durations with a mean of 12.6 s: most near 14 s, where the corpus was segmented, and some shorter."""
    return np.where(draw.random(n) < 0.6, draw.normal(14.5, 1.2, n), draw.uniform(2, 17, n)).clip(1.4, 24)


def _commonvoice(draw: np.random.Generator, n: int) -> np.ndarray:
    """Draw durations with a mean of 5.1 s."""
    return draw.gamma(9.0, 5.1 / 9.0, n).clip(1.0, 15)


def _mixed(draw: np.random.Generator, n: int) -> np.ndarray:
    """Draw durations with a mean of 12.5 s: speech of both kinds, sounds of 10 s and music of 30 s."""
    kinds = [_librispeech(draw, n), _commonvoice(draw, n), np.full(n, 10.0), np.full(n, 30.0)]
    return np.choose(draw.choice(4, n, p=[0.35, 0.3, 0.15, 0.2]), kinds)


PRESETS = {"librispeech": Preset(_librispeech), "commonvoice": Preset(_commonvoice), "mixed": Preset(_mixed)}
LIMITS = {"rows not in exactly one pack": 0.0, "packs over budget": 0.0}


def report(preset: Preset, *, seed: int = 0) -> Report:
    """Report the share of useful tokens, and the work of the busiest rank of a step divided by the mean of all ranks.

    Both are computed over the first epoch, without the last step, which reaches into the second epoch.
    """
    durations = preset.durations(np.random.default_rng(seed), preset.rows)
    frames = np.array([n_frames(min(round(s * SAMPLE_RATE), MAX_SAMPLES)) for s in durations])
    geometry = Geometry(n_mels=128, pool=2)
    n_text_tokens = PROMPT_TOKENS + np.maximum(1, np.round(ANSWER_RATE * durations)).astype(int)
    lengths = np.array([geometry.n_tokens(n) for n in frames]) + n_text_tokens
    plan = Plan(
        sources=[Manifest("simulated", [Row(str(n)) for n in range(preset.rows)])],
        lengths=lengths,
        seed=seed,
        rows_per_step=None,
        token_budget=TOKEN_BUDGET,
        packs_per_step=WORLD,
    )
    steps = range(plan.n_steps(1) - 1)
    packs = [plan.all_packs(k, world=WORLD) for k in steps]
    over_budget = sum(lengths[[row for row, _ in pack]].sum() > TOKEN_BUDGET for step in packs for pack in step)
    work = _work(frames, lengths)
    loads = np.array([[work[[row for row, _ in pack]].sum() for pack in step] for step in packs])  # (steps, ranks)
    rows = [row for step in packs for pack in step for row, _ in pack]
    last = plan.all_packs(len(steps), world=WORLD)
    first_epoch = [row for step in [*packs, last] for pack in step for row, epoch in pack if epoch == 0]
    counts = np.bincount(first_epoch, minlength=preset.rows)  # number of packs that contain each row
    return Report(
        figures={
            "useful": float(lengths[rows].sum() / (sum(map(len, packs)) * TOKEN_BUDGET)),
            "straggler": float((loads.max(1) / loads.mean(1)).mean()),
            "rows": preset.rows,
            "steps": len(steps),
        },
        errors={"rows not in exactly one pack": float((counts != 1).sum()), "packs over budget": float(over_budget)},
        limits=LIMITS,
    )


def _work(frames: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the operations of rows in fine-tuning at full size: encoder forward, LLM forward and backward.

    The cost of attention grows with the square of the frames of a clip (encoder) or of the tokens of a row (LLM).
    """
    width, ffn, blocks = 1280, 5120, 32  # Whisper large
    t = frames / 2
    encoder = blocks * (2 * t * (4 * width**2 + 2 * width * ffn) + 4 * t**2 * width)
    llm = 2 * tokens * 6.476e9 + 32 * 2 * tokens.astype(float) ** 2 * 4096  # Qwen-7B, with causal attention
    return encoder + 3 * llm
