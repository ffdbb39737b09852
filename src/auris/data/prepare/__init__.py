"""Manifests from downloaded corpora."""
