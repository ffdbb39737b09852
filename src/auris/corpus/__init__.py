"""The embedded corpus: speech, sounds and music made on the spot, with labels that are exact by construction.

It needs no network, no recordings and no torch.
"""
