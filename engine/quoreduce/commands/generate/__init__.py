"""``quoreduce generate``."""
