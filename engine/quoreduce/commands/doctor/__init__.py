"""``quoreduce doctor``."""
