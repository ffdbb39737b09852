"""The synthetic corpus that `auris corpus` writes: speech, sounds and music with labels that are exact by construction.

Configs and paths call this corpus `embedded`, because auris makes it itself: no network, recordings or torch are
needed. A corpus of speech from a text is made in the same way. Only sentences from a language model need torch.
"""
