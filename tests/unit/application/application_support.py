"""Stand-ins for the gateway and the store, and a writer of batch runs."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as arrow
from botocore.exceptions import ClientError
from groundcrew import batch_store
from pyarrow import parquet

BUCKET, JOB = "groundcrew-test-store", "digits_nightly"
PROBABILITIES = [0.01] * 7 + [0.91, 0.01, 0.01]


class Gateway(ThreadingHTTPServer):
    """Answers with ``status``, ``body`` and ``headers``; keeps what it received in ``requests``.

    ``body`` may be bytes, something for JSON, or a function of what was received.

    ``before_answer`` is called first; a handler that it tells to hang up closes the connection.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.body: Any = {"predictions": [PROBABILITIES]}
        self.headers = {
            "X-Model-Version": "3",
            "Server-Timing": "queue;dur=0.1, model;dur=1.25, total;dur=1.5",
        }
        self.before_answer: Callable[[], bool] = lambda: True
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.connections = 0
        self.drip_seconds = 0.0  # between the bytes of an answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        self.connections += 1
        return super().get_request()

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        received = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), received))
        if not self.server.before_answer():
            self.close_connection = True
            return
        raw = self.server.body
        raw = raw(received) if callable(raw) else raw
        body = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.drip_seconds:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(self.server.drip_seconds)
            return
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def one_each(received: Any) -> Any:
    """A body of the gateway: the same probabilities for each instance."""
    return {"predictions": [PROBABILITIES] * len(received["instances"])}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)


class Killed(Exception):
    """A writer that ended in the middle."""


class MemoryStore:
    """As much of an S3 client as the batch store needs, over a dict; faults on demand."""

    class exceptions:
        ClientError = ClientError

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: dict[str, bytes] = {}  # the same, without what a test did to it
        self.puts_left: int | None = None  # then Killed
        self.down = False
        self.cut_after: int | None = None  # gets from now, the body of which ends early
        self.gets: list[tuple[str, bool]] = []  # key, and whether it was answered with a body

    @staticmethod
    def etag(data: bytes) -> str:
        return f'"{hashlib.md5(data).hexdigest()}"'

    def get_object(self, Bucket: str, Key: str, IfNoneMatch: str | None = None) -> dict[str, Any]:
        if self.down:
            raise _client_error("503", "SlowDown")
        data = self.objects.get(Key)
        changed = data is not None and self.etag(data) != IfNoneMatch
        self.gets.append((Key, changed))
        if data is None:
            raise _client_error("404", "NoSuchKey")
        if not changed:
            raise _client_error("304", "304")
        if self.cut_after is not None:
            self.cut_after -= 1
            if self.cut_after < 0:
                self.cut_after = None
                return {"Body": _CutBody(), "ETag": self.etag(data)}
        return {"Body": io.BytesIO(data), "ETag": self.etag(data)}

    def put_object(self, Bucket: str, Key: str, Body: bytes, **conditions: Any) -> dict[str, Any]:
        if self.puts_left is not None:
            self.puts_left -= 1
            if self.puts_left < 0:
                raise Killed
        held = self.objects.get(Key)
        match = conditions.get("IfMatch")
        if (conditions.get("IfNoneMatch") and held is not None) or (
            match is not None and (held is None or self.etag(held) != match)
        ):
            raise _client_error("412", "PreconditionFailed")
        self.objects[Key] = self.written[Key] = Body
        return {"ETag": self.etag(Body)}

    def delete_object(self, Bucket: str, Key: str) -> None:
        self.objects.pop(Key, None)


class _CutBody:
    def read(self) -> bytes:
        raise ConnectionError("the connection was cut in the middle")


def _client_error(status: str, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": int(status)}}, "Operation"
    )


class StoreServer(ThreadingHTTPServer):
    """A MemoryStore over HTTP, for a real S3 client. ``fault``: "", "500", "slow" (a body that takes ``seconds``) or "cut" (one that
    ends early), for keys that end with ``faulty``."""

    daemon_threads = True

    def __init__(self, memory: MemoryStore) -> None:
        super().__init__(("127.0.0.1", 0), _StoreHandler)
        self.memory = memory
        self.fault = ""
        self.faulty = ""
        self.seconds = 0.3

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass


class _StoreHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StoreServer

    def do_GET(self) -> None:
        key = self.path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        data = self.server.memory.objects.get(key)
        fault = self.server.fault if key.endswith(self.server.faulty) else ""
        if fault == "500":
            self._answer(500, b"<Error><Code>InternalError</Code></Error>")
        elif data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif self.headers.get("If-None-Match") == MemoryStore.etag(data):
            self._answer(304, b"")
        else:
            self._answer(200, data, fault)

    def _answer(self, status: int, data: bytes, fault: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", MemoryStore.etag(data))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(self.server.seconds)
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def write_run(
    client: Any,
    run_id: str,
    rows: int = 5,
    chunk: int = 3,
    instances: bool = True,
    predict: Callable[[int], list[float]] = lambda row: PROBABILITIES,
) -> None:
    """Write a complete run of ``rows`` predictions in chunks, each of the digit 7 unless ``predict`` says otherwise. The image of row
    n is ``image(n)``."""
    writer = batch_store.BatchWriter(client, BUCKET, JOB, run_id)
    for index, first in enumerate(range(0, rows, chunk)):
        count = min(chunk, rows - first)
        columns: dict[str, list[Any]] = {
            "id": [f"row-{first + offset}" for offset in range(count)],
            "predictions": [predict(first + offset) for offset in range(count)],
        }
        if instances:
            columns["instance"] = [image(first + offset) for offset in range(count)]
        writer.add_part(index, _parquet(columns), count)
    writer.add_rejected(_parquet({"id": ["bad"], "row": [9], "reason": ["NaN"]}), 1)
    writer.finish({"model_version": "3"})


def image(row: int) -> list[float]:
    return [float((row + pixel) % 17) for pixel in range(64)]


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer)
    return buffer.getvalue()
