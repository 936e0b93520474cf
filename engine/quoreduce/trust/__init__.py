"""Attestation: what ran, proved by a TPM through a fast software µTPM. Imports nothing of ours but errors."""
