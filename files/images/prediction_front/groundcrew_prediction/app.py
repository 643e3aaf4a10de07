"""The HTTP side of the prediction service: one model version behind TensorFlow Serving's paths.

Granian calls it by RSGI (https://github.com/emmett-framework/granian/blob/master/docs/spec/RSGI.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import orjson
from groundcrew.errors import GroundcrewError

from . import engine as engines
from .contract import BadRequest, to_array
from .metrics import CONTENT_TYPE, Metrics
from .request import Refused, decoded, instances
from .serving import Behind, Direct, MicroBatch, Server, not_available
from .settings import Settings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_LOG = logging.getLogger(__name__)
# A client that is still sending when the connection is closed may never see the answer, so of a body
# that is too large as much is read and thrown away.
_MOST_BYTES_DRAINED = 64 * 1024 * 1024

Headers = tuple[tuple[str, str], ...]


class Scope(Protocol):
    """RSGI's description of a request."""

    method: str
    path: str
    headers: Mapping[str, str]


class Connection(Protocol):
    """RSGI's HTTP protocol object."""

    async def __call__(self) -> bytes: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...


def application() -> Application:
    """The application of a worker, from the environment; one line and the end without it."""
    try:
        settings = Settings.from_environment(os.environ)
        return Application(server_of(settings), settings)
    except GroundcrewError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def server_of(settings: Settings) -> Server:
    """The server of a model version. Raises GroundcrewError when it cannot be loaded."""
    version = (settings.directory, settings.model, settings.version, settings.manifest_sha256)
    if settings.backend is not None:
        return Behind(engines.open_model(*version), settings.backend)
    engine = engines.load(*version)
    if isinstance(engine, engines.OnnxEngine):
        return Direct(engine)
    return MicroBatch(engine)


class Application:
    """Serves one model version.

    Every answer has X-Request-Id and X-Model-Version; an answer to predict has Server-Timing with
    queue (waiting for the model), model and total, in milliseconds. Errors are {"error": "…"}.
    """

    def __init__(self, server: Server, settings: Settings) -> None:
        self._server = server
        self._settings = settings
        model = server.model
        self._metrics = Metrics(model.name, model.version, model.framework, model.manifest_sha256)
        path = f"/v1/models/{model.name}"
        self._versions = (path, f"{path}/versions/{model.version}")
        self._predict_paths = frozenset(f"{versioned}:predict" for versioned in self._versions)
        self._in_flight = 0

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._server.start())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._server.stop())

    async def __rsgi__(self, scope: Scope, connection: Connection) -> None:
        started = time.perf_counter()
        given = scope.headers.get("x-request-id")
        request_id = given if given and _REQUEST_ID.match(given) else os.urandom(16).hex()
        common = [
            ("content-type", "application/json"),
            ("x-request-id", request_id),
            ("x-model-version", self._server.model.version),
        ]
        if scope.path not in self._predict_paths or scope.method != "POST":
            status, headers, body = self._look(scope)
            connection.response_bytes(status, [*dict([*common, *headers]).items()], body)
            return
        self._in_flight += 1
        self._metrics.asked()
        timing = ""
        try:
            status, headers, body, timing = await self._predict(scope, connection, request_id)
        except BadRequest as error:
            status, headers, body = 400, (), _error(str(error))
        except Refused as error:
            status, headers, body = error.status, error.headers, _error(str(error))
        except asyncio.CancelledError:
            # The client went away.
            self._metrics.answered(499, time.perf_counter() - started)
            raise
        except Exception as error:
            _LOG.error("request %s failed", request_id, exc_info=error)
            reason = f"{error}; " if isinstance(error, (RuntimeError, ArithmeticError)) else ""
            body = _error(f"{reason}the server failed; see its log for request {request_id}")
            status, headers = 500, ()
        finally:
            self._in_flight -= 1
        total = time.perf_counter() - started
        common.append(("server-timing", f"{timing}total;dur={total * 1000:.3f}"))
        self._metrics.answered(status, total)
        connection.response_bytes(status, [*common, *headers], body)

    async def _predict(
        self, scope: Scope, connection: Connection, request_id: str
    ) -> tuple[int, Headers, bytes, str]:
        settings, server = self._settings, self._server
        body = await _body(scope, connection, settings.max_body_bytes)
        if self._in_flight > settings.max_queue:
            raise Refused(
                503,
                f"{settings.max_queue} requests are being answered already",
                ("retry-after", "1"),
            )
        if server.unavailable is not None:
            raise not_available(server)
        headers = scope.headers
        body = decoded(
            body,
            headers.get("content-type"),
            headers.get("content-encoding"),
            settings.max_body_bytes,
        )
        array = to_array(instances(body, settings.max_instances), server.model.signature)
        answer = await server.predict(array, request_id)
        self._metrics.predicted(
            len(array), answer.batch_rows, answer.queue_seconds, answer.model_seconds
        )
        timing = (
            f"queue;dur={answer.queue_seconds * 1000:.3f}, "
            f"model;dur={answer.model_seconds * 1000:.3f}, "
        )
        document = orjson.dumps(
            {"predictions": answer.predictions}, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain
        )
        return 200, (), document, timing

    def _look(self, scope: Scope) -> tuple[int, Headers, bytes]:
        """Everything but a prediction."""
        path, server = scope.path, self._server
        reads = scope.method in ("GET", "HEAD")
        if path in self._predict_paths:
            return 405, (("allow", "POST"),), _error(f"{path} takes POST, not {scope.method}")
        if path not in (*self._versions, "/healthz", "/metrics"):
            here = "this server has " + " and ".join(self._versions)
            return 404, (), _error(f"there is nothing at {path}; {here}")
        if not reads:
            return 405, (("allow", "GET"),), _error(f"{path} takes GET, not {scope.method}")
        if path == "/metrics":
            return 200, (("content-type", CONTENT_TYPE),), self._metrics.text()
        if path == "/healthz":
            # Whether this process lives; whether it can predict is what the model's path says.
            model = server.model
            return 200, (), _json({"status": "ok", "model": model.name, "version": model.version})
        reason = server.unavailable
        status = {
            "version": server.model.version,
            "state": "AVAILABLE" if reason is None else "START",
            "status": {
                "error_code": "OK" if reason is None else "UNAVAILABLE",
                "error_message": reason or "",
            },
        }
        return 200 if reason is None else 503, (), _json({"model_version_status": [status]})


async def _body(scope: Scope, connection: Connection, limit: int) -> bytes:
    """The request's body, at most ``limit`` bytes, whether or not its length was announced."""
    announced = scope.headers.get("content-length")
    if announced is not None and announced.isdecimal() and int(announced) <= limit:
        return await connection()
    blocks, size = [], 0
    async for block in connection:
        size += len(block)
        if size <= limit:
            blocks.append(block)
        elif size > _MOST_BYTES_DRAINED:
            break
    if size > limit:
        raise Refused(413, f"the body is larger than {limit} bytes")
    return b"".join(blocks)


def _plain(value: Any) -> Any:
    # An array that is not contiguous, or of a type that JSON's library does not know.
    return value.tolist()


def _error(reason: str) -> bytes:
    return _json({"error": reason})


def _json(document: Any) -> bytes:
    return orjson.dumps(document)
