"""What the page's tests with faults run against: the application in a process of its own, a gateway that does as it is told, and a
store with batch runs of real digits."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as arrow
from groundcrew import batch_store, objects
from moto.server import ThreadedMotoServer
from pyarrow import parquet
from sklearn.datasets import load_digits

REPOSITORY = Path(__file__).parents[2]
SOURCES = (
    "plugins/module_utils",
    "files/application",
    "files/example/application",
    "files/images/prediction_front",
)
BUCKET, JOB, KEY = "groundcrew-test-store", "digits_nightly", "a-key-of-the-test"
FINISHED = datetime.now(UTC) - timedelta(hours=7)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Model:
    """As good as the example's model: how near an image is to the mean of each digit's."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = digits.data[1200:]
        images, labels = digits.data[:1200], digits.target[:1200]
        self._means = np.array([images[labels == digit].mean(0) for digit in range(10)])

    def predict(self, instances: Any) -> Any:
        rows = np.asarray(instances, dtype=float)
        distances = ((rows[:, None, :] - self._means) ** 2).sum(2) / 60
        shares = np.exp(distances.min(1, keepdims=True) - distances)
        return shares / shares.sum(1, keepdims=True)


class Gateway(ThreadingHTTPServer):
    """``mode``: up, dead (hangs up), unready (503), limited (429) or held (no answer before ``release`` is set)."""

    daemon_threads = True

    def __init__(self, model: Model) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.mode = "up"
        self.release = threading.Event()
        self.delay_seconds = 0.0
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        mode = self.server.mode
        if mode == "held":
            self.server.release.wait(30)
            mode = self.server.mode
        time.sleep(self.server.delay_seconds)
        if mode == "dead":
            self.close_connection = True
        elif mode == "unready":
            self._answer(503, {"error": "no server can take the request now"})
        elif mode == "limited":
            self._answer(
                429, {"error": "more requests than this client may send"}, {"Retry-After": "1"}
            )
        else:
            began = time.perf_counter()
            predictions = self.server.model.predict(json.loads(body)["instances"]).tolist()
            took = (time.perf_counter() - began) * 1000
            timing = f"queue;dur=0.310, model;dur={took:.3f}, total;dur={took + 0.55:.3f}"
            headers = {"X-Model-Version": "3", "Server-Timing": timing}
            self._answer(200, {"predictions": predictions}, headers)

    def _answer(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Store:
    """A bucket in moto's server."""

    def __init__(self, model: Model, endpoint: str) -> None:
        self.endpoint = endpoint
        self._model = model
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def empty(self) -> None:
        for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            self.client.delete_object(Bucket=BUCKET, Key=entry["Key"])

    def publish(self, run_id: str, rows: int = 360) -> None:
        """A complete run of the first images, as the batch job writes it."""
        images = self._model.images[:rows]
        writer = batch_store.BatchWriter(self.client, BUCKET, JOB, run_id)
        for part, first in enumerate(range(0, rows, 100)):
            chunk = images[first : first + 100]
            columns = {
                "id": [f"holdout-{first + row:04d}" for row in range(len(chunk))],
                "predictions": self._model.predict(chunk).tolist(),
                "instance": chunk.tolist(),
            }
            writer.add_part(part, parquet_bytes(columns), len(chunk))
        writer.add_rejected(parquet_bytes({"id": ["bad"], "row": [7], "reason": ["NaN"]}), 1)
        # Of one moment, so that a run that is published again is the same one.
        writer.finish({"model_version": "3", "finished": objects.timestamp(FINISHED)})


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(arrow.table(columns), sink)
    return sink.getvalue()


@contextmanager
def gateway(model: Model) -> Iterator[Gateway]:
    with Gateway(model) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


@contextmanager
def store(model: Model) -> Iterator[Store]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield Store(model, f"http://{host}:{port}")
    finally:
        server.stop()


@contextmanager
def application(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The application as its image runs it; yields its address. Its log lies in the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = folder / "key"
    key.write_text(KEY)
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",  # its sources are the checkout's
        "PYTHONPATH": ":".join(str(REPOSITORY / source) for source in SOURCES),
        "API_KEY_FILE": str(key),
        "MODEL_NAME": "digits",
        "STORE_BUCKET": BUCKET,
        "BATCH_JOB": JOB,
        "BATCH_POLL_SECONDS": "0.3",
        "PORT": str(port),
        **CREDENTIALS,
        **environment,
    }
    path = folder / "application.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "digits_application"], env=settings, stdout=log, stderr=log
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/healthz", process, path)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, f"the application ended:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer:\n{log.read_text()}"
            time.sleep(0.05)
