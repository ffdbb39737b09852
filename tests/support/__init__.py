"""Helpers that several test files share: small corpora, models, runs and mock servers."""
