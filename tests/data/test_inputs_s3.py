"""The whole way over S3: plan, read, commit, verify; against moto's server on the loopback interface."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from blake3 import blake3

from quoreduce.data.commit import UriOutput, open_output
from quoreduce.data.formats import parse_format
from quoreduce.data.inputs import open_split
from quoreduce.data.manifest import InputFile, Manifest, ManifestError, ManifestPart, read_manifest, verify_output
from quoreduce.data.splits import plan_splits
from quoreduce.errors import InputError, OutputError

LINES, WORDS = parse_format("lines"), parse_format("words")


class Bucket:
    """A bucket of its own for a test; ``uri("a/b")`` names a key in it."""

    def __init__(self, client: Any, port: int, name: str) -> None:
        self.client, self.port, self.name = client, port, name
        client.create_bucket(Bucket=name)

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def keys(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(one["Key"] for one in found)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Any, int]]:
    import boto3
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        port = running.get_host_and_port()[1]
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
        yield client, port
        running.stop()


@pytest.fixture
def bucket(server: tuple[Any, int], request: pytest.FixtureRequest) -> Bucket:
    client, port = server
    return Bucket(client, port, f"bucket-{crc32(request.node.name.encode()):x}")


def read_all(sources: list[str], scratch: Path, fmt: Any = LINES, split_bytes: int = 7) -> bytes:
    found = b""
    for split in plan_splits(sources, fmt, split_bytes):
        with open_split(split, fmt, scratch) as array:
            found += array.tobytes()
    return found


def test_objects_prefixes_globs_and_compressed_members_are_read(bucket: Bucket, tmp_path: Path) -> None:
    text = b"the quick brown fox\r\njumps over\n\nthe lazy dog"
    bucket.put("in/a.txt", text)
    bucket.put("in/b 100%?.txt", b"second\n")
    bucket.put("in/c.gz", gzip.compress(b"third\n"))
    for skipped in ("_SUCCESS", ".hidden", "sub/inner", "empty"):
        bucket.put(f"in/{skipped}", b"" if skipped == "empty" else b"skipped\n")
    assert read_all([bucket.uri("in/a.txt")], tmp_path) == text
    assert read_all([bucket.uri("in")], tmp_path) == text + b"second\nthird\n"
    assert read_all([bucket.uri("in/")], tmp_path) == text + b"second\nthird\n"
    assert read_all([bucket.uri("in/*.txt")], tmp_path) == text + b"second\n"
    assert read_all([bucket.uri("in/a.txt")], tmp_path, WORDS, 1).split() == text.split()


@pytest.mark.parametrize("key", ["nothing", "only", "in/*.zip"])
def test_what_is_not_there_is_named_without_the_query(bucket: Bucket, key: str) -> None:
    bucket.put("only/_SUCCESS", b"x")
    bucket.put("in/a.txt", b"x")
    with pytest.raises(InputError) as caught:
        plan_splits([bucket.uri(key)], LINES, 7)
    assert f"s3://{bucket.name}/" in str(caught.value)
    assert "endpoint_override" not in str(caught.value)


def test_an_object_that_changed_since_the_plan_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a", b"line\n")
    (split,) = plan_splits([bucket.uri("a")], LINES, 64)
    bucket.put("a", b"line\nline\n")
    with pytest.raises(InputError, match="changed while the job ran"), open_split(split, LINES, tmp_path):
        pass


def digest_file(path: Path) -> bytes:
    return blake3(path.read_bytes()).digest()


def write(bucket: Bucket, scratch: Path, contents: list[bytes], overwrite: bool = False) -> UriOutput:
    """Publish one part for each of ``contents`` to s3://.../out; the manifest is not written yet."""
    output = open_output(bucket.uri("out"), overwrite, [bucket.uri("in")], "job", scratch)
    assert isinstance(output, UriOutput)
    for i, content in enumerate(contents):
        Path(output.attempt_path(i, 0)).write_bytes(b"a losing attempt")
        Path(output.attempt_path(i, 1)).write_bytes(content)
        output.publish(i, 1)
        output.publish(i, 1)
    return output


