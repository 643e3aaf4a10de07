"""What the application tells Prometheus."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from digits_application.batch import BatchReloader

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, batches: BatchReloader) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "application_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "application_request_seconds",
            "Time to answer a request.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.prediction_seconds = Histogram(
            "application_prediction_seconds",
            "Time of a prediction through the gateway.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.prediction_errors = Counter(
            "application_prediction_errors",
            "Predictions that failed, by the status answered.",
            ("status",),
            registry=self.registry,
        )
        Gauge(
            "application_batch_age_seconds",
            "Time since the shown batch run finished; NaN when there is none.",
            registry=self.registry,
        ).set_function(lambda: batches.current.age_seconds if batches.current else math.nan)
        Gauge(
            "application_batch_reload_failures",
            "Batch reloads that failed since the start.",
            registry=self.registry,
        ).set_function(lambda: batches.failures)
