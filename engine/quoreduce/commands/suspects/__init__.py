"""``quoreduce suspects``."""
