"""The reloader: it follows LATEST, and nothing bad in the store replaces a good run."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from application_support import BUCKET, JOB, PROBABILITIES, write_run
from digits_application.batch import ITEMS, BatchReloader
from groundcrew import batch_store

FIRST, SECOND, THIRD = "20260131T040506Z", "20260201T040506Z", "20260202T040506Z"
LATEST = batch_store.latest_key(JOB)


@pytest.fixture
def reloader(store: Any) -> BatchReloader:
    return BatchReloader(store, BUCKET, JOB, poll_seconds=0.01)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited 10 s for {what}"
        time.sleep(0.005)


def test_no_run_yet(reloader: BatchReloader) -> None:
    assert not reloader.reload()
    assert (reloader.current, reloader.failures) == (None, 0)


def test_loads_a_run(store: Any, reloader: BatchReloader) -> None:
    write_run(store, FIRST)
    assert reloader.reload()
    run = reloader.current
    assert run is not None
    assert (run.run, run.rows, run.rejected, run.model_version) == (FIRST, 6, 1, "3")
    assert 0 <= run.age_seconds < 60
    assert [item["id"] for item in run.items] == [f"row-{index}" for index in range(5)]
    assert run.items[0]["digit"] == 7
    assert run.items[0]["probability"] == max(PROBABILITIES)
    assert len(run.items[0]["instance"]) == 64
    assert not reloader.reload()
    assert reloader.current is run


def test_keeps_only_the_first_items(store: Any, reloader: BatchReloader) -> None:
    write_run(store, FIRST, rows=ITEMS + 20, chunk=30)
    assert reloader.reload() and reloader.current
    assert len(reloader.current.items) == ITEMS
    assert reloader.current.rows == ITEMS + 21


def test_runs_without_instances(store: Any, reloader: BatchReloader) -> None:
    write_run(store, FIRST, instances=False)
    assert reloader.reload() and reloader.current
    assert reloader.current.items[0]["instance"] is None


def delete_latest(store: Any) -> None:
    store.delete_object(Bucket=BUCKET, Key=LATEST)


def corrupt_latest(store: Any) -> None:
    store.put_object(Bucket=BUCKET, Key=LATEST, Body=b'{"run": ')


def name_an_older_run(store: Any) -> None:
    old = json.dumps({"run": FIRST, "manifest_sha256": "0" * 64})
    store.put_object(Bucket=BUCKET, Key=LATEST, Body=old.encode())


def newer_run_without_manifest(store: Any) -> None:
    write_run(store, THIRD)
    key = batch_store.run_prefix(JOB, THIRD) + "manifest.json"
    store.delete_object(Bucket=BUCKET, Key=key)


def newer_run_without_part(store: Any) -> None:
    write_run(store, THIRD)
    key = batch_store.run_prefix(JOB, THIRD) + "part-00001.parquet"
    store.delete_object(Bucket=BUCKET, Key=key)


def newer_run_truncated(store: Any) -> None:
    write_run(store, THIRD)
    key = batch_store.run_prefix(JOB, THIRD) + "part-00001.parquet"
    whole = store.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    store.put_object(Bucket=BUCKET, Key=key, Body=whole[:-10])


def newer_run_is_not_parquet(store: Any) -> None:
    writer = batch_store.BatchWriter(store, BUCKET, JOB, THIRD)
    writer.add_part(0, b"id,predictions\n", 1)
    writer.add_rejected(b"", 0)
    writer.finish({})


def bucket_is_gone(store: Any) -> None:
    for entry in store.list_objects_v2(Bucket=BUCKET)["Contents"]:
        store.delete_object(Bucket=BUCKET, Key=entry["Key"])
    store.delete_bucket(Bucket=BUCKET)


@pytest.mark.parametrize(
    "harm",
    [
        delete_latest,
        corrupt_latest,
        name_an_older_run,
        newer_run_without_manifest,
        newer_run_without_part,
        newer_run_truncated,
        newer_run_is_not_parquet,
        bucket_is_gone,
    ],
    ids=lambda harm: harm.__name__,
)
def test_the_last_good_run_stays(
    store: Any,
    reloader: BatchReloader,
    harm: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_run(store, SECOND)
    assert reloader.reload()
    good = reloader.current
    harm(store)
    with caplog.at_level(logging.ERROR, "digits_application"):
        assert not reloader.reload()
        assert not reloader.reload()
    assert reloader.current is good
    assert reloader.failures == 2
    assert len(caplog.records) == 1  # a problem that lasts is logged once


def test_recovers_with_the_next_good_run(store: Any, reloader: BatchReloader) -> None:
    write_run(store, FIRST)
    reloader.reload()
    newer_run_truncated(store)
    assert not reloader.reload()
    fourth = "20260203T040506Z"
    write_run(store, fourth)
    assert reloader.reload() and reloader.current
    assert reloader.current.run == fourth


def test_thread_loads_at_start_follows_and_stops(store: Any, reloader: BatchReloader) -> None:
    write_run(store, FIRST)
    reloader.start()
    wait_until(lambda: reloader.current is not None, "the first run")
    write_run(store, SECOND)
    wait_until(lambda: bool(reloader.current and reloader.current.run == SECOND), "the second run")
    reloader.stop()
    assert "batch-reloader" not in {thread.name for thread in threading.enumerate()}


def test_a_store_that_hangs_blocks_nobody() -> None:
    answer = threading.Event()

    class HangingStore:
        def get_object(self, **_: Any) -> None:
            answer.wait(10)

    reloader = BatchReloader(HangingStore(), BUCKET, JOB, poll_seconds=0.01)
    started = time.monotonic()
    reloader.start()
    assert reloader.current is None
    assert time.monotonic() - started < 5
    answer.set()
    reloader.stop()
