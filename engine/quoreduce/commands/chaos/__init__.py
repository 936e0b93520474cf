"""``quoreduce chaos``."""
