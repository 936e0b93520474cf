"""What cannot be attested is refused before anything runs: options, and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attesting import MAPS, SPLIT_MB, TASKS, Root
from runs import WORDCOUNT, Runner, beginning

from quoreduce import Options
from quoreduce.errors import AttestationError, UsageError
from quoreduce.protocol.options import Attest


@pytest.fixture(scope="module")
def text(verses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(verses, MAPS * SPLIT_MB, tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"digest": "fast"}, "needs blake3"), ({"mode": "original"}, "needs blake3"),
     ({"mode": "original", "digest": "checksum"}, "needs blake3")],
)  # fmt: skip
def test_accidental_faults_are_not_all_that_evidence_is_for(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Options(**options, attest=Attest())


@pytest.mark.parametrize(
    ("options", "says"),
    [({"nonce": "12"}, "32 bytes"), ({"nonce": "x" * 64}, "hexadecimal"), ({"nonce": "0" * 66}, "32 bytes"),
     ({"nonce": "0" * 64 + "\n"}, "32 bytes"), ({"batch_size": 0}, "1 to 1,048,576"),
     ({"batch_size": (1 << 20) + 1}, "1 to 1,048,576"),
     ({"batch_ms": -1}, "0 to 60,000"), ({"batch_ms": 60_001}, "0 to 60,000"),
     ({"batch": "tree"}, "unknown batch mode"), ({"scheme": "dsa"}, "unknown scheme"),
     ({"backend": "modelled"}, "use swtpm or utpm")],
)  # fmt: skip
def test_a_wrong_option_is_a_usage_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Attest(**options)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "quoreduce attest setup"), (b"", "no quoreduce policy"), (b"{", "no quoreduce policy"),
     (b"[]", "no quoreduce policy"),
     (b'{"environments": [], "backends": ["utpm"]}', "allows no environment"),
     (b'{"environments": ["' + b"0" * 64 + b'"], "backends": []}', "allows no backend"),
     (b'{"environments": ["' + b"0" * 64 + b'"], "backends": ["swtpm"]}', "names no CA"),
     (b'{"environments": ["short"], "backends": ["utpm"]}', "no quoreduce policy"),
     (b'{"environments": ["' + b"0" * 64 + b'"], "backends": ["utpm"], "more": 1}', "more")],
)  # fmt: skip
def test_a_policy_that_is_none_is_refused_before_anything_runs(
    content: bytes | None, says: str, run: Runner, text: Path, software: Root, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AttestationError, match=says) as caught:
        run("inline", WORDCOUNT, text, **TASKS, attest=software.attest(policy=str(path)))
    assert caught.value.exit_code == 6
    assert str(path) in str(caught.value)


def test_a_backend_that_the_policy_does_not_accept_is_refused(run: Runner, text: Path, software: Root) -> None:
    with pytest.raises(AttestationError, match="policy does not accept") as caught:
        run("inline", WORDCOUNT, text, **TASKS, attest=software.attest(backend="swtpm"))
    assert caught.value.exit_code == 6
