"""The synthetic corpus that `auris corpus` writes: speech, sounds and music with labels that are exact by construction.

Configs and paths call it `embedded`, because it comes with auris. Making it needs no network, recordings or torch.
"""
