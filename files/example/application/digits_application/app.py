"""The web application: the page, its two JSON endpoints, health and metrics."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from flask import Flask, Response, g, render_template, request
from groundcrew import objects
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import BadRequest, HTTPException

from digits_application.batch import BatchReloader
from digits_application.logs import log
from digits_application.metrics import Metrics
from digits_application.prediction import PredictionClient, PredictionError, read_api_key
from digits_application.settings import Settings

PIXELS = 64
INK = 16  # the largest value of a pixel
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app() -> Flask:
    """The application as its environment describes it, with the batch reloader started."""
    settings = Settings.from_environment()
    reloader = BatchReloader(
        objects.open_client(),
        settings.store_bucket,
        settings.batch_job,
        settings.batch_poll_seconds,
    )
    prediction = PredictionClient(
        settings.prediction_url,
        settings.model_name,
        read_api_key(settings.api_key_file),
        ca_file=settings.prediction_ca_file,
        timeout_seconds=settings.prediction_timeout_seconds,
    )
    reloader.start()
    return build_app(settings.model_name, prediction, reloader)


def build_app(model: str, prediction: PredictionClient, batches: BatchReloader) -> Flask:
    """The application over a prediction client and a batch reloader."""
    app = Flask("digits_application")
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024  # bytes
    metrics = Metrics(batches)

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex

    @app.after_request
    def finish(response: Response) -> Response:
        seconds = time.perf_counter() - g.started
        # The rule, not the path: a scanner's made-up paths must not become metrics of their own.
        route = request.url_rule.rule if request.url_rule else "unknown"
        metrics.requests.labels(route, request.method, response.status_code).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        log(
            logging.DEBUG if route in ("/healthz", "/metrics") else logging.INFO,
            "request",
            method=request.method,
            path=request.path,
            status=response.status_code,
            duration_ms=round(seconds * 1000, 2),
            request_id=g.request_id,
        )
        response.headers["X-Request-Id"] = g.request_id
        response.headers.update(_SECURITY_HEADERS)
        return response

    @app.get("/")
    def page() -> str:
        return render_template("index.html", model=model)

    @app.post("/api/predict")
    def predict() -> dict[str, Any]:
        with metrics.prediction_seconds.time():
            answer = prediction.predict(read_instance(), g.request_id)
        return {
            "digit": answer.digit,
            "probabilities": answer.probabilities,
            "model": model,
            "version": answer.version,
            "latency_ms": round(answer.latency_ms, 2),
            "model_ms": answer.model_ms,
            "request_id": g.request_id,
        }

    @app.get("/api/batch")
    def batch() -> dict[str, Any]:
        run = batches.current
        if run is None:
            return {"run": None, "items": []}
        return {
            "run": run.run,
            "rows": run.rows,
            "rejected": run.rejected,
            "model_version": run.model_version,
            "finished": objects.timestamp(run.finished),
            "age_seconds": round(run.age_seconds, 1),
            "items": run.items,
        }

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)

    @app.errorhandler(PredictionError)
    def prediction_failed(error: PredictionError) -> tuple[dict[str, str], int]:
        metrics.prediction_errors.labels(error.status).inc()
        log(
            logging.ERROR,
            "prediction failed",
            error=str(error),
            cause=repr(error.__cause__) if error.__cause__ else None,
            request_id=g.request_id,
        )
        return {"error": str(error)}, error.status

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[dict[str, str | None], int]:
        return {"error": error.description}, error.code or 500

    @app.errorhandler(Exception)
    def broken(_error: Exception) -> tuple[dict[str, str], int]:
        log(logging.ERROR, "internal error", exc_info=True, request_id=g.request_id)
        return {"error": "internal error"}, 500

    return app


def read_instance() -> list[float]:
    """The instance in the request's body: 64 numbers from 0 to 16, row by row. Raises BadRequest,
    which names what is wrong."""
    try:
        body = request.get_json(force=True)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    instance = body.get("instance") if isinstance(body, dict) else None
    if not isinstance(instance, list):
        raise BadRequest('the body must be {"instance": [64 numbers]}')
    if len(instance) != PIXELS:
        raise BadRequest(f"instance has {len(instance)} numbers, it must have {PIXELS}")
    for index, value in enumerate(instance):
        # The comparison also refuses NaN and the infinities, which Python's JSON parser accepts.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= INK:
            raise BadRequest(f"instance[{index}] is not a number from 0 to {INK}")
    return instance
