"""Answers to numbers: text normalisers, per-row statistics, scores with intervals, judges."""
