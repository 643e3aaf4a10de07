"""An open-loop load of predictions: requests leave on schedule, whether or not the ones before were answered.

A request that waits for a slow one is late, and its lateness counts: latency is from the scheduled
time to the answer. Why not a tool: of those that a distribution or a package registry has (wrk, hey,
h2load, ab, locust) none is open-loop and keeps for each request what Server-Timing says and an id by
which the gateway's log has it too.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import secrets
import ssl
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Sample:
    """One request; times in seconds, `at` since the start of the load. failed: "" or why. request_id: in the
    gateway's log."""

    at: float
    seconds: float
    failed: str
    model_ms: float | None
    queue_ms: float | None
    request_id: str


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
        self.name = f"load-{secrets.token_hex(4)}"
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
        return self.wait()

    def wait(self) -> list[Sample]:
        """Until it ends by itself."""
        for thread in self._threads:
            thread.join()
        return self.samples

    def now(self) -> float:
        """Seconds since the start, as in Sample.at."""
        return time.monotonic() - self._began

    def _run(self) -> None:
        connection = None
        while not self._stopped.is_set():
            number = next(self._numbers)
            at, request_id = number / self.rate, f"{self.name}-{number}"
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
                headers = {**self.headers, "X-Request-Id": request_id}
                connection.request("POST", self._parts.path, self.body, headers)
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
                Sample(
                    at,
                    self.now() - at,
                    failed,
                    said.get("model"),
                    said.get("queue"),
                    request_id,
                )
            )
        if connection is not None:
            connection.close()


def figures(samples: list[Sample]) -> dict[str, Any]:
    """Counts, and percentiles of the latencies in ms."""
    times = [sample.seconds * 1000 for sample in samples]
    failed = [sample for sample in samples if sample.failed]
    found: dict[str, Any] = {"requests": len(samples), "failed": len(failed)}
    if times:
        found |= {
            "p50_ms": round(statistics.median(times), 2),
            "p99_ms": round(percentile(times, 0.99), 2),
            "max_ms": round(max(times), 2),
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


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; of one that is not empty."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# What a gateway's log says of a request, in whole ms: waited for a server, connected, until the server answered, all of it.
LOGGED = ("Tw", "Tc", "Tr", "Ta")


def logged(lines: Iterable[str], name: str) -> dict[str, list[int]]:
    """Request id -> LOGGED of the requests of the load called `name`, from a gateway's access log."""
    found = {}
    for line in lines:
        if f'"{name}-' not in line:
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["request_id"].startswith(f"{name}-"):
                found[entry["request_id"]] = [int(entry[phase]) for phase in LOGGED]
    return found


def phases(sample: Sample, log: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Where the time of one request went, in ms; parts that nobody told are left out.

    client: between the scheduled time and the gateway, network and a late client. gateway: in HAProxy
    but for its queue. queue: waiting, at the gateway for a free server and in the service for its
    batch. service: in the service but for model and queue, and on the way there. model: predicting.
    """
    total = sample.seconds * 1000
    found = {"total": total}
    entry = log.get(sample.request_id)
    if entry is not None:
        waited, _, answered, all_of_it = (max(0, value) for value in entry)
        found["client"] = max(0.0, total - all_of_it)
        found["gateway"] = max(0.0, float(all_of_it - waited - answered))
        found["queue"] = float(waited) + (sample.queue_ms or 0.0)
        inside = (sample.model_ms or 0.0) + (sample.queue_ms or 0.0)
        found["service"] = max(0.0, answered - inside)
    if sample.model_ms is not None:
        found["model"] = sample.model_ms
    return found


def blame(samples: Sequence[Sample], log: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Median and p99 of each phase, ms, and which phase the slowest hundredth of the requests spent most in."""
    rows = [phases(sample, log) for sample in samples if not sample.failed]
    names = ("client", "gateway", "queue", "service", "model", "total")
    found: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        if values:
            found[name] = {
                "p50_ms": round(statistics.median(values), 2),
                "p99_ms": round(percentile(values, 0.99), 2),
            }
    slowest = sorted(rows, key=lambda row: row["total"])[-max(1, len(rows) // 100) :]
    spent = {name: sum(row.get(name, 0.0) for row in slowest) for name in names[:-1]}
    if rows and any(spent.values()):
        found["slowest_spent_most_in"] = max(spent, key=lambda name: spent[name])
    return found


def body_of(request: dict[str, Any]) -> bytes:
    return json.dumps({"instances": request["instances"][:1]}).encode()


def _together(
    samples: Sequence[Sequence[Any]], logs: Sequence[Mapping[str, Sequence[int]]]
) -> tuple[list[Sample], dict[str, Sequence[int]]]:
    """As modules load_test and gateway_log return them."""
    return [Sample(*sample) for sample in samples], {k: v for log in logs for k, v in log.items()}


def blame_of(samples: Sequence[Sequence[Any]], logs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """See blame."""
    return blame(*_together(samples, logs))


def csv_of(samples: Sequence[Sequence[Any]], logs: Sequence[Mapping[str, Any]]) -> str:
    """A line a request, in the order of their scheduled times: when, where its time went (ms), and why it failed."""
    names = ("total", "client", "gateway", "queue", "service", "model")
    lines = ["request_id,at_s," + ",".join(f"{name}_ms" for name in names) + ",failed"]
    found, log = _together(samples, logs)
    for sample in sorted(found, key=lambda sample: sample.at):
        row = phases(sample, log)
        values = [f"{row[name]:.3f}" if name in row else "" for name in names]
        why = re.sub(r"[\s,\"]+", " ", sample.failed)
        lines.append(f"{sample.request_id},{sample.at:.3f},{','.join(values)},{why}")
    return "\n".join(lines) + "\n"


def lines(found: Mapping[str, Any], parts: Mapping[str, Any]) -> list[str]:
    """For people: counts, a line a phase, and whom to blame for the slowest."""
    said = [f"{found['requests']} requests, {found['failed']} failed"]
    for failure in found.get("first_failures", []):
        said.append(f"  after {failure['at_s']} s: {failure['why']}")
    for name, values in parts.items():
        if isinstance(values, Mapping):
            said.append(
                f"  {name:8} p50 {values['p50_ms']:8.2f} ms   p99 {values['p99_ms']:8.2f} ms"
            )
    if "slowest_spent_most_in" in parts:
        said.append(
            f"The slowest hundredth spent most of their time in: {parts['slowest_spent_most_in']}"
        )
    return said
