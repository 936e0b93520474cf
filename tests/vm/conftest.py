"""An image of a guest, built once. Needs ``apt-get install -y --no-install-recommends qemu-system-x86 busybox-static
swtpm``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from quoreduce.errors import VmError


@pytest.fixture(scope="session")
def planted() -> rsa.RSAPrivateKey:
    """The key that a process of the guest holds."""
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def image(planted: rsa.RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an image whose guest holds ``planted``."""
    from quoreduce.vm.image import build

    key = planted.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        return build(tmp_path_factory.mktemp("image") / "guest.image", plant=key).path
    except VmError as error:
        pytest.skip(str(error))
