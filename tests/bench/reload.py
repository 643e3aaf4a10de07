#!/usr/bin/env python3
"""What the swap to a new batch run of 1,000,000 rows costs those who use the application meanwhile.

Usage: reload.py [SWAPS [SECONDS]]     writes build/bench/reload.json, prints a table and the targets

The example application serves in a process of its own, the store (moto) in another one, of low priority, because S3 has machines of
its own. Requests are sent on schedule: in turn the page, and a page of the gallery, filtered over the whole run. A latency counts from
when its request was due, so one that had to wait for another is not flattered. First for SECONDS without a swap, then while a new run
is loaded, from LATEST's change to the swap as the application's log tells. A target that is not met is printed and changes nothing.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as arrow
from load import BenchError, table
from pyarrow import parquet
from sklearn.datasets import load_digits

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "plugins/module_utils"))

from groundcrew import batch_store, objects  # noqa: E402

BUILD = REPOSITORY / "build/bench"
REPORT = BUILD / "reload.json"
ROWS, CHUNK = 1_000_000, 10_000  # the batch job's own chunk
RATE = 100  # requests a second
CONNECTIONS = 8
BUCKET, JOB = "bench-store", "digits_nightly"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SOURCES = ("plugins/module_utils", "files/application", "files/example/application")
# Lists of numbers, digits of the real data set: what the batch job writes with include_instances.
FIRST_RUN = datetime(2026, 1, 1, tzinfo=UTC)


def lists(numbers: np.ndarray[Any, Any]) -> arrow.Array:
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * numbers.shape[1]
    values = arrow.array(np.ascontiguousarray(numbers, dtype=np.float64).reshape(-1))
    return arrow.ListArray.from_arrays(arrow.array(offsets), values)


def parts() -> list[bytes]:
    """The part files of a run."""
    random = np.random.default_rng(7)
    images = load_digits().data
    found = []
    for first in range(0, ROWS, CHUNK):
        shares = random.random((CHUNK, 10)) ** 8
        columns = {
            "id": [f"row-{first + row}" for row in range(CHUNK)],
            "predictions": lists(shares / shares.sum(1, keepdims=True)),
            "instance": lists(images[random.integers(0, len(images), CHUNK)]),
        }
        sink = io.BytesIO()
        parquet.write_table(arrow.table(columns), sink)
        found.append(sink.getvalue())
    return found


@dataclass
class Store:
    """Publishes runs: their parts first, the manifest and LATEST when it is time."""

    client: Any
    content: list[bytes]
    runs: list[str] = field(default_factory=list)

    def prepare(self) -> batch_store.BatchWriter:
        """A run without its manifest."""
        run_id = batch_store.new_run_id(FIRST_RUN + timedelta(days=len(self.runs)))
        writer = batch_store.BatchWriter(self.client, BUCKET, JOB, run_id)
        for index, part in enumerate(self.content):
            writer.add_part(index, part, CHUNK)
        sink = io.BytesIO()
        parquet.write_table(arrow.table({"id": ["bad"], "row": [1], "reason": ["NaN"]}), sink)
        writer.add_rejected(sink.getvalue(), 1)
        self.runs.append(run_id)
        return writer

    def forget_all_but_last(self) -> None:
        for run_id in self.runs[:-1]:
            prefix = batch_store.run_prefix(JOB, run_id)
            for key in objects.list_keys(self.client, BUCKET, prefix):
                self.client.delete_object(Bucket=BUCKET, Key=key)


class Load:
    """Requests on schedule, in threads, until it is stopped; (when it was due, latency in ms) of each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._number = 0
        self._stopped = False
        self.samples: list[tuple[float, float]] = []
        self.failed = 0
        self._began = time.time()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stopped:
            with self._lock:
                number = self._number
                self._number += 1
            due = self._began + number / RATE
            time.sleep(max(0.0, due - time.time()))
            path = (
                "/" if number % 2 else f"/api/batch?digit={number // 2 % 10}&maximum=0.9&limit=48"
            )
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                good = answer.status == 200
            except OSError:
                good = False
                connection.close()
            self.samples.append((due, (time.time() - due) * 1000))
            self.failed += not good

    def between(self, start: float, end: float) -> dict[str, float]:
        """Figures of the requests that were due then."""
        latencies = sorted(ms for due, ms in self.samples if start <= due < end)
        if len(latencies) < 50:
            raise BenchError(f"{len(latencies)} requests in {end - start:.1f} s are too few")
        return {
            "requests": len(latencies),
            "seconds": round(end - start, 2),
            "p50_ms": round(statistics.median(latencies), 2),
            "p99_ms": round(latencies[int(0.99 * (len(latencies) - 1))], 2),
            "most_ms": round(latencies[-1], 2),
        }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], port: int, path: str, log: Path, **options: Any) -> Iterator[int]:
    """A server that answers; its process id."""
    with log.open("wb") as file:
        started = subprocess.Popen(command, stdout=file, stderr=file, **options)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2):
                        break
                except OSError:
                    if started.poll() is not None or time.monotonic() > deadline:
                        raise BenchError(f"{command} does not answer: {log.read_text()}") from None
                    time.sleep(0.1)
            yield started.pid
        finally:
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def application_environment(folder: Path, port: int, endpoint: str) -> dict[str, str]:
    key = folder / "key"
    key.write_text("a-key")
    return {
        **os.environ,
        **CREDENTIALS,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": ":".join(str(REPOSITORY / source) for source in SOURCES),
        "PREDICTION_URL": "http://127.0.0.1:9",  # nobody is asked
        "API_KEY_FILE": str(key),
        "MODEL_NAME": "digits",
        "STORE_BUCKET": BUCKET,
        "BATCH_JOB": JOB,
        "BATCH_POLL_SECONDS": "0.2",
        "PORT": str(port),
        "AWS_ENDPOINT_URL": endpoint,
    }


