"""``quoreduce check``."""
