"""The reloader: it follows LATEST at the price of a conditional request, and nothing bad in the store replaces a good run."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from application_support import (
    BUCKET,
    JOB,
    Killed,
    MemoryStore,
    StoreServer,
    wait_until,
    write_run,
)
from groundcrew import batch_store, objects
from groundcrew_application.reloader import Hooks, Incoming, Reloader

FIRST, SECOND, THIRD, FOURTH = (f"2026020{day}T040506Z" for day in range(1, 5))
LATEST = batch_store.latest_key(JOB)


class Told(Hooks):
    def __init__(self) -> None:
        self.runs: list[str] = []
        self.problems: list[tuple[str, str | None]] = []

    def loaded(self, run_id: str, seconds: float) -> None:
        self.runs.append(run_id)

    def problem(self, problem: str, kept: str | None) -> None:
        self.problems.append((problem, kept))


def sizes(incoming: Incoming) -> list[int]:
    return [len(part) for part in incoming.parts()]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def reloader(store: Any, told: Told) -> Reloader[list[int]]:
    return Reloader(store, BUCKET, JOB, sizes, poll_seconds=0.01, hooks=told)


def test_no_run_yet(reloader: Reloader[list[int]]) -> None:
    assert not reloader.reload()
    assert (reloader.current, reloader.failures) == (None, 0)
    status = reloader.status()
    assert (status.run, status.problem, status.failures) == (None, None, 0)
    assert status.checked_seconds_ago is not None and status.checked_seconds_ago < 60


def test_loads_a_run(store: Any, reloader: Reloader[list[int]], told: Told) -> None:
    write_run(store, FIRST)
    assert reloader.reload()
    loaded = reloader.current
    assert loaded is not None
    assert (loaded.run_id, len(loaded.value), loaded.manifest["rows"]) == (FIRST, 2, 6)
    assert 0 <= loaded.age_seconds < 60
    assert told.runs == [FIRST]
    assert not reloader.reload()
    assert reloader.current is loaded
    assert reloader.status().age_seconds is not None


def test_a_look_at_an_unchanged_latest_reads_nothing(memory: MemoryStore) -> None:
    write_run(memory, FIRST)
    reloader = Reloader(memory, BUCKET, JOB, sizes)
    assert reloader.reload()
    memory.gets.clear()
    for _ in range(3):
        assert not reloader.reload()
    assert memory.gets == [(LATEST, False)] * 3
    write_run(memory, SECOND)
    assert reloader.reload()


def test_moto_answers_304_too(store: Any, reloader: Reloader[list[int]]) -> None:
    write_run(store, FIRST)
    reloader.reload()
    statuses: list[int] = []
    store.meta.events.register(
        "after-call.s3.GetObject",
        lambda http_response, **_: statuses.append(http_response.status_code),
    )
    assert not reloader.reload()
    assert statuses == [304]


def test_parts_that_nobody_asked_for_are_verified_too(memory: MemoryStore) -> None:
    write_run(memory, FIRST)
    reloader = Reloader(memory, BUCKET, JOB, lambda incoming: next(incoming.parts()))
    assert reloader.reload()
    write_run(memory, SECOND)
    memory.objects[batch_store.run_prefix(JOB, SECOND) + "part-00001.parquet"] += b"x"
    assert not reloader.reload()
    assert reloader.current is not None and reloader.current.run_id == FIRST


def test_a_whole_run_at_once(memory: MemoryStore) -> None:
    write_run(memory, FIRST)
    reloader = Reloader(memory, BUCKET, JOB, Incoming.whole)
    assert reloader.reload() and reloader.current
    expected = batch_store.read_latest(memory, BUCKET, JOB)
    assert reloader.current.value == expected


def delete_latest(store: Any) -> None:
    store.delete_object(Bucket=BUCKET, Key=LATEST)


def corrupt_latest(store: Any) -> None:
    store.put_object(Bucket=BUCKET, Key=LATEST, Body=b'{"run": ')


def name_an_older_run(store: Any) -> None:
    old = json.dumps({"run": FIRST, "manifest_sha256": "0" * 64})
    store.put_object(Bucket=BUCKET, Key=LATEST, Body=old.encode())


def name_another_manifest(store: Any) -> None:
    other = json.dumps({"run": SECOND, "manifest_sha256": "0" * 64})
    store.put_object(Bucket=BUCKET, Key=LATEST, Body=other.encode())


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


def newer_run_of_another_form(store: Any) -> None:
    writer = batch_store.BatchWriter(store, BUCKET, JOB, THIRD)
    writer.add_part(0, b"id,predictions\n", 1)
    writer.add_rejected(b"", 0)
    writer.finish({"finished": "yesterday"})


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
        name_another_manifest,
        newer_run_without_manifest,
        newer_run_without_part,
        newer_run_truncated,
        newer_run_of_another_form,
        bucket_is_gone,
    ],
    ids=lambda harm: harm.__name__,
)
def test_the_last_good_run_stays(
    store: Any, reloader: Reloader[list[int]], told: Told, harm: Callable[[Any], None]
) -> None:
    write_run(store, SECOND)
    assert reloader.reload()
    good = reloader.current
    harm(store)
    assert not reloader.reload()
    assert not reloader.reload()
    assert reloader.current is good
    assert reloader.failures == 2
    assert len(told.problems) == 1  # a problem that lasts is told once
    problem, kept = told.problems[0]
    assert kept == SECOND and problem
    assert reloader.status().problem == problem


def test_a_loader_that_fails_changes_nothing(memory: MemoryStore, told: Told) -> None:
    def load(incoming: Incoming) -> str:
        if incoming.run_id == SECOND:
            raise MemoryError("too large")
        return incoming.run_id

    reloader = Reloader(memory, BUCKET, JOB, load, hooks=told)
    write_run(memory, FIRST)
    assert reloader.reload()
    write_run(memory, SECOND)
    assert not reloader.reload()
    assert told.problems == [("MemoryError: too large", FIRST)]


def test_recovers_with_the_next_good_run(store: Any, reloader: Reloader[list[int]]) -> None:
    write_run(store, FIRST)
    reloader.reload()
    newer_run_truncated(store)
    assert not reloader.reload()
    write_run(store, FOURTH)
    assert reloader.reload() and reloader.current
    assert reloader.current.run_id == FOURTH
    assert reloader.status().problem is None


def test_a_problem_ends_when_latest_is_as_it_was(memory: MemoryStore, told: Told) -> None:
    reloader = Reloader(memory, BUCKET, JOB, sizes, hooks=told)
    write_run(memory, FIRST)
    reloader.reload()
    memory.down = True
    assert not reloader.reload()
    assert reloader.status().problem is not None
    memory.down = False
    assert not reloader.reload()
    assert reloader.status().problem is None


def test_a_run_that_stays_bad_is_not_read_at_every_look(memory: MemoryStore) -> None:
    now = 0.0
    reloader = Reloader(memory, BUCKET, JOB, sizes, poll_seconds=10, clock=lambda: now)
    write_run(memory, FIRST)
    reloader.reload()
    write_run(memory, SECOND)
    key = batch_store.run_prefix(JOB, SECOND) + "part-00000.parquet"
    good, memory.objects[key] = memory.objects[key], b"broken"
    memory.gets.clear()
    for _ in range(100):
        now += 10
        assert not reloader._reload(patiently=True)
        assert reloader.status().problem is not None
    reads = [name for name, _ in memory.gets if name == key]
    assert 4 <= len(reads) <= 10
    # A newer LATEST is taken at once, and a run that was mended in time.
    write_run(memory, THIRD)
    now += 10
    assert reloader._reload(patiently=True)
    memory.objects[key] = good


def test_thread_loads_at_start_follows_and_stops(store: Any, reloader: Reloader[list[int]]) -> None:
    write_run(store, FIRST)
    reloader.start()
    wait_until(lambda: reloader.current is not None, "the first run")
    write_run(store, SECOND)
    wait_until(
        lambda: bool(reloader.current and reloader.current.run_id == SECOND), "the second run"
    )
    reloader.stop()
    assert "batch-reloader" not in {thread.name for thread in threading.enumerate()}


def test_a_store_that_hangs_blocks_nobody() -> None:
    answer = threading.Event()

    class HangingStore:
        def get_object(self, **_: Any) -> None:
            answer.wait(10)

    reloader = Reloader(HangingStore(), BUCKET, JOB, sizes, poll_seconds=0.01)
    started = time.monotonic()
    reloader.start()
    assert reloader.current is None
    assert reloader.status().checked_seconds_ago is None
    assert time.monotonic() - started < 5
    answer.set()
    reloader.stop()


@pytest.mark.parametrize("faulty", ["LATEST", "manifest.json", "part-00001.parquet"])
@pytest.mark.parametrize("fault", ["500", "cut"])
def test_a_store_that_fails_over_http(
    memory: MemoryStore,
    store_server: StoreServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    faulty: str,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = objects.open_client(store_server.url, "us-east-1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # botocore's own pauses
    reloader = Reloader(client, BUCKET, JOB, sizes)
    write_run(memory, FIRST)
    assert reloader.reload()
    write_run(memory, SECOND)
    store_server.fault, store_server.faulty = fault, faulty
    assert not reloader.reload()
    assert reloader.current is not None and reloader.current.run_id == FIRST
    store_server.fault = ""
    assert reloader.reload()
    assert reloader.current.run_id == SECOND


def test_a_slow_store_leaves_the_last_run_in_place(
    memory: MemoryStore, store_server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = objects.open_client(store_server.url, "us-east-1")
    write_run(memory, FIRST)
    reloader = Reloader(client, BUCKET, JOB, sizes, poll_seconds=0.01)
    reloader.start()
    wait_until(lambda: reloader.current is not None, "the first run")
    store_server.fault, store_server.faulty = "slow", ".parquet"
    write_run(memory, SECOND)
    wait_until(lambda: reloader.status().loading_seconds is not None, "the second run's load")
    started = time.perf_counter()
    loaded = reloader.current
    reloader.status()
    assert time.perf_counter() - started < 0.2
    assert loaded is not None and loaded.run_id == FIRST
    wait_until(lambda: bool(reloader.current and reloader.current.run_id == SECOND), "the swap")
    reloader.stop()


class AnySequence:
    """Whatever happens in the store, ``current`` is a complete run that was published, and never an older one than before.

    A run's parts are its id and number, so what was loaded says whose it is.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.told = Told()
        self.reloader = Reloader(
            self.store,
            BUCKET,
            JOB,
            lambda run: [bytes(part) for part in run.parts()],
            hooks=self.told,
        )
        self.number = 0
        self.newest = ""
        self.done: list[str] = []

    def steps(self, count: int) -> None:
        often = [self.publish, self.reload]
        steps = [
            *often * 3,
            self.publish_and_be_killed,
            self.corrupt,
            self.truncate,
            self.lose,
            self.lose_latest,
            self.name_another,
            self.find_the_store_down,
            self.be_cut_off,
        ]
        for _ in range(count):
            step = self.random.choice(steps)
            self.done.append(step.__name__)
            step()
            self.check()

    def end(self) -> None:
        """It recovers when the store does, and with the next good run."""
        self.store.objects = dict(self.store.written)
        if LATEST in self.store.objects:
            self.reloader.reload()
            named = json.loads(self.store.objects[LATEST])["run"]
            # A complete run whose writer was killed before LATEST may have been named by hand.
            assert self.reloader.current is not None and self.reloader.current.run_id >= named
            self.check()
        run_id = self.publish()
        assert self.reloader.reload()
        assert self.reloader.current is not None and self.reloader.current.run_id == run_id

    def check(self) -> None:
        loaded = self.reloader.current
        if loaded is None:
            assert not self.newest
            return
        assert loaded.value == self.content(loaded.run_id)
        assert loaded.run_id >= self.newest
        self.newest = loaded.run_id

    def run_id(self, number: int) -> str:
        return f"20260101T{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}Z"

    def content(self, run_id: str) -> list[bytes]:
        return [f"{run_id} {part}".encode() for part in range(1 + int(run_id[-2]) % 3)]

    def publish(self) -> str:
        self.number += 1
        run_id = self.run_id(self.number)
        writer = batch_store.BatchWriter(self.store, BUCKET, JOB, run_id)
        for index, part in enumerate(self.content(run_id)):
            writer.add_part(index, part, 1)
        writer.add_rejected(b"none", 0)
        writer.finish({"model_version": "1"})
        return run_id

    def publish_and_be_killed(self) -> None:
        self.store.puts_left = self.random.randint(0, 5)
        with contextlib.suppress(Killed):
            self.publish()
        self.store.puts_left = None

    def one(self) -> str:
        """A key; most often of what LATEST names, or LATEST."""
        newest = batch_store.run_prefix(JOB, self.run_id(self.number))
        keys = sorted(self.store.objects)
        near = [key for key in keys if key.startswith(newest) or key == LATEST]
        return self.random.choice(near if near and self.random.random() < 0.8 else keys or [""])

    def corrupt(self) -> None:
        key = self.one()
        data = bytearray(self.store.objects.get(key, b""))
        if data:
            data[self.random.randrange(len(data))] ^= 0x20
            self.store.objects[key] = bytes(data)

    def truncate(self) -> None:
        key = self.one()
        data = self.store.objects.get(key, b"")
        if data:
            self.store.objects[key] = data[: self.random.randrange(len(data))]

    def lose(self) -> None:
        self.store.objects.pop(self.one(), None)

    def lose_latest(self) -> None:
        self.store.objects.pop(LATEST, None)

    def name_another(self) -> None:
        run_id = self.run_id(max(1, self.number - self.random.randint(0, 3)))
        stored = self.store.objects.get(batch_store.run_prefix(JOB, run_id) + "manifest.json", b"")
        digest = hashlib.sha256(stored).hexdigest()
        if self.random.random() < 0.2:
            digest = "0" * 64
        if self.number:
            document = {"run": run_id, "manifest_sha256": digest}
            self.store.objects[LATEST] = json.dumps(document).encode()

    def find_the_store_down(self) -> None:
        self.store.down = True
        self.reload()
        self.store.down = False

    def be_cut_off(self) -> None:
        self.store.cut_after = self.random.randint(0, 4)
        self.reload()
        self.store.cut_after = None

    def reload(self) -> None:
        before = self.reloader.current
        changed = self.reloader.reload()
        assert changed == (self.reloader.current is not before)


def test_any_sequence() -> None:
    problems: collections.Counter[str] = collections.Counter()
    loads = 0
    for seed in range(400):
        sequence = AnySequence(seed)
        try:
            sequence.steps(30)
            sequence.end()
        except BaseException as error:
            error.add_note(f"seed {seed}: {', '.join(sequence.done)}")
            raise
        loads += len(sequence.told.runs)
        for problem, _ in sequence.told.problems:
            for kind in KINDS:
                problems[kind] += kind in problem
    # That nothing went wrong says something only where all of it happened.
    assert loads > 1000
    assert all(problems[kind] >= 5 for kind in KINDS), [(kind, problems[kind]) for kind in KINDS]


KINDS = (
    "which is older",
    "LATEST is gone",
    "with another manifest",
    "is malformed",
    "manifest.json is missing",
    "manifest.json has sha256",
    "parquet is missing",
    "parquet has sha256",
    "cut in the middle",
    "SlowDown",
)
