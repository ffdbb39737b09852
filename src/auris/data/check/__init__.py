"""Checks of a data set: every row and every clip."""
