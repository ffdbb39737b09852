"""Evaluation: compute, cache, judge and score the responses to test rows."""
