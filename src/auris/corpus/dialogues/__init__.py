"""Instruction dialogues and preference pairs about the rows of a corpus, composed as the two papers describe.

Like the rows of the corpus, a dialogue is drawn from a seed derived from its split, kind and index. The same seed gives
the same dialogues with any number of processes, and a larger set contains a smaller one. Answers are right by
construction, because they follow from labels.
"""
