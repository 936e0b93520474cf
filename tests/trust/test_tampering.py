"""A campaign of seeded mutations: none is accepted, none raises, each takes less than a second and little memory.

Some are made by someone who has the files alone; others, ``sealed anew``, by someone whom the honest µTPMs would even
give their seals, so that the links before the last one are put to the test. A mutation that changes nothing is not
counted.
"""

import json
import resource
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from random import Random
from typing import Any

import msgspec
import pytest
from attested import Attested, attested, seal

from quoreduce.errors import EvidenceError
from quoreduce.trust.eventlog import Event, decode_binary, decode_cel_json, encode_binary, encode_cel_json
from quoreduce.trust.receipt import Receipt
from quoreduce.trust.utpm import MicroTpm
from quoreduce.trust.verifier import Verification, verify_quote
from quoreduce.trust.wire import PcrSelection, decode_pcrs_file, encode_pcrs_file, sized

SECONDS_MAX = 1.0
GROWTH_KB_MAX = 512 << 10
Path = tuple[Any, ...]


@pytest.fixture(scope="module")
def made() -> Attested:
    made = attested(maps=1, reduces=1, workers=2, nodes=1, wrong=(("map", 0, 0),))
    assert made.verify().accepted
    return made


@pytest.fixture(scope="module")
def other(made: Attested) -> Attested:
    """Another receipt of the same sort, from the same CA and registrar, to splice with."""
    return attested(maps=1, reduces=1, workers=2, nodes=1, wrong=(("map", 0, 0),), authority=made.authority)


def mutate_bytes(rng: Random, raw: bytes, other: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    short = min(b, a + rng.choice((1, 2, 8, 64)))
    return {
        "flip": lambda: raw[:a] + bytes(x ^ 1 << rng.randrange(8) for x in raw[a : a + 1]) + raw[a + 1 :],
        "delete": lambda: raw[:a] + raw[short:],
        "duplicate": lambda: raw[:short] + raw[a:],
        "insert": lambda: raw[:a] + rng.randbytes(rng.choice((1, 2, 9))) + raw[a:],
        "swap": lambda: raw[:a] + raw[short : short + 8] + raw[a:short] + raw[short + 8 :],
        "truncate": lambda: raw[:a],
        "splice": lambda: raw[:a] + other[a:],
        "patch": lambda: raw[:a] + other[a:short] + raw[short:],
        "zero": lambda: raw[:a] + bytes(short - a) + raw[short:],
    }[rng.choice(("flip", "delete", "duplicate", "insert", "swap", "truncate", "splice", "patch", "zero"))]()


VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "A" * 44,
    "\x00", "\u202e", "\ufeff", "ſ", "é", "𝕏", "../../x", "0" * 5000, [], {}, [[]], {"": 0}, "2026-03-04T05:04:07Z",
)  # fmt: skip


def paths(document: Any, here: Path = ()) -> Iterator[Path]:
    """The places of all values in a JSON document."""
    yield here
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from paths(value, (*here, key))


def at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def mutate_json(rng: Random, document: Any, path: Path, other: Any) -> None:
    """Change one value, in place."""
    parent, key = at(document, path[:-1]), path[-1]
    value = parent[key]
    choices: list[Callable[[], Any]] = [lambda: rng.choice(VALUES), lambda: nested(rng.choice((1, 30, 300)))]
    if isinstance(value, int):
        choices += [
            lambda: value + 1,
            lambda: value - 1,
            lambda: value ^ 1 << rng.randrange(20),
            lambda: float(value),
        ] * 2
    if isinstance(value, str):
        choices += [lambda: text(rng, value)] * 8
    if isinstance(value, list | dict) and value:
        choices += [lambda: container(rng, value)] * 8
    try:
        spliced = at(other, path)
        choices += [lambda: spliced] * 4
    except LookupError:
        pass
    parent[key] = rng.choice(choices)()


def text(rng: Random, value: str) -> str:
    """Change a string: as the bytes that it encodes, if it does, so that the result is canonical base64."""
    try:
        raw = b64decode(value, validate=True)
    except ValueError:
        raw = b""
    if not raw or rng.random() < 0.1:
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice(("", "x", "=", " ", "\n", "é")) + value[place + 1 :]
    return b64encode(mutate_bytes(rng, raw, raw[::-1])).decode()


