"""Splits, formats, blocks, digests, commit, manifest."""
