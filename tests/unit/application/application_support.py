"""A stand-in for the gateway, and a writer of batch runs."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as arrow
from groundcrew import batch_store
from pyarrow import parquet

BUCKET, JOB = "groundcrew-test-store", "digits_nightly"
PROBABILITIES = [0.01] * 7 + [0.91, 0.01, 0.01]


class Gateway(ThreadingHTTPServer):
    """Answers with ``status``, ``body`` and ``headers``; keeps what it received in ``requests``.

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
        body = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def write_run(
    client: Any, run_id: str, rows: int = 5, chunk: int = 3, instances: bool = True
) -> None:
    """Write a complete run of ``rows`` predictions, each of the digit 7, in chunks."""
    writer = batch_store.BatchWriter(client, BUCKET, JOB, run_id)
    for index, first in enumerate(range(0, rows, chunk)):
        count = min(chunk, rows - first)
        columns: dict[str, list[Any]] = {
            "id": [f"row-{first + offset}" for offset in range(count)],
            "predictions": [PROBABILITIES] * count,
        }
        if instances:
            columns["instance"] = [[float(pixel % 17) for pixel in range(64)]] * count
        writer.add_part(index, _parquet(columns), count)
    writer.add_rejected(_parquet({"id": ["bad"], "row": [9], "reason": ["NaN"]}), 1)
    writer.finish({"model_version": "3"})


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer)
    return buffer.getvalue()