def swapped(log: Path, run_id: str, timeout: float = 240) -> tuple[float, float]:
    """When the application began to load a run, and when it had swapped; seconds since 1970."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"batch run loaded"' in line and run_id in line:
                said = json.loads(line)
                end = datetime.fromisoformat(said["time"]).timestamp()
                return end - said["seconds"], end
        time.sleep(0.2)
    raise BenchError(f"run {run_id} was not loaded in {timeout} s:\n{log.read_text()[-2000:]}")


def memory_mb(parent: int) -> tuple[float, float]:
    """Memory now and at most, of the largest process at or below ``parent``: Granian's worker."""
    found = [(0.0, 0.0)]
    children = [parent]
    while children:
        process_id = children.pop()
        listed = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
        children += map(int, listed.split())
        text = Path(f"/proc/{process_id}/status").read_text()
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        now, most = (float(lines[key].split()[0]) / 1000 for key in ("VmRSS", "VmHWM"))
        found.append((now, most))
    return max(found)


def measure_swaps(folder: Path, swaps: int, seconds: float) -> dict[str, Any]:
    store_port, port = free_port(), free_port()
    endpoint, log = f"http://127.0.0.1:{store_port}", folder / "application.log"
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store_port)]
    environment = application_environment(folder, port, endpoint)
    command = [sys.executable, "-m", "digits_application"]
    rounds = []
    print(f"bench | a run of {ROWS} rows is written", flush=True)
    content = parts()
    with process(["nice", "-n", "10", *moto], store_port, "/moto-api/", folder / "moto.log"):
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
        )
        client.create_bucket(Bucket=BUCKET)
        store = Store(client, content)
        store.prepare().finish({"model_version": "1"})
        with process(command, port, "/healthz", log, env=environment) as process_id:
            swapped(log, store.runs[0])
            one_run_mb, _ = memory_mb(process_id)
            for number in range(swaps):
                writer = store.prepare()
                load = Load(port)
                try:
                    time.sleep(1)  # connections open, code warm
                    began = time.time()
                    time.sleep(seconds)
                    quiet = began, time.time()
                    writer.finish({"model_version": "1"})
                    swap = swapped(log, writer.run_id)
                    time.sleep(0.5)
                finally:
                    load.stop()
                before, during = load.between(*quiet), load.between(*swap)
                ratio = round(during["p99_ms"] / before["p99_ms"], 3)
                now_mb, most_mb = memory_mb(process_id)
                rounds.append(
                    {
                        "before": before,
                        "during": during,
                        "ratio": ratio,
                        "failed": load.failed,
                        "memory_mb": now_mb,
                        "most_memory_mb": most_mb,
                    }
                )
                print(
                    f"{number + 1}/{swaps}  p99 before {before['p99_ms']:.1f} ms, during the {during['seconds']:.1f} s of the swap "
                    f"{during['p99_ms']:.1f} ms",
                    flush=True,
                )
                store.forget_all_but_last()
    return {
        "one_run_mb": round(one_run_mb, 1),
        "rounds": rounds,
        "run_bytes": sum(map(len, content)),
    }


def median(rounds: list[dict[str, Any]], *path: str) -> float:
    values = []
    for one in rounds:
        value: Any = one
        for key in path:
            value = value[key]
        values.append(value)
    return round(statistics.median(values), 3)


def targets_of(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    rounds = figures["rounds"]
    ratio, failed = median(rounds, "ratio"), sum(one["failed"] for one in rounds)
    most = max(one["most_memory_mb"] for one in rounds) / figures["one_run_mb"]
    return [
        {
            "name": "p99 during a swap at most 2 times that before (median)",
            "value": ratio,
            "met": ratio <= 2,
        },
        {"name": "requests that failed: none", "value": failed, "met": failed == 0},
        {
            "name": "memory at most 2 times that with one run",
            "value": round(most, 2),
            "met": most <= 2,
        },
    ]


def report(figures: Mapping[str, Any]) -> None:
    rounds, targets = figures["rounds"], targets_of(figures)
    document = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
        "rows": ROWS,
        "requests_per_second": RATE,
        **figures,
        "targets": targets,
    }
    REPORT.write_text(json.dumps(document, indent=1) + "\n")
    rows = [["", "requests", "seconds", "p50 ms", "p99 ms", "most ms"]]
    for number, one in enumerate(rounds, 1):
        for name in ("before", "during"):
            figures_of = one[name]
            cells = [f"{figures_of[key]:.1f}" for key in ("seconds", "p50_ms", "p99_ms", "most_ms")]
            rows.append([f"swap {number}, {name}", str(figures_of["requests"]), *cells])
    print("\n" + table(rows))
    print(
        f"\nmemory: {figures['one_run_mb']:.0f} MB with one run, at most "
        f"{max(one['most_memory_mb'] for one in rounds):.0f} MB; a run is {figures['run_bytes'] / 1e6:.0f} MB in the store\n\ntargets"
    )
    for target in targets:
        print(
            f"{target['value']:9.2f}  {'met    ' if target['met'] else 'NOT MET'}  {target['name']}"
        )
    print(
        f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; every figure: {REPORT}"
    )


def main() -> int:
    swaps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 8.0
    # So that a stopped bench ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-reload-") as name:
            figures = measure_swaps(Path(name), swaps, seconds)
    except (BenchError, OSError) as error:
        print(f"FAILED: {error}")
        return 1
    report(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
