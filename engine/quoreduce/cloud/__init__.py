<<<<<<< HEAD
"""Trusted VM operations: launch, migrate, back up, restore and terminate VMs that the cloud's manager cannot look into."""
=======
"""Trusted VM operations: small attested modules launch, migrate, back up and terminate QEMU guests that an insider cannot read."""
>>>>>>> vm-a1
