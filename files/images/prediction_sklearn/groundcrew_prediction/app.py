"""The HTTP side of the prediction service: one model version behind TensorFlow Serving's paths."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import uuid
from typing import Any

from flask import Flask, Response, g, request
from groundcrew.errors import GroundcrewError
from werkzeug.exceptions import HTTPException

from . import engine as engines
from .contract import BadRequest, read_instances
from .engine import Engine
from .metrics import CONTENT_TYPE, Metrics
from .settings import Settings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_LOG = logging.getLogger(__name__)


class TooLarge(Exception):
    """A body above the limit."""


def application() -> Flask:
    """The WSGI application of a worker, from the environment; one line and the end without it."""
    try:
        settings = Settings.from_environment(os.environ)
        engine = engines.load(
            settings.directory, settings.model, settings.version, settings.manifest_sha256
        )
    except GroundcrewError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    return create_app(engine, settings.max_body_bytes)


def create_app(engine: Engine, max_body_bytes: int = 1 << 20) -> Flask:
    """A WSGI application that serves one engine.

    Every answer has X-Request-Id and X-Model-Version; an answer to predict has Server-Timing with
    queue (waiting for the model), model and total, in milliseconds. Errors are {"error": "…"}.
    """
    app = Flask(__name__, static_folder=None)
    # Paths are literal: a redirect from // to / would answer a POST with something clients ignore.
    app.url_map.merge_slashes = False
    metrics = Metrics(engine.model, engine.version, engine.framework, engine.manifest_sha256)
    # One prediction at a time in a process: two would only share the processor.
    turn = threading.Lock()
    path = f"/v1/models/{engine.model}"
    versions = (path, f"{path}/versions/{engine.version}")
    predict_paths = [f"{versioned}:predict" for versioned in versions]
    status = {
        "model_version_status": [
            {
                "version": engine.version,
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }

    def predict() -> Response:
        instances = read_instances(_body(max_body_bytes), engine.signature)
        asked = time.perf_counter()
        with turn:
            started = time.perf_counter()
            predictions = engine.predict(instances)
            finished = time.perf_counter()
        g.timing = {"queue": started - asked, "model": finished - started}
        metrics.predicted(len(instances), started - asked, finished - started)
        return _json({"predictions": predictions.tolist()})

    for rule in predict_paths:
        app.add_url_rule(rule, rule, predict, methods=["POST"])
    for rule in versions:
        app.add_url_rule(rule, rule, lambda: _json(status))
    app.add_url_rule(
        "/healthz",
        "healthz",
        lambda: _json({"status": "ok", "model": engine.model, "version": engine.version}),
    )
    app.add_url_rule(
        "/metrics", "metrics", lambda: Response(metrics.text(), content_type=CONTENT_TYPE)
    )

    @app.before_request
    def start() -> None:
        g.started = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        if request.path in predict_paths:
            metrics.asked()
        g.request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex

    @app.after_request
    def finish(response: Response) -> Response:
        total = time.perf_counter() - g.started
        response.headers["X-Request-Id"] = g.request_id
        response.headers["X-Model-Version"] = engine.version
        if request.path in predict_paths:
            timing = {**g.get("timing", {}), "total": total}
            response.headers["Server-Timing"] = ", ".join(
                f"{name};dur={seconds * 1000:.3f}" for name, seconds in timing.items()
            )
            metrics.answered(response.status_code, total)
        return response

    @app.errorhandler(BadRequest)
    def bad_request(error: BadRequest) -> Response:
        return _json({"error": str(error)}, 400)

    @app.errorhandler(TooLarge)
    def too_large(_error: TooLarge) -> Response:
        return _json({"error": f"the body is larger than {max_body_bytes} bytes"}, 413)

    @app.errorhandler(404)
    def not_found(_error: HTTPException) -> Response:
        here = "this server has " + " and ".join(versions)
        return _json({"error": f"there is nothing at {request.path}; {here}"}, 404)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = _json({"error": error.description or error.name}, error.code or 500)
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        _LOG.error("request %s failed", g.request_id, exc_info=error)
        return _json({"error": f"the server failed; see its log for request {g.request_id}"}, 500)

    return app


def _body(limit: int) -> bytes:
    """The request's body, read up to the limit whether or not its length was announced."""
    stream = request.environ["wsgi.input"]
    announced = request.content_length
    if announced is None or announced <= limit:
        data: bytes = stream.read(limit + 1)
        if len(data) <= limit:
            return data
    # A client that is still sending when the connection is closed may never see the answer, so as
    # much again is read and thrown away.
    left = limit
    while left > 0 and (block := stream.read(min(left, 1 << 16))):
        left -= len(block)
    raise TooLarge


def _json(document: Any, status: int = 200) -> Response:
    return Response(
        json.dumps(document, allow_nan=False), status=status, content_type="application/json"
    )
