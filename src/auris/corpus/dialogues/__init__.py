"""Instruction dialogues and preference pairs about the rows of a corpus, put together as the two papers describe.

A dialogue is drawn from a seed of its place (split, kind, number), as the rows of the corpus are: the same seed gives
the same dialogues with any number of processes, and a larger set contains a smaller one. The answers are right by
construction, since all of them follow from labels.
"""
