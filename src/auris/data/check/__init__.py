"""Checks of all rows and clips of a data set."""
