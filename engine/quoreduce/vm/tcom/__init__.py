"""The TCOMs: one small module for each operation. Each is measured by itself, and is pure: events in, commands out."""
