"""Objectives of training: the loss of a pack, and the answers to a pack of prompts.

An objective returns the sum of its loss and, from `count(pack)`, the number that it is divided by. The division happens
once, over all packs and ranks, so that micro-batches and packing never change the mean.
"""
