"""A gateway and a store on loopback for the tests of the example application."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

REPOSITORY = Path(__file__).parents[3]
for folder in (
    "plugins/module_utils",
    "files/application",
    "files/example/application",
    "tests/unit/application",
):
    if str(REPOSITORY / folder) not in sys.path:
        sys.path.insert(0, str(REPOSITORY / folder))

from application_support import BUCKET, Gateway, MemoryStore, StoreServer  # noqa: E402

# One for all tests: what a session has read about S3 is kept in it.
SESSION = boto3.Session()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        # The poll interval is how long shutdown() takes.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 client whose bucket ``BUCKET`` is empty."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = SESSION.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture
def memory() -> MemoryStore:
    """A store in memory, for what would take too long with moto."""
    return MemoryStore()


@pytest.fixture
def store_server(memory: MemoryStore) -> Iterator[StoreServer]:
    """The store in memory, over HTTP."""
    with StoreServer(memory) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