def container(rng: Random, value: Any) -> Any:
    """Delete, repeat or exchange members."""
    if isinstance(value, dict):
        keys = list(value)
        gone = rng.choice(keys)
        renamed = {("x" + key if key == gone and rng.random() < 0.5 else key): value[key] for key in keys}
        return {key: one for key, one in renamed.items() if key != gone} | ({"more": 1} if rng.random() < 0.3 else {})
    copy = list(value)
    one, two = rng.randrange(len(copy)), rng.randrange(len(copy))
    change = rng.choice(("delete", "repeat", "exchange", "reverse", "end"))
    if change == "exchange":
        copy[one], copy[two] = copy[two], copy[one]
    elif change == "reverse":
        copy.reverse()
    else:
        copy[one : one + 1] = {"delete": [], "repeat": [copy[one]] * 2, "end": [*copy[one:], copy[one]]}[change]
    return copy


def canonical(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


def all_refused(
    mutations: Iterable[bytes], verify: Callable[[bytes], Verification], honest: tuple[bytes, ...], wanted: int
) -> None:  # fmt: skip
    """Verify ``wanted`` distinct mutations, none of them one of the ``honest`` documents."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = set(honest)
    for mutated in mutations:
        if mutated in done:
            continue
        done.add(mutated)
        start = time.process_time()
        verdict = verify(mutated)
        took = time.process_time() - start
        assert not verdict.accepted, f"accepted: {mutated!r}"
        assert verdict.reason in verdict.as_text()
        assert json.loads(verdict.as_json())["ear.status"] != "affirming"
        assert took < SECONDS_MAX
        if len(done) == wanted + len(set(honest)):
            break
    assert len(done) == wanted + len(set(honest))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KB_MAX


def json_mutations(rng: Random, made: Attested, other: Attested, places: list[Path]) -> Iterator[bytes]:
    """Receipts with one value changed, at one of these places; without end."""
    raw, spliced = made.raw, json.loads(other.raw)
    while True:
        document = json.loads(raw)
        mutate_json(rng, document, rng.choice(places), spliced)
        yield canonical(document)


def places_in(made: Attested, chosen: Callable[[Path], bool]) -> list[Path]:
    return [path for path in paths(json.loads(made.raw)) if path and chosen(path)]


@pytest.mark.parametrize("seed", range(3))
def test_receipts_with_bytes_changed(made: Attested, other: Attested, seed: int) -> None:
    rng, raw = Random(f"bytes {seed}"), made.raw
    mutations = (mutate_bytes(rng, raw, other.raw) for _ in count())
    all_refused(mutations, made.verify, (raw, other.raw), 500)


@pytest.mark.parametrize("seed", range(3))
def test_receipts_with_a_value_changed(made: Attested, other: Attested, seed: int) -> None:
    assert canonical(json.loads(made.raw)) == made.raw
    mutations = json_mutations(Random(f"json {seed}"), made, other, places_in(made, bool))
    all_refused(mutations, made.verify, (made.raw,), 600)


EVIDENCE = {
    "quotes": lambda path: path[-1] in ("message", "signature") or (path[0] in ("utpms", "seals") and len(path) > 4),
    "certificates": lambda path: "ek" in path,
    "keys and enrolment": lambda path: path[-1] in ("ak", "enrolment", "public"),
    "logs": lambda path: path[-1] == "log",
    "batches": lambda path: "batches" in path,
    "tasks": lambda path: path[0] in ("tasks", "reads"),
    "seals": lambda path: path[0] == "seals",
}


@pytest.mark.parametrize("part", EVIDENCE)
def test_receipts_with_a_piece_of_evidence_changed(made: Attested, other: Attested, part: str) -> None:
    mutations = json_mutations(Random(part), made, other, places_in(made, EVIDENCE[part]))
    all_refused(mutations, made.verify, (made.raw,), 250)


def test_receipts_changed_and_sealed_anew(made: Attested, other: Attested) -> None:
    """What the seals alone hold (times, who sealed) is left as it is: all else has a link of its own."""
    free = {"started", "ended", "sealed", "seals"}
    places = places_in(made, lambda path: not free & set(path))

    def mutations() -> Iterator[bytes]:
        bodies = {made.receipt.body()}
        for mutated in json_mutations(Random("sealed anew"), made, other, places):
            try:
                receipt = msgspec.json.decode(mutated, type=Receipt)
            except (msgspec.MsgspecError, UnicodeError):
                continue  # it cannot even be sealed
            if len(receipt.utpms) == len(made.tpms) and receipt.body() not in bodies:
                bodies.add(receipt.body())
                yield seal(receipt, made.tpms).encode()

    all_refused(mutations(), made.verify, (), 800)


def test_manifests_with_bytes_changed(made: Attested) -> None:
    rng, manifest = Random("manifest"), made.manifest
    mutations = (mutate_bytes(rng, manifest, manifest[::-1]) for _ in count())
    all_refused(mutations, lambda changed: made.verify(manifest=changed), (manifest,), 150)


def test_repeated_members_are_refused(made: Attested) -> None:
    raw = made.raw
    starts = [
        i + 1 for i, byte in enumerate(raw) if byte in b"{," and raw[i + 1 : i + 2] == b'"' and b'":' in raw[i : i + 14]
    ]
    foreign = (raw[:i] + b'"format":"quoreduce receipt 1",' + raw[i:] for i in starts)
    all_refused(foreign, made.verify, (raw,), 20)
    again = (raw[:i] + raw[i : raw.index(b",", i) + 1] + raw[i:] for i in starts)
    all_refused(again, made.verify, (raw,), 20)


def test_documents_that_are_bombs(made: Attested) -> None:
    bombs = [
        b"[" * 3_000_000, b'{"job":' * 500_000, b'{"a":' * 500_000 + b"1" + b"}" * 500_000,
        b'"' + b"\\u0041" * 5_000_000 + b'"',
        b"9" * 5_000_000, b"-" * 100_000, b"1e" + b"9" * 100_000, b"\x00" * 10_000_000, b"\xff" * 1_000_000, b"",
        b"null", b"{}",
        made.raw.replace(b'"tasks":[', b'"tasks":[' + b"[0,0,1,null]," * 300_000),
        made.raw.replace(b'"options":{', b'"options":{' + b",".join(b'"%d":"x"' % i for i in range(300_000)) + b","),
        made.raw.replace(b'"reads":[', b'"reads":[' + b"0," * 2_000_000),
    ]  # fmt: skip
    all_refused(bombs, made.verify, (made.raw,), len(bombs))


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa"])
def test_quotes_in_files_with_bytes_changed(scheme: Any) -> None:
    tpm, events = MicroTpm(scheme), [Event.of(16, b"one"), Event.of(23, b"two")]
    for event in events:
        tpm.extend(event.pcr, event.digest)
    quoted = tpm.quote((16, 23), b"nonce")
    pcrs = encode_pcrs_file(PcrSelection.sha256(16, 23), quoted.values)
    files = {"message": quoted.message, "signature": quoted.signature, "nonce": b"nonce", "pcrs": pcrs}
    files["log"] = encode_binary(events)
    key = sized(tpm.public.encode())
    assert verify_quote(key, **files).accepted
    for name, original in files.items():
        rng = Random(f"{scheme} {name}")
        mutations = (mutate_bytes(rng, original, original[::-1]) for _ in count())
        meant = (one for one in mutations if name != "pcrs" or not same_pcrs(one, original))
        all_refused(meant, lambda one, name=name: verify_quote(key, **(files | {name: one})), (original,), 100)  # type: ignore[misc]


def same_pcrs(one: bytes, two: bytes) -> bool:
    """The file of tpm2-tools has padding that means nothing."""
    try:
        return decode_pcrs_file(one) == decode_pcrs_file(two)
    except EvidenceError:
        return False


@pytest.mark.parametrize(("encode", "decode"), [(encode_binary, decode_binary), (encode_cel_json, decode_cel_json)])
def test_logs_with_bytes_changed_are_refused_or_other_logs(encode: Any, decode: Any) -> None:
    events = (Event.of(16, b"one"), Event.of(23, b"two"))
    rng, raw = Random("logs"), encode(events)
    for _ in range(300):
        mutated = mutate_bytes(rng, raw, raw[::-1])
        try:
            assert mutated == raw or decode(mutated) != events
        except EvidenceError:
            continue
