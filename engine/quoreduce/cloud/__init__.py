"""Trusted VM operations: launch, migrate, back up, restore and terminate VMs that the cloud's manager cannot look into."""
