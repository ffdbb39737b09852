"""Files of a synthetic study: result rows, predictions with statistics, TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from auris.metrics.measures import score
from auris.metrics.statistics import bootstrap_interval

ARMS = ("qwen_audio", "qwen2_audio")


def write_run(root: Path, arm: str, seed: int, groups: dict[str, tuple[str, list]], provenance: str = "tts") -> Path:
    """Write the predictions and results of one run.

    Args:
        root: Folder of the study.
        arm: Arm of the run: one of the variants that the study compares.
        seed: Seed of the run.
        groups: Metric and statistics of the rows, by group (line of the results table).
        provenance: Origin of the audio of every row, such as `tts` (synthetic speech).
    """
    run = root / arm / f"seed_{seed}"
    (run / "predictions").mkdir(parents=True)
    rows, scores = [], []
    for group, (metric, stats) in groups.items():
        task, language = (*group.split(), "en")[:2]
        common = {"task": task, "metric": metric, "provenance": provenance}
        for i, row in enumerate(stats):
            row = {
                "id": f"{group}-{i}",
                "stats": list(row),
                "hypothesis": "",
                "reference": f"r{i}",
                "audio_seconds": 2.0,
            }
            rows.append({**common, **row, "language": language, "group": group})
        low, high = bootstrap_interval(stats, metric, n_samples=50)
        result = {
            "value": score(metric, stats),
            "low": low,
            "high": high,
            "n": len(stats),
            "units": f"{len(stats)} rows",
            "signature": f"{metric}|made up",
        }
        run_labels = {"study": root.name, "arm": arm, "seed": seed, "benchmark": "embedded", "split": "test"}
        scores.append({**run_labels, **common, **result, "task": group})
    for name, lines in (("predictions/embedded.jsonl", rows), ("results.jsonl", scores)):
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def write_events(run: Path, scalars: dict[str, list[tuple[int, float]]]) -> None:
    with SummaryWriter(str(run)) as writer:
        for tag, points in scalars.items():
            for step, number in points:
                writer.add_scalar(tag, number, step)


def rates(rng: np.random.Generator, n_rows: int, rate: float, n_words: int) -> list[list[float]]:
    """Return [errors or hits, words] of each row. A word is an error (or a hit) with the probability `rate`."""
    return [[float(rng.binomial(n_words, rate)), float(n_words)] for _ in range(n_rows)]


def bleu_stats(rng: np.random.Generator, n_rows: int, quality: float) -> list[list[float]]:
    """Return [matches of 1- to 4-grams, their totals, both lengths] of each row."""
    stats = []
    for _ in range(n_rows):
        length = int(rng.integers(4, 9))
        totals = [length - i for i in range(4)]
        stats.append(
            [float(rng.binomial(t, quality ** (i + 1))) for i, t in enumerate(totals)] + totals + [length, length]
        )
    return stats


def write_study(root: Path) -> Path:
    """Write a study whose second arm is better in English ASR and sound classification and equal elsewhere."""
    for seed in (0, 1):
        for arm in ARMS:
            is_second = arm == ARMS[1]
            rng, shift = np.random.default_rng([seed, is_second]), seed * 0.05 + is_second * 0.3
            groups = {
                "asr en": ("wer", rates(rng, 80, 0.06 if is_second else 0.14, 7)),
                "asr zh": ("cer", rates(rng, 80, 0.15, 9)),
                "s2tt de-en": ("bleu", bleu_stats(rng, 60, 0.7)),
                "sec": ("accuracy", rates(rng, 60, 0.95 if is_second else 0.75, 1)),
                "lid": ("accuracy", rates(rng, 60, 0.97, 1)),
            }
            run = write_run(root, arm, seed, groups)
            loss = [(s, 4 * np.exp(-s / 60) + shift + rng.normal(0, 0.1)) for s in range(0, 300, 2)]
            wer = [(s, float(np.exp(-s / 90) + 0.05 * shift)) for s in range(0, 300, 50)]
            write_events(run, {"train/loss": loss, "val/loss": loss[::25], "val/asr en/wer": wer, "lr": [(0, 1e-3)]})
    return root
