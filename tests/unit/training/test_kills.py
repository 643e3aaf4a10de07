"""A job that ends anywhere leaves no version, or a whole one; two jobs at once publish two."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import kill_publisher
import pytest
from groundcrew import model_store, objects, training_job
from groundcrew.training_job import Gate, Job, Settings
from moto import mock_aws
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "groundcrew-kill-test-store"
KILLS = 80


class Dead(Exception):
    """The process has ended; whatever its code still does must reach nobody."""


def settings(version: str = "next", owner: str = "training-1") -> Settings:
    return Settings("digits", version, BUCKET, Gate(minimum=0.5), owner=owner)


def build(job: Job) -> dict[str, Any]:
    return {**kill_publisher.build(job), "process": threading.get_ident()}


def whole_versions(client: Any) -> list[str]:
    """The published versions, every file of which is verified."""
    found = model_store.versions(client, BUCKET, "digits")
    for version in found:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / version
            model_store.fetch(client, BUCKET, "digits", version, target)
            writers = {(target / f"part-{number}").read_text().split()[0] for number in range(3)}
            assert len(writers) == 1, f"version {version} has files of {writers}"
    return found


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Makes clients of an empty store in this process."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield lambda: boto3.client("s3")


class Life:
    """A process that ends with a request of its client, before the store has it or after."""

    def __init__(self, client: Any) -> None:
        self.requests, self.last, self.after = 0, 10**6, False
        client.meta.events.register("before-call.s3", self._before)
        client.meta.events.register("after-call.s3", self._after)

    def begin(self, last: int, after: bool) -> None:
        self.requests, self.last, self.after = 0, last, after

    def _before(self, **_keywords: Any) -> None:
        self.requests += 1
        if self.requests > self.last or (self.requests == self.last and not self.after):
            raise Dead

    def _after(self, **_keywords: Any) -> None:
        if self.requests >= self.last:
            raise Dead


@pytest.mark.parametrize("version", ["1", "next"])
def test_job_may_end_at_every_request(local, version):
    """Then the same owner runs it again, as its host does."""
    watch, dying = local(), local()
    life = Life(dying)
    ends = [False]
    last = 0
    while not ends[-1]:
        last += 1
        for after in (False, True):
            life.begin(last, after)
            ends.append(False)
            with contextlib.suppress(Dead):
                training_job.run(settings(version), dying, build)
                ends[-1] = True
            now = whole_versions(watch)
            assert now in ([], ["1"])
            if version == "next" or not now:
                training_job.run(settings(version), watch, build)
                assert len(whole_versions(watch)) == len(now) + 1
            empty(watch)
    assert last > 15, "it ends sooner than a job makes requests, so not all were tried"


def empty(client: Any) -> None:
    for entry in model_store.list_objects(client, BUCKET, ""):
        client.delete_object(Bucket=BUCKET, Key=entry.key)


def test_another_owner_takes_over_what_is_left_when_the_claim_is_old(local, monkeypatch):
    dying, watch = local(), local()
    Life(dying).begin(8, after=True)
    with pytest.raises(Dead):
        training_job.run(settings("1"), dying, build)
    assert model_store.list_objects(watch, BUCKET, "models/digits/1/part-")
    with pytest.raises(model_store.TakenError, match="published by training-1"):
        training_job.run(settings("1", "training-2"), watch, build)
    training_job.run(settings("next", "training-2"), watch, build)
    assert whole_versions(watch) == ["2"]
    monkeypatch.setattr(model_store.claim, "__defaults__", (None, 0.0, True))
    training_job.run(settings("1", "training-2"), watch, build)
    assert whole_versions(watch) == ["1", "2"]


@pytest.mark.parametrize("owners", [("training-1", "training-1"), ("training-1", "training-2")])
def test_two_jobs_at_once_publish_two_versions(local, owners):
    """A random one of them may make its next request, again and again."""
    shuffled = random.Random(0)
    watch, *clients = (local() for _ in range(3))
    turns = [threading.Semaphore(0), threading.Semaphore(0)]
    # moto looks whether an object is there and writes it in two steps; S3 does both at once.
    one = threading.Lock()
    for client, turn in zip(clients, turns, strict=True):

        def wait(turn: threading.Semaphore = turn, **_keywords: Any) -> None:
            assert turn.acquire(timeout=60)
            one.acquire()

        client.meta.events.register("before-call.s3", wait)
        client.meta.events.register("after-call.s3", lambda **_keywords: one.release())
    for _ in range(8):
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(training_job.run, settings("next", owner), client, build)
                for owner, client in zip(owners, clients, strict=True)
            ]
            while not all(job.done() for job in jobs):
                turns[shuffled.randrange(2)].release()
                time.sleep(0.002)
        assert {job.result()["version"] for job in jobs} == {"1", "2"}
        assert whole_versions(watch) == ["1", "2"]
        empty(watch)


# -- real processes


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """A store that answers one request after another: moto's conditional writes are not atomic."""
    served = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{served.server_port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture(scope="module")
def client(server: dict[str, str]) -> Any:
    made = boto3.client(
        "s3",
        endpoint_url=server["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
    made.create_bucket(Bucket=BUCKET)
    return made


@contextlib.contextmanager
def jobs_of_processes(server: dict[str, str]) -> Iterator[Callable[[str], Callable[[], int]]]:
    """A function that starts a job by a line for kill_publisher.py; what it returns waits for it."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    started = subprocess.Popen(
        [sys.executable, kill_publisher.__file__, BUCKET],
        env={**os.environ, **server, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdin is not None and started.stdout is not None
    lines, answers = started.stdin, started.stdout

    def begin(line: str) -> Callable[[], int]:
        lines.write(f"{line}\n")
        lines.flush()
        return lambda: int(answers.readline())

    try:
        yield begin
    finally:
        lines.close()
        started.wait(timeout=30)
        answers.close()


def is_published(client: Any, version: str) -> bool:
    return objects.get(client, BUCKET, f"models/digits/{version}/manifest.json") is not None


def test_killed_processes_leave_no_version_or_a_whole_one(server, client):
    chance = random.Random(1)
    killed = {True: 0, False: 0}
    with jobs_of_processes(server) as begin:
        assert begin("1 never")() == 0
        begun = time.monotonic()
        assert begin("2 never")() == 0
        takes = time.monotonic() - begun
        for number in range(KILLS):
            # What one left unfinished the next one takes over.
            version = str(3 + number // 2)
            status = begin(f"{version} {chance.uniform(0, takes):.4f}")()
            if os.WIFSIGNALED(status):
                killed[is_published(client, version)] += 1
        assert killed[False] > KILLS // 5, "few were killed before they had published"
        left = str(2 + KILLS // 2)
        if not is_published(client, left):
            assert begin(f"{left} never")() == 0
    assert left in whole_versions(client)


def test_processes_at_once_publish_a_version_each(server, client):
    empty(client)
    with contextlib.ExitStack() as stack:
        starters = [stack.enter_context(jobs_of_processes(server)) for _ in range(3)]
        for _ in range(4):
            waits = [begin("next never") for begin in starters]
            assert [wait() for wait in waits] == [0, 0, 0]
    assert len(whole_versions(client)) == 12
