"""Scoring: text normalisers and the metric of each task."""

from auris.scoring.metrics import TaskScore, row_stats, signature
from auris.scoring.normalize import normalize, unit

__all__ = ["TaskScore", "normalize", "row_stats", "signature", "unit"]
