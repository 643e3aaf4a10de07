from __future__ import annotations

import json
from typing import Any

import pytest
from groundcrew import batch_store, objects
from groundcrew.errors import GroundcrewError
from hypothesis import given
from hypothesis import strategies as st

BUCKET = "groundcrew-test-store"
JOB = "digits_nightly"
OLD, NEW = "20260101T000000Z", "20260102T000000Z"


def write(client: Any, run_id: str, parts: int = 2) -> tuple[str, bool]:
    writer = batch_store.BatchWriter(client, BUCKET, JOB, run_id)
    for index in range(parts):
        writer.add_part(index, f"part {index} of {run_id}".encode(), 10)
    writer.add_rejected(b"rejected", 1)
    return writer.finish({"model_name": "digits", "model_version": "1"})


def test_no_run_is_none(client):
    assert batch_store.read_latest(client, BUCKET, JOB) is None


def test_written_run_is_read_back(client):
    digest, latest = write(client, NEW)
    run = batch_store.read_latest(client, BUCKET, JOB)
    assert latest
    assert run is not None
    assert run.run_id == NEW
    assert run.manifest_sha256 == digest
    assert run.parts == [f"part {index} of {NEW}".encode() for index in (0, 1)]
    counts = [run.manifest[key] for key in ("rows", "predicted", "rejected", "model_version")]
    assert counts == [21, 20, 1, "1"]


def test_reader_may_take_the_first_parts_only(client):
    write(client, NEW)
    run = batch_store.read_latest(client, BUCKET, JOB, max_parts=1)
    assert run is not None
    assert len(run.parts) == 1
    assert run.manifest["predicted"] == 20


def test_parts_are_read_in_the_order_of_their_numbers():
    names = ["part-99999.parquet", "part-100000.parquet", "part-00002.parquet"]
    assert sorted(names, key=batch_store._part_number) == [names[2], names[0], names[1]]


def test_older_run_never_replaces_a_newer_one(client):
    write(client, NEW)
    _, latest = write(client, OLD)
    assert not latest
    run = batch_store.read_latest(client, BUCKET, JOB)
    assert run is not None
    assert run.run_id == NEW


def test_newer_run_that_finishes_in_between_wins(client, monkeypatch):
    """The newer run's LATEST lands between the older run's look and its write."""
    real = objects.put
    raced = []

    def race(client: Any, bucket: str, key: str, data: bytes, **keywords: Any) -> str:
        if key.endswith("LATEST") and not raced:
            raced.append(True)
            write(client, NEW)
        return real(client, bucket, key, data, **keywords)

    monkeypatch.setattr(objects, "put", race)
    _, latest = write(client, OLD)
    assert not latest
    run = batch_store.read_latest(client, BUCKET, JOB)
    assert run is not None
    assert run.run_id == NEW


@given(st.permutations(["20260101T000000Z", "20260102T000000Z", "20260102T000000Z-b"]))
def test_latest_is_the_latest_in_whatever_order_runs_finish(order):
    client = MemoryClient()
    for run_id in order:
        batch_store.move_latest(client, BUCKET, JOB, run_id, "0" * 64)
    pointer = batch_store.read_pointer(client, BUCKET, JOB)
    assert pointer is not None
    assert pointer.run_id == max(order)


def test_nothing_is_visible_before_finish_and_a_killed_run_can_be_written_again(client):
    writer = batch_store.BatchWriter(client, BUCKET, JOB, NEW)
    writer.add_part(0, b"half", 1)
    assert batch_store.read_latest(client, BUCKET, JOB) is None
    write(client, NEW)
    run = batch_store.read_latest(client, BUCKET, JOB)
    assert run is not None
    assert len(run.parts) == 2


def test_finished_run_is_immutable_and_can_still_be_made_latest(client):
    digest, _ = write(client, NEW)
    client.delete_object(Bucket=BUCKET, Key=f"predictions/{JOB}/LATEST")
    with pytest.raises(GroundcrewError, match="complete and cannot be written again"):
        write(client, NEW)
    assert batch_store.finished(client, BUCKET, JOB, NEW) == digest
    assert batch_store.move_latest(client, BUCKET, JOB, NEW, digest)
    assert batch_store.read_latest(client, BUCKET, JOB) is not None


def test_a_part_of_the_same_identity_is_kept_and_counts_as_written(client):
    first = batch_store.BatchWriter(client, BUCKET, JOB, NEW)
    assert first.written_parts() == set()
    first.add_part(0, b"zero", 4, "a")
    first.add_part(12, b"twelve", 6, "a")
    first.add_part(3, b"without", 1)
    writer = batch_store.BatchWriter(client, BUCKET, JOB, NEW)
    assert writer.written_parts() == {0, 3, 12}
    assert writer.keep_part(0, 4, "a") == b"zero"
    assert writer.files == {"part-00000.parquet": first.files["part-00000.parquet"]}
    for index, rows, identity in ((0, 5, "a"), (0, 4, "b"), (0, 4, ""), (3, 1, ""), (1, 4, "a")):
        assert writer.keep_part(index, rows, identity) is None
    key = f"predictions/{JOB}/{NEW}/part-00012.parquet"
    metadata = client.head_object(Bucket=BUCKET, Key=key)["Metadata"]
    client.put_object(Bucket=BUCKET, Key=key, Body=b"twelfe", Metadata=metadata)
    assert writer.keep_part(12, 6, "a") is None
    assert list(writer.files) == ["part-00000.parquet"]


