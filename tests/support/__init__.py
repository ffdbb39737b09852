"""Helpers that several test files share: small corpora, models, runs and stand-ins."""
