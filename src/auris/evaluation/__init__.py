"""Evaluation: answers to test rows, cached, judged and scored."""
