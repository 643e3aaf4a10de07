"""An open-loop load of predictions: requests leave on schedule, whether or not the ones before were answered.

A request that waits for a slow one is late, and its lateness counts: latency is from the scheduled time to the answer.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import ssl
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Sample:
    """One request; times in seconds, `at` since the start of the load. failed: "" or why."""

    at: float
    seconds: float
    failed: str
    model_ms: float | None
    queue_ms: float | None


@dataclass
class Load:
    """Requests at `rate` a second over `connections` persistent connections, until `stop`.

    Bounded: it ends by itself after `most_seconds`.
    """

    url: str
    headers: dict[str, str]
    body: bytes
    ca_file: str
    rate: float
    connections: int = 16
    most_seconds: float = 600
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parts = urlsplit(self.url)
        self._context = ssl.create_default_context(cafile=self.ca_file)
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, daemon=True) for _ in range(self.connections)
        ]
        self._began = 0.0

    def start(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> list[Sample]:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        return self.samples

    def now(self) -> float:
        """Seconds since the start, as in Sample.at."""
        return time.monotonic() - self._began

    def _run(self) -> None:
        connection = None
        while not self._stopped.is_set():
            at = next(self._numbers) / self.rate
            if at > self.most_seconds or self._stopped.wait(max(0.0, at - self.now())):
                break
            failed, timing = "", ""
            try:
                if connection is None:
                    connection = http.client.HTTPSConnection(
                        str(self._parts.hostname),
                        self._parts.port,
                        timeout=30,
                        context=self._context,
                    )
                connection.request("POST", self._parts.path, self.body, self.headers)
                reply = connection.getresponse()
                text = reply.read()
                timing = reply.headers.get("Server-Timing", "")
                if reply.status != 200:
                    failed = f"{reply.status} {text[:100].decode('utf-8', 'replace')}"
                if reply.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                failed = f"{type(error).__name__}: {error}"
                if connection is not None:
                    connection.close()
                connection = None
            said = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", timing)}
            # One append is atomic.
            self.samples.append(
                Sample(at, self.now() - at, failed, said.get("model"), said.get("queue"))
            )
        if connection is not None:
            connection.close()


def figures(samples: list[Sample]) -> dict[str, Any]:
    """Counts, and percentiles of the latencies in ms."""
    times = sorted(sample.seconds * 1000 for sample in samples)
    failed = [sample for sample in samples if sample.failed]
    found: dict[str, Any] = {"requests": len(samples), "failed": len(failed)}
    if times:
        found |= {
            "p50_ms": round(statistics.median(times), 2),
            "p99_ms": round(times[min(len(times) - 1, int(len(times) * 0.99))], 2),
            "max_ms": round(times[-1], 2),
        }
    for name in ("model_ms", "queue_ms"):
        values = [value for s in samples if (value := getattr(s, name)) is not None]
        if values:
            found[f"{name.removesuffix('_ms')}_p50_ms"] = round(statistics.median(values), 3)
    if failed:
        found["first_failures"] = [
            {"at_s": round(sample.at, 2), "why": sample.failed} for sample in failed[:5]
        ]
    return found


def body_of(request: dict[str, Any]) -> bytes:
    return json.dumps({"instances": request["instances"][:1]}).encode()
