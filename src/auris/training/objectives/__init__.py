"""Objectives: `objective(net, pack) -> (loss_sum, sums for the log)`, and `count(pack)`, what the sum is divided by.

The division happens once, over all packs and ranks, so that micro-batches and packing never change the mean.
"""
