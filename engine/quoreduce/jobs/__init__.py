"""The built-in jobs, and what turns Python style jobs into block style."""
