"""Instruction dialogues and preference pairs about the rows of a corpus, composed as the two papers describe.

The random seed of a dialogue is derived from its split, kind and index. Therefore the same seed of `auris instruct`
gives the same dialogues with any number of processes, and a larger set contains a smaller one. Answers are right by
construction, because they follow from labels.
"""
