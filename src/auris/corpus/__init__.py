"""The embedded corpus: synthetic speech, sounds and music with labels that are exact by construction.

It needs no network, no recordings and no torch.
"""
