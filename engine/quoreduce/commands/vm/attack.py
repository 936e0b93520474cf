"""``quoreduce vm attack``: an insider attacks a guest's memory, image and migration, without protection and with it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

from quoreduce.errors import VmError

KEY_BITS: Final = 2048
CHANNELS: Final = {"memory": "memory, by QMP", "image": "image at rest", "wire": "migration stream"}


def new_key() -> bytes:
    """A fresh RSA key as PEM."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def attack(bare: bool, as_json: bool) -> int:
    """Attack guests of an image that is built for it, with a key in it; print a table.

    Raises:
        VmError: a program is not installed; the attack missed without protection, or found the key in spite of it.
    """
    from quoreduce.vm.agents.site import check_programs
    from quoreduce.vm.attack import campaign
    from quoreduce.vm.bundle import Bundle
    from quoreduce.vm.image import build

    check_programs()
    print("a guest with an RSA key in it is built, booted twice, and attacked: some 20 s", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="vm-attack-") as folder:
        image = build(Path(folder, "image"), plant=new_key()).path.read_bytes()
    found = campaign(Bundle.decode(image), Path("/dev/shm", f"vms-attack-{os.getpid()}"))
    shown = [one for one in found if not (bare and one.setting != "nothing")]
    if as_json:
        print(json.dumps({"findings": [asdict(one) for one in shown]}))
    else:
        print(f"{'what':18} {'protected by':14} {'searched':>13}  the guest's private key")
        for one in shown:
            outcome = "FOUND" if one.found else "not found" if one.searched else "refused"
            print(f"{CHANNELS[one.way]:18} {one.setting:14} {one.searched:13,}  {outcome}")
            for line in one.evidence:
                print(f"    {line}")
    wrong = [
        f"{CHANNELS[one.way]} protected by {one.setting}" for one in shown if one.found != (one.setting == "nothing")
    ]
    if wrong:
        raise VmError(f"not as it should be: {'; '.join(wrong)}")
    return 0
