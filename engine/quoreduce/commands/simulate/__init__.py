"""``quoreduce simulate``."""
