"""Trusted VM operations: launch, migrate, back up, restore and terminate VMs that the manager cannot look into."""
