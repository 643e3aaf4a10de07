"""The service's metrics, in Prometheus' text format.

Counted in the process; with several workers prometheus_client adds them up through files in
PROMETHEUS_MULTIPROC_DIR (https://prometheus.github.io/client_python/multiprocess/).
"""

from __future__ import annotations

import functools
import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_PREFIX = "groundcrew_prediction"

# The time at which each counter was made doubles the number of series and nobody asks for it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """One model version's metrics; every sample has the labels model and version."""

    def __init__(self, model: str, version: str, framework: str, manifest_sha256: str) -> None:
        self._registry = CollectorRegistry()
        names = ("model", "version")
        labels = {"model": model, "version": version}

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            made = Histogram(
                f"{_PREFIX}_{name}", text, names, buckets=buckets, registry=self._registry
            )
            return made.labels(**labels)

        requests = Counter(
            f"{_PREFIX}_requests_total",
            "Requests to predict, by HTTP status.",
            (*names, "code"),
            registry=self._registry,
        )
        # A series is looked up once for each status that there was.
        self._answers = functools.cache(lambda code: requests.labels(**labels, code=str(code)))
        self._instances = Counter(
            f"{_PREFIX}_instances_total", "Instances predicted.", names, registry=self._registry
        ).labels(**labels)
        self._in_flight = Gauge(
            f"{_PREFIX}_in_flight",
            "Requests to predict that are not answered yet.",
            names,
            registry=self._registry,
            multiprocess_mode="livesum",
        ).labels(**labels)
        self._total = histogram("request_seconds", "Time from request to answer in this process.")
        self._queue = histogram("queue_seconds", "Time a request waited for the model.")
        self._model = histogram("model_seconds", "Time the model took.")
        self._batch = histogram("batch_size", "Rows that the model was given at once.", _ROWS)
        info = Gauge(
            f"{_PREFIX}_model_info",
            "The model version served; always 1.",
            (*names, "framework", "manifest_sha256"),
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        info.labels(**labels, framework=framework, manifest_sha256=manifest_sha256).set(1)

    def asked(self) -> None:
        """Count a request to predict that has begun."""
        self._in_flight.inc()

    def answered(self, code: int, seconds: float) -> None:
        """Count a request to predict that was answered with an HTTP status."""
        self._in_flight.dec()
        self._answers(code).inc()
        self._total.observe(seconds)

    def predicted(
        self, instances: int, batch_rows: int, queue_seconds: float, model_seconds: float
    ) -> None:
        """Count a prediction."""
        self._instances.inc(instances)
        self._batch.observe(batch_rows)
        self._queue.observe(queue_seconds)
        self._model.observe(model_seconds)

    def text(self) -> bytes:
        """All metrics, for a scrape."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self._registry)
