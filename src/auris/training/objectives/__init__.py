"""Training objectives: the loss of a pack, and the responses to a pack of prompts.

An objective returns the sum of its loss and, from `count(pack)`, the number by which the sum is divided. The division
happens once, over all packs and ranks, so that micro-batches and packing do not change the mean.
"""