def test_a_run_that_is_held_back_is_whole_and_not_latest_until_it_is_accepted(client):
    write(client, OLD)
    writer = batch_store.BatchWriter(client, BUCKET, JOB, NEW)
    writer.add_part(0, b"x", 1)
    writer.add_rejected(b"", 0)
    digest, latest = writer.finish({"held_back": "too few rows"})
    assert not latest
    assert batch_store.read_pointer(client, BUCKET, JOB).run_id == OLD
    manifest, found = batch_store.read_manifest(client, BUCKET, JOB, NEW)
    assert (manifest["held_back"], found) == ("too few rows", digest)
    assert batch_store.read_manifest(client, BUCKET, JOB, "20260103T000000Z") is None
    assert batch_store.move_latest(client, BUCKET, JOB, NEW, digest, accepted=True)
    assert batch_store.read_latest(client, BUCKET, JOB).run_id == NEW
    stored = json.loads(objects.get(client, BUCKET, batch_store.latest_key(JOB)).data)
    assert stored == {"run": NEW, "manifest_sha256": digest, "accepted": True}


def test_finish_refuses_gaps_and_a_missing_rejected_file(client):
    writer = batch_store.BatchWriter(client, BUCKET, JOB, NEW)
    writer.add_part(1, b"x", 1)
    with pytest.raises(GroundcrewError, match="lacks parts"):
        writer.finish({})
    writer.add_part(0, b"x", 1)
    with pytest.raises(GroundcrewError, match="rejected"):
        writer.finish({})


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (f"{NEW}/part-00001.parquet", b"tampered", "part-00001.parquet has sha256"),
        (f"{NEW}/part-00000.parquet", None, "part-00000.parquet is missing"),
        (f"{NEW}/manifest.json", b"{}", "LATEST expects"),
        (f"{NEW}/manifest.json", None, "although LATEST names it"),
        ("LATEST", b'{"run": "../../x", "manifest_sha256": "0"}', "malformed"),
        ("LATEST", b"\xff", "malformed"),
    ],
)
def test_corruption_is_an_error_that_names_the_object(client, name, body, message):
    write(client, NEW)
    key = f"predictions/{JOB}/{name}"
    if body is None:
        client.delete_object(Bucket=BUCKET, Key=key)
    else:
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
    with pytest.raises(GroundcrewError, match=message):
        batch_store.read_latest(client, BUCKET, JOB)


def test_malformed_latest_is_replaced_by_the_next_run(client):
    client.put_object(Bucket=BUCKET, Key=f"predictions/{JOB}/LATEST", Body=b"{")
    write(client, NEW)
    run = batch_store.read_latest(client, BUCKET, JOB)
    assert run is not None
    assert run.run_id == NEW


@given(
    st.binary() | st.dictionaries(st.text(), st.integers()).map(lambda d: json.dumps(d).encode())
)
def test_any_bytes_as_latest_are_a_readable_error(data):
    client = MemoryClient()
    objects.put(client, BUCKET, f"predictions/{JOB}/LATEST", data)
    with pytest.raises(GroundcrewError, match="malformed"):
        batch_store.read_pointer(client, BUCKET, JOB)


@pytest.mark.parametrize("run_id", ["", "latest", "2026-01-01", "20260101T000000Z/..", NEW + "\n"])
def test_run_ids_are_refused(client, run_id):
    with pytest.raises(GroundcrewError, match="run id"):
        batch_store.BatchWriter(client, BUCKET, JOB, run_id)


class MemoryClient:
    """S3's conditional put and get over a dictionary: fast enough for hypothesis."""

    class exceptions:
        class ClientError(Exception):
            def __init__(self, code: str) -> None:
                self.response = {"Error": {"Code": code}}

    def __init__(self) -> None:
        self.stored: dict[str, tuple[bytes, str]] = {}

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        import io

        if Key not in self.stored:
            raise self.exceptions.ClientError("NoSuchKey")
        data, etag = self.stored[Key]
        return {"Body": io.BytesIO(data), "ETag": etag}

    def put_object(
        self,
        Bucket: str,
        Key: str,
        Body: bytes,
        Metadata: dict[str, str],
        IfMatch: str | None = None,
        IfNoneMatch: str | None = None,
    ) -> dict[str, Any]:
        current = self.stored.get(Key)
        if (IfNoneMatch and current) or (IfMatch and (not current or current[1] != IfMatch)):
            raise self.exceptions.ClientError("PreconditionFailed")
        self.stored[Key] = (Body, f'"{hash(Body)}"')
        return {"ETag": self.stored[Key][1]}
