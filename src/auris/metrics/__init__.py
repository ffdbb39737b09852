"""Metrics: text normalisers, statistics of rows, scores with intervals, published scores and judges."""
