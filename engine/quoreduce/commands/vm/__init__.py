"""``quoreduce vm``."""
