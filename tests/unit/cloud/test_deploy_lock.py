"""The deploy lock over a stand-in of S3."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from groundcrew import deploy_lock
from groundcrew.deploy_lock import KEY, acquire, release, run_of
from groundcrew.errors import GroundcrewError

# moto keeps one cloud a process, whoever else uses it.
BUCKET = "groundcrew-lock-test-store"
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def s3(aws: None) -> Any:
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.delete_object(Bucket=BUCKET, Key=KEY)
    return client


def take(s3: Any, run: str, **more: Any) -> deploy_lock.Lock:
    more.setdefault("now", lambda: NOON)
    return acquire(s3, BUCKET, run=run, what="deploy.yml on test", **more)


def there(s3: Any) -> dict[str, Any]:
    return dict(json.loads(s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()))


@pytest.fixture
def somebody() -> Iterator[str]:
    """A run that is alive on this machine and is not ours."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield run_of(process.pid)
        process.kill()


def test_one_at_a_time_and_the_other_is_told_who(s3: Any, somebody: str) -> None:
    lock = take(s3, somebody)
    assert (lock.since, lock.until) == ("2026-01-01T12:00:00+00:00", "2026-01-01T14:00:00+00:00")
    with pytest.raises(
        GroundcrewError,
        match=r"Another deploy.*@.*since 2026-01-01T12.*deploy.yml on test.*14:00.*steal_lock",
    ):
        take(s3, run_of(os.getpid()))
    assert there(s3)["run"] == somebody
    assert not release(s3, BUCKET, run_of(os.getpid())), "nobody lets go what is another's"
    assert release(s3, BUCKET, somebody)
    take(s3, run_of(os.getpid()))


def test_a_run_that_has_it_keeps_it_and_gets_more_time(s3: Any, somebody: str) -> None:
    take(s3, somebody)
    again = take(s3, somebody, now=lambda: NOON + datetime.timedelta(hours=1))
    assert (again.since[11:16], again.until[11:16]) == ("12:00", "15:00")


def test_a_killed_run_of_this_machine_has_nothing(s3: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        killed = run_of(process.pid)
        take(s3, killed)
        process.kill()
    assert take(s3, run_of(os.getpid())).taken_from == ""


def test_of_another_machine_only_its_time_or_a_reason_takes_it(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(deploy_lock, "machine", lambda: "another")
        take(s3, "999999-1")
    ours = run_of(os.getpid())
    with pytest.raises(GroundcrewError, match="Another deploy"):
        take(s3, ours, now=lambda: NOON + datetime.timedelta(minutes=119))
    stolen = take(s3, ours, steal="its laptop is under water")
    assert "because: its laptop is under water" in stolen.taken_from
    assert there(s3)["taken_from"] == stolen.taken_from
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(deploy_lock, "machine", lambda: "another")
        assert not release(s3, BUCKET, "999999-1")
        late = take(s3, "999999-1", now=lambda: NOON + datetime.timedelta(hours=2))
    assert late.taken_from == ""


def test_of_two_who_ask_at_once_one_has_it(s3: Any, somebody: str) -> None:
    class Raced:
        """S3 where somebody else writes between our look and our write."""

        def __init__(self) -> None:
            self.raced = False

        def __getattr__(self, name: str) -> Any:
            if name == "put_object" and not self.raced:
                self.raced = True
                take(s3, somebody)
            return getattr(s3, name)

    with pytest.raises(GroundcrewError, match="Another deploy"):
        take(Raced(), run_of(os.getpid()))
    assert there(s3)["run"] == somebody


def test_what_is_no_lock_is_not_overwritten(s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=b"{}")
    with pytest.raises(GroundcrewError, match=r"is no lock of ours.*aws s3 rm"):
        take(s3, run_of(os.getpid()))


def test_without_a_store_it_says_how_to_make_one(s3: Any) -> None:
    with pytest.raises(GroundcrewError, match=r"playbooks/provision.yml"):
        acquire(s3, "no-such-bucket", run="1-1", what="x")


def test_a_process_has_a_name_and_a_dead_one_has_none() -> None:
    assert run_of(os.getpid()).startswith(f"{os.getpid()}-")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert run_of(process.pid) == ""
