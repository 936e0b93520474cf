"""``quoreduce attest``."""
