"""The web application: the page, its JSON API, health and metrics."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any, Protocol

from flask import Flask, Response, g, jsonify, render_template, request
from groundcrew import objects
from groundcrew_application.circuit import CircuitBreaker
from groundcrew_application.embedded import EmbeddedModel
from groundcrew_application.prediction import (
    EMBEDDED,
    PREDICTION,
    Answer,
    PredictionClient,
    PredictionError,
    read_api_key,
)
from groundcrew_application.reloader import Reloader
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import BadRequest, HTTPException

from digits_application import batch as digits_batch
from digits_application import prefix, rows, settings
from digits_application.batch import DigitsRun
from digits_application.digits import CLASSES, INK, PIXELS, check_prediction, digit_of, is_pixel
from digits_application.files import DONE, Busy, FileJobs
from digits_application.logs import log
from digits_application.metrics import BatchHooks, Metrics, PredictionHooks
from digits_application.settings import Settings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_MOST_BYTES = 64 * 1024  # of a body, other than a file
_MOST_ITEMS = 200  # of the batch run at a time
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Predictor(Protocol):
    """A PredictionClient or an EmbeddedModel."""

    @property
    def version(self) -> str | None: ...
    @property
    def answered_seconds_ago(self) -> float | None: ...
    @property
    def problem(self) -> str | None: ...
    def predict(self, instance: Any, request_id: str) -> Answer: ...
    def ask(self, instances: Any, request_id: str) -> Answer: ...


def create_app() -> Flask:
    """The application as its environment describes it, with the batch reloader started."""
    chosen = Settings.from_environment()
    metrics = Metrics()
    batches = Reloader(
        objects.open_client(),
        chosen.store_bucket,
        chosen.batch_job,
        DigitsRun.load,
        poll_seconds=chosen.batch_poll_seconds,
        hooks=BatchHooks(),
    )
    app = build_app(chosen, predictor_of(chosen, metrics, batches), batches, metrics)
    batches.start()
    return app


def predictor_of(
    chosen: Settings, metrics: Metrics, batches: Reloader[DigitsRun]
) -> PredictionClient | EmbeddedModel:
    """Who predicts, as PREDICTION_MODE says. Raises GroundcrewError when it lacks something."""
    hooks = PredictionHooks(metrics)
    if chosen.prediction_mode == settings.EMBEDDED:
        assert chosen.model_directory is not None
        return EmbeddedModel(
            chosen.model_directory,
            manifest_sha256=chosen.model_manifest_sha256,
            check=check_prediction,
            hooks=hooks,
        )
    return PredictionClient(
        chosen.prediction_url,
        chosen.model_name,
        read_api_key(chosen.api_key_file),
        ca_file=chosen.prediction_ca_file,
        timeout_seconds=chosen.prediction_timeout_seconds,
        check=check_prediction,
        breaker=CircuitBreaker(
            chosen.circuit_failures, chosen.circuit_probe_seconds, changed=hooks.circuit
        ),
        stale_entries=chosen.stale_entries,
        stale_seconds=chosen.stale_seconds,
        fallback=lambda instance: digits_batch.fallback(batches.current, instance),
        hooks=hooks,
    )


def build_app(
    chosen: Settings, predictor: Predictor, batches: Reloader[DigitsRun], metrics: Metrics
) -> Flask:
    """The application over a predictor and a batch reloader."""
    app = Flask("digits_application")
    app.config["MAX_CONTENT_LENGTH"] = _MOST_BYTES
    app.wsgi_app = prefix.below(chosen.route_prefix, app.wsgi_app)  # type: ignore[method-assign, assignment]
    metrics.follow(batches)
    model = chosen.model_name
    files = FileJobs(
        predictor.ask,
        most_jobs=chosen.file_jobs,
        batch_rows=chosen.file_batch_rows,
        patience_seconds=chosen.file_patience_seconds,
        result_seconds=chosen.file_result_seconds,
        predicted=metrics.file_rows.inc,
        ended=lambda state: metrics.files.labels(state).inc(),
    )

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
        return render_template(
            "index.html",
            model=model,
            embedded=chosen.prediction_mode == settings.EMBEDDED,
            most_rows=chosen.file_max_rows,
            most_bytes=chosen.file_max_bytes,
        )

    @app.post("/api/predict")
    def predict() -> Response:
        instance = read_instance()
        with metrics.prediction_seconds.time():
            answer = predictor.predict(instance, g.request_id)
        (probabilities,) = answer.predictions
        if answer.source not in (PREDICTION, EMBEDDED):
            log(
                logging.WARNING,
                "answered instead",
                source=answer.source,
                problem=answer.problem,
                request_id=g.request_id,
            )
        timing = shares_of((time.perf_counter() - g.started) * 1000, answer)
        response = jsonify(
            digit=digit_of(probabilities),
            probabilities=probabilities,
            model=model,
            version=answer.version,
            source=answer.source,
            age_seconds=None if answer.age_seconds is None else round(answer.age_seconds, 1),
            problem=answer.problem,
            latency_ms=round(answer.latency_ms, 2),
            model_ms=timing.get("model"),
            timing_ms=timing,
            request_id=g.request_id,
        )
        response.headers["Server-Timing"] = ", ".join(
            f"{name};dur={ms}" for name, ms in timing.items()
        )
        return response

    @app.get("/api/status")
    def status() -> dict[str, Any]:
        ago = predictor.answered_seconds_ago
        circuit = predictor.breaker.state if isinstance(predictor, PredictionClient) else None
        return {
            "model": model,
            "version": predictor.version,
            "mode": chosen.prediction_mode,
            "circuit": circuit,
            "problem": predictor.problem,
            "answered_seconds_ago": None if ago is None else round(ago, 1),
            "batch": batch_status(),
        }

    def batch_status() -> dict[str, Any]:
        found = batches.status()
        seconds = {
            name: None if value is None else round(value, 1)
            for name, value in (
                ("age_seconds", found.age_seconds),
                ("checked_seconds_ago", found.checked_seconds_ago),
                ("loading_seconds", found.loading_seconds),
            )
        }
        # What exactly is wrong names buckets and keys; the log tells it to those who run this.
        return {"run": found.run, **seconds, "problem": found.problem is not None}

    @app.get("/api/batch")
    def batch() -> dict[str, Any]:
        digit = query_number("digit", 0, CLASSES - 1)
        selected = {
            "digit": None if digit is None else int(digit),
            "minimum": query_number("minimum", 0, 1) or 0.0,
            "maximum": 1.0 if (most := query_number("maximum", 0, 1)) is None else most,
            "offset": int(query_number("offset", 0, 2**53) or 0),
            "limit": int(query_number("limit", 1, _MOST_ITEMS) or digits_batch.ITEMS),
        }
        loaded = batches.current
        if loaded is None:
            return {"run": None, "items": [], "status": batch_status()}
        run = loaded.value
        found = run.select(**selected)  # type: ignore[arg-type]
        return {
            "run": loaded.run_id,
            "rows": run.rows,
            "rejected": run.rejected,
            "model_version": run.model_version,
            "finished": objects.timestamp(loaded.finished),
            "age_seconds": round(loaded.age_seconds, 1),
            "matching": found.matching,
            "offset": found.offset,
            "items": found.items,
            "status": batch_status(),
        }

    @app.post("/api/files")
    def add_file() -> tuple[dict[str, Any], int, dict[str, str]]:
        request.max_content_length = chosen.file_max_bytes
        if request.mimetype.startswith(("multipart/", "application/x-www-form-urlencoded")):
            raise BadRequest(
                "send the file itself as the body, with Content-Type: text/csv (curl --data-binary @rows.csv)"
            )
        job = files.add(rows.read(request.get_data(), chosen.file_max_rows))
        log(logging.INFO, "file taken", file=job.id, rows=job.total, request_id=g.request_id)
        return job.document(), 202, {"Location": f"files/{job.id}"}

    @app.get("/api/files/<job_id>")
    def file_progress(job_id: str) -> tuple[dict[str, Any], int]:
        job = files.get(job_id)
        return (job.document(), 200) if job else no_file()

    @app.delete("/api/files/<job_id>")
    def cancel_file(job_id: str) -> tuple[dict[str, Any], int]:
        return ({}, 204) if files.cancel(job_id) else no_file()

    @app.get("/api/files/<job_id>/result.csv")
    def file_result(job_id: str) -> Response | tuple[dict[str, Any], int]:
        job = files.get(job_id)
        if job is None:
            return no_file()
        if job.state != DONE or job.result is None:
            return {
                "error": f"the file is {job.state}, {job.done} of {job.total} rows are predicted"
            }, 409
        return Response(
            job.result,
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="predictions.csv"'},
        )

    def no_file() -> tuple[dict[str, Any], int]:
        minutes = chosen.file_result_seconds / 60
        return {
            "error": f"there is no such file: results are kept for {minutes:g} minutes and not beyond a restart; upload it again"
        }, 404

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)

    @app.errorhandler(PredictionError)
    def prediction_failed(error: PredictionError) -> tuple[dict[str, str], int, dict[str, str]]:
        metrics.prediction_errors.labels(error.status).inc()
        log(
            logging.ERROR,
            "prediction failed",
            error=str(error),
            cause=repr(error.__cause__) if error.__cause__ else None,
            request_id=g.request_id,
        )
        after = error.retry_after_seconds
        headers = {} if after is None else {"Retry-After": str(max(1, round(after)))}
        return {"error": str(error)}, error.status, headers

    @app.errorhandler(rows.MalformedFile)
    def malformed(error: rows.MalformedFile) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, error.status

    @app.errorhandler(Busy)
    def busy(error: Busy) -> tuple[dict[str, str], int, dict[str, str]]:
        return {"error": str(error)}, 503, {"Retry-After": "5"}

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[dict[str, str | None], int]:
        if error.code == 413 and request.path.endswith("/api/files"):
            return {
                "error": f"the file is larger than {chosen.file_max_bytes} bytes; send it in parts"
            }, 413
        return {"error": error.description}, error.code or 500

    @app.errorhandler(Exception)
    def broken(_error: Exception) -> tuple[dict[str, str], int]:
        log(logging.ERROR, "internal error", exc_info=True, request_id=g.request_id)
        return {"error": "internal error"}, 500

    return app


def shares_of(total_ms: float, answer: Answer) -> dict[str, float]:
    """Where a request's time went, in ms that add up to ``total_ms``: application, gateway (with the network), service (its checks and
    JSON), queue and model, as far as Server-Timing tells them; else application and prediction."""
    told = answer.timing_ms
    shares = {"application": total_ms - answer.latency_ms}
    if not {"queue", "model", "total"} <= told.keys():
        shares["prediction"] = answer.latency_ms
    else:
        if answer.source != EMBEDDED:
            shares["gateway"] = answer.latency_ms - told["total"]
        shares["service"] = told["total"] - told["queue"] - told["model"]
        shares["queue"], shares["model"] = told["queue"], told["model"]
    # Clocks of two machines: a share may come out a little below nothing.
    return {name: round(max(0.0, ms), 3) for name, ms in shares.items()}


def query_number(name: str, least: float, most: float) -> float | None:
    """A number of the query, None when it is not given or empty. Raises BadRequest."""
    text = request.args.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise BadRequest(f"{name} is {text!r}; it must be a number from {least:g} to {most:g}")
    return value


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
        if not is_pixel(value):
            raise BadRequest(f"instance[{index}] is not a number from 0 to {INK}")
    return instance
