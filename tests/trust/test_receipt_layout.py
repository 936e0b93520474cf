"""The layouts of what is signed, byte by byte, from the documentation and from the JSON of a receipt."""

import json
import struct
from base64 import b64decode
from hashlib import sha256

import pytest
from attested import CHALLENGE, DOCUMENT, Attested, attested, output_of
from blake3 import blake3

from quoreduce.trust import evidence, receipt
from quoreduce.trust.evidence import QuotedBatch, task_leaf
from quoreduce.trust.receipt import Receipt
from quoreduce.trust.utpm import MicroTpm


@pytest.fixture(scope="module")
def made() -> Attested:
    return attested()


def test_layouts_are_those_documented() -> None:
    job, read, wrote = (bytes([i]) * 32 for i in (1, 2, 3))
    leaf = b"quoreduce task 1" + job + b"\x02" + struct.pack(">QQ", 5, 9) + read + wrote
    assert task_leaf(job, "reduce", 5, 9, read, wrote) == leaf
    assert len(leaf) == 129
    c = CHALLENGE
    assert evidence.launch_nonce(c, job, "ü") == sha256(b"quoreduce launch 1" + c + job + b"\xc3\xbc").digest()
    assert evidence.batch_nonce(c, 7) == sha256(b"quoreduce batch 1" + c + b"\0\0\0\0\0\0\0\x07").digest()
    assert evidence.seal_nonce(c, job) == sha256(b"quoreduce receipt 1" + c + job).digest()
    assert evidence.operation_digest(job, "core 0") == sha256(b"quoreduce operation 1" + job + b"core 0").digest()
    ak = MicroTpm().public
    record = b"quoreduce enrolment 1" + sha256(b"certificate").digest() + b"\x00\x0b" + sha256(ak.encode()).digest()
    assert evidence.enrolment_record(b"certificate", ak) == record
    inner = blake3(b"quoreduce output 1" + read + struct.pack("<Q", 7)).digest()
    assert evidence.part_output(read, 7, 8, 9) == blake3(inner + struct.pack("<QQ", 8, 9)).digest()


def test_the_chain_recomputed_by_hand_from_the_json_alone(made: Attested) -> None:
    """An independent twin: JSON and hashlib, nothing of ours but the receipt's bytes and the signed messages."""
    document = json.loads(made.raw)
    job = json.dumps(document["job"], separators=(",", ":"), ensure_ascii=False).encode()
    challenge = b64decode(document["challenge"])
    id_ = sha256(b"quoreduce job 1" + challenge + job).digest()
    leaves: dict[tuple[int, int, int], bytes] = {}
    for kind, index, _, read, wrote, places in document["tasks"]:
        for utpm, batch, position, attempt in places:
            head = b"quoreduce task 1" + id_ + bytes([kind]) + index.to_bytes(8, "big") + attempt.to_bytes(8, "big")
            leaves[utpm, batch, position] = head + b64decode(read) + b64decode(wrote)
    for number, utpm in enumerate(document["utpms"]):
        operation = sha256(b"quoreduce operation 1" + id_ + utpm["domain"].encode()).digest()
        fixed = sha256(bytes(32) + sha256(DOCUMENT).digest()).digest() + sha256(bytes(32) + operation).digest()
        register = bytes(32)
        for place, (count, root, message, _) in enumerate(utpm["batches"]):
            mine = [sha256(b"\0" + leaves.pop((number, place, i))).digest() for i in range(count)]
            assert b64decode(root) == (mine[0] if count == 1 else sha256(b"\x01" + mine[0] + mine[1]).digest())
            event = b"quoreduce batch event 1" + struct.pack(">QBQ", place, 2, count) + b64decode(root)
            register = sha256(register + sha256(event).digest()).digest()
            signed = b64decode(message)
            nonce = sha256(b"quoreduce batch 1" + challenge + place.to_bytes(8, "big")).digest()
            assert signed[:6] == b"\xffTCG\x80\x18"
            assert signed[42:76] == b"\x00\x20" + nonce
            assert signed.endswith(
                b"\x00\x00\x00\x01\x00\x0b\x03\x03\x00\x01\x00\x20" + sha256(fixed + register).digest()
            )
    assert not leaves


def test_the_receipt_is_json_with_the_documented_members(made: Attested) -> None:
    document = json.loads(made.raw)
    assert list(document) == [
        "format", "job", "challenge", "started", "ended", "launches", "utpms", "tasks", "reads", "manifest", "seals",
    ]  # fmt: skip
    assert (document["started"], document["ended"]) == ("2026-03-04T05:01:07Z", "2026-03-04T05:04:07Z")
    unsealed = made.raw[: made.raw.index(b'"seals":')] + b'"seals":[]}'
    assert made.receipt.body() == sha256(unsealed).digest()
    assert receipt.decode_receipt(made.raw) == made.receipt
    assert isinstance(made.receipt, Receipt)
    assert isinstance(made.receipt.utpms[0].batches[0], QuotedBatch)
    assert output_of("reduce", 0) == made.receipt.tasks[-2].output
