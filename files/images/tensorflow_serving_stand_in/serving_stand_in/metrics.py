"""Metrics under the official server's names, in Prometheus's text form (util/prometheus_exporter.cc)."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter

# Microseconds: 10 * 1.8^n, 33 limits (servables/tensorflow/util.cc).
_LIMITS = [10 * 1.8**power for power in range(33)]


class _Histogram:
    def __init__(self) -> None:
        self.buckets = [0] * (len(_LIMITS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.buckets[bisect_right(_LIMITS, value)] += 1
        self.sum += value


class Metrics:
    """Counts and latencies since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._latency: dict[str, dict[tuple[str, str], _Histogram]] = {
            "request_latency": {},
            "runtime_latency": {},
        }

    def request(self, model: str, status: str, entrypoint: str, seconds: float) -> None:
        with self._lock:
            self._requests[model, status] += 1
            if status == "OK":
                self._add("request_latency", (model, entrypoint), seconds)

    def runtime(self, model: str, seconds: float) -> None:
        with self._lock:
            self._add("runtime_latency", (model, "TF1"), seconds)

    def _add(self, name: str, key: tuple[str, str], seconds: float) -> None:
        self._latency[name].setdefault(key, _Histogram()).add(seconds * 1e6)

    def text(self) -> str:
        lines = ["# TYPE :tensorflow:serving:request_count counter"]
        with self._lock:
            for (model, status), count in sorted(self._requests.items()):
                labels = f'model_name="{_escaped(model)}",status="{status}"'
                lines.append(f":tensorflow:serving:request_count{{{labels}}} {count}")
            for short, histograms in self._latency.items():
                name = f":tensorflow:serving:{short}"
                last = "entrypoint" if short == "request_latency" else "runtime"
                lines.append(f"# TYPE {name} histogram")
                for (model, value), histogram in sorted(histograms.items()):
                    labels = f'model_name="{_escaped(model)}",API="Predict",{last}="{value}"'
                    lines += _histogram_lines(name, labels, histogram)
        return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: str, histogram: _Histogram) -> list[str]:
    lines, count = [], 0
    for limit, bucket in zip([*_LIMITS, None], histogram.buckets, strict=True):
        count += bucket
        edge = "+Inf" if limit is None else f"{limit:g}"
        lines.append(f'{name}_bucket{{{labels},le="{edge}"}} {count}')
    return [
        *lines,
        f"{name}_sum{{{labels}}} {histogram.sum:g}",
        f"{name}_count{{{labels}}} {count}",
    ]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