def manifest_of(contents: list[bytes]) -> bytes:
    parts = [ManifestPart(f"part-r-{i:05d}", blake3(c).hexdigest(), len(c), 1) for i, c in enumerate(contents)]
    inputs = [InputFile("s3://user:secret@bucket/in?x=y", 3)]
    return Manifest.build(
        quoreduce="0", job="j", mode="bft", f=1, digest_algorithm="blake3", parts=parts, inputs=inputs, records_in=1
    ).encode()


def test_an_output_is_uploaded_with_its_manifest_last_and_verified(bucket: Bucket, tmp_path: Path) -> None:
    contents = [b"one\n", b"", b"three\n" * 1000]
    output = write(bucket, tmp_path, contents)
    assert bucket.keys() == ["out/part-r-00000", "out/part-r-00001", "out/part-r-00002"]
    with pytest.raises(ManifestError, match="has no _SUCCESS"):
        read_manifest(bucket.uri("out"))
    output.finish(manifest_of(contents), b'{"receipt": 1}')
    output.abort()
    assert bucket.get("out/_RECEIPT.json") == b'{"receipt": 1}'
    assert [bucket.get(f"out/part-r-{i:05d}") for i in range(3)] == contents
    assert b"secret" not in bucket.get("out/_SUCCESS")
    assert list(tmp_path.iterdir()) == []
    assert read_manifest(bucket.uri("out")).inputs[0].path == "s3://bucket/in"
    report = verify_output(bucket.uri("out"), digest_file)
    assert (report.ok, report.path) == (True, f"s3://{bucket.name}/out")
    bucket.put("out/part-r-00000", b"0ne\n")
    assert verify_output(bucket.uri("out"), digest_file).altered == ("part-r-00000",)


def test_an_existing_output_is_kept_until_its_successor_publishes(bucket: Bucket, tmp_path: Path) -> None:
    write(bucket, tmp_path, [b"old", b"old"]).finish(manifest_of([b"old", b"old"]))
    with pytest.raises(OutputError, match="exists"):
        write(bucket, tmp_path, [])
    write(bucket, tmp_path, [], overwrite=True).abort()
    assert len(bucket.keys()) == 3
    write(bucket, tmp_path, [b"new"], overwrite=True).finish(manifest_of([b"new"]))
    keys = bucket.keys()  # pyarrow leaves an empty object "out/" where all files of a directory went
    assert set(keys) - {"out/"} == {"out/_SUCCESS", "out/part-r-00000"}
    assert bucket.get("out/part-r-00000") == b"new"


def test_abort_deletes_what_was_uploaded(bucket: Bucket, tmp_path: Path) -> None:
    write(bucket, tmp_path, [b"one", b"two"]).abort()
    assert bucket.keys() == []
    assert list(tmp_path.iterdir()) == []


def test_what_no_job_wrote_is_not_overwritten(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("out/precious.txt", b"x")
    with pytest.raises(OutputError, match=r"precious\.txt"):
        write(bucket, tmp_path, [], overwrite=True)


@pytest.mark.parametrize("place", ["in", "in/out", ""])
def test_an_output_that_overlaps_an_input_is_refused(bucket: Bucket, tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError, match="inside each other"):
        open_output(bucket.uri(place), False, [bucket.uri("in")], "job", tmp_path)


def test_a_bucket_that_is_not_there_is_an_output_error(bucket: Bucket, tmp_path: Path) -> None:
    output = open_output(bucket.uri("out").replace(bucket.name, "no-such-bucket"), False, [], "job", tmp_path)
    Path(output.attempt_path(0, 0)).write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot write"):
        output.publish(0, 0)
    output.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_job_reads_from_and_writes_to_buckets(bucket: Bucket) -> None:
    from quoreduce import run
    from quoreduce.jobs.find import find_job

    bucket.put("in/a.txt", b"a b a\n")
    bucket.put("in/b.txt", b"b a\n")
    result = run(find_job("wordcount"), bucket.uri("in/"), bucket.uri("counted"), on="inline", reducers=1)
    assert bucket.keys() == ["counted/_SUCCESS", "counted/part-r-00000", "in/a.txt", "in/b.txt"]
    assert bucket.get("counted/part-r-00000") == b"a\t3\nb\t2\n"
    assert result.records_out == 2
    assert verify_output(bucket.uri("counted"), lambda path: blake3(path.read_bytes()).digest()).ok
