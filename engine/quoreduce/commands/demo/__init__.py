"""``quoreduce demo``."""
