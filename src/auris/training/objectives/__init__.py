"""Training objectives: the loss of a pack, and the responses to a pack of prompts.

An objective returns the summed loss of a pack and, from `count(pack)`, the number by which the sum is divided. The
LightningModule sums both over all packs and ranks and divides once, so that neither micro-batches nor packing change
the mean.
"""
