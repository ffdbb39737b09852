"""Scoring: text normalisers, and what a row contributes to the metrics of its task."""

from auris.scoring.metrics import TaskScore, check, row_stats, signature
from auris.scoring.normalize import normalize, unit

__all__ = ["TaskScore", "check", "normalize", "row_stats", "signature", "unit"]
