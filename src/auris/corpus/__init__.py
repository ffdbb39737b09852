"""The embedded corpus: speech, sounds and music made on the spot, with labels that are exact by construction.

It needs no network and no recordings, and it imports no torch: rows are made by plain numpy in worker processes.
"""
