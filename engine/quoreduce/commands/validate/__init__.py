"""``quoreduce validate``."""
