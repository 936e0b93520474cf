"""Trusted VM operations: small attested modules launch, migrate, back up and terminate QEMU guests that an insider cannot read."""
