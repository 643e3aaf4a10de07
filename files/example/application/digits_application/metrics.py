"""What the application tells Prometheus."""

from __future__ import annotations

import logging
import math

from groundcrew_application import prediction, reloader
from groundcrew_application.circuit import CLOSED
from groundcrew_application.prediction import PredictionError
from groundcrew_application.reloader import Reloader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from digits_application.batch import DigitsRun
from digits_application.logs import log

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
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
            "Time of a prediction through the gateway, or by the embedded model.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.prediction_errors = Counter(
            "application_prediction_errors",
            "Predictions that failed, by the status answered.",
            ("status",),
            registry=self.registry,
        )
        self.predictions = Counter(
            "application_predictions",
            "Predictions answered, by where they came from: prediction, stale, fallback or embedded.",
            ("source",),
            registry=self.registry,
        )
        self.retries = Counter(
            "application_prediction_retries",
            "Calls of the prediction service that were made a second time.",
            registry=self.registry,
        )
        self.circuit_open = Gauge(
            "application_prediction_circuit_open",
            "1 while the prediction service is left alone after several failures in a row.",
            registry=self.registry,
        )
        self.file_rows = Counter(
            "application_file_rows",
            "Rows of uploaded files that were predicted.",
            registry=self.registry,
        )
        self.files = Counter(
            "application_files",
            "Uploaded files, by how they ended: done, failed or cancelled.",
            ("state",),
            registry=self.registry,
        )

    def follow(self, batches: Reloader[DigitsRun]) -> None:
        """Tell of the batch run too."""
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


class PredictionHooks(prediction.Hooks):
    """What happens between the application and the prediction service, as metrics and log lines."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answered(self, source: str, seconds: float) -> None:
        self._metrics.predictions.labels(source).inc()

    def failed(self, error: PredictionError) -> None:
        # The request's own line tells of the error; this one is for those that were answered all the same.
        log(logging.DEBUG, "prediction service failed", error=str(error))

    def retried(self) -> None:
        self._metrics.retries.inc()

    def circuit(self, state: str) -> None:
        self._metrics.circuit_open.set(0 if state == CLOSED else 1)
        log(logging.WARNING, "prediction circuit", state=state)


class BatchHooks(reloader.Hooks):
    """What happens to the batch run, as log lines."""

    def loaded(self, run_id: str, seconds: float) -> None:
        log(logging.INFO, "batch run loaded", run=run_id, seconds=round(seconds, 3))

    def problem(self, problem: str, kept: str | None) -> None:
        log(logging.ERROR, "batch run not loaded", problem=problem, kept=kept)
