"""The REST interface (model_servers/http_server.cc, http_rest_api_handler.cc and http_rest_api_util.cc)."""

from __future__ import annotations

import asyncio
import json
import re
import time
from urllib.parse import unquote_to_bytes

from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_status_pb2

from serving_stand_in import json_tensor
from serving_stand_in.core import Core, Spec, status_proto
from serving_stand_in.errors import Code, ServingError, invalid
from serving_stand_in.rpc import metadata_proto

_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(
    rf"(?i)/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)"
)
_STATUS = re.compile(rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<part>metadata))?")


def application(
    core: Core, metrics_path: str | None, timeout_seconds: float | None
) -> web.Application:
    """Every path; those outside /v1/ are an empty 404, as on the official server."""

    async def answer(request: web.Request) -> web.Response:
        path = request.rel_url.raw_path
        if metrics_path is not None and path == metrics_path:
            return web.Response(text=core.metrics.text(), content_type="text/plain")
        if not path.lower().startswith("/v1/"):
            return web.Response(status=404)
        started = time.monotonic()
        status = Code.OK
        pattern = {"POST": _PREDICT, "GET": _STATUS}.get(request.method)
        match = pattern.fullmatch(path) if pattern else None
        name = (_decoded(match["name"]) if match else None) or ""
        try:
            if match is None:
                raise invalid(f"Malformed request: {request.method} {path}")
            spec = _spec(name, match)
            if request.method == "GET":
                body = _described(core, spec, match["part"])
            else:
                method = match["method"].lower()
                body = await _computed(core, spec, method, await request.read(), timeout_seconds)
        except ServingError as error:
            status, body = error.code, json.dumps({"error": error.message})
        except Exception as error:  # the server must live on
            status, body = Code.INTERNAL, json.dumps({"error": f"{type(error).__name__}: {error}"})
        if request.method == "POST":
            core.metrics.request(name, status.name, "REST", time.monotonic() - started)
        return web.Response(status=status.http, body=body.encode(), content_type="application/json")

    app = web.Application(client_max_size=2**31 - 1)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


def _spec(name: str, match: re.Match[str]) -> Spec:
    number = int(match["version"]) if match["version"] else None
    if number is not None and number >= 2**63:
        raise invalid(f"Failed to convert version: {match['version']} to numeric.")
    return Spec(name, number, _decoded(match["label"]))


def _described(core: Core, spec: Spec, part: str | None) -> str:
    if not spec.name:
        raise invalid("Missing model name in request.")
    return _metadata(core, spec) if part else _status(core, spec)


async def _computed(core: Core, spec: Spec, method: str, body: bytes, timeout: float | None) -> str:
    if method != "predict":
        raise ServingError(Code.UNIMPLEMENTED, f"{method} is not implemented by this stand-in")
    try:
        return await asyncio.wait_for(_predict(core, spec, body), timeout)
    except TimeoutError as error:
        raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification") from error


async def _predict(core: Core, spec: Spec, body: bytes) -> str:
    document = json_tensor.parse(body)
    spec = Spec(spec.name, spec.version, spec.label, json_tensor.signature_name(document))
    version = core.find(spec)
    types = core.saved_model(version).input_types(spec.signature)
    arrays, rows = json_tensor.inputs(document, types)
    return json_tensor.outputs(await core.predict(version, spec, arrays), rows)


def _status(core: Core, spec: Spec) -> str:
    response = status_proto(core.statuses(spec), get_model_status_pb2)
    return _json(response) + "\n"


def _metadata(core: Core, spec: Spec) -> str:
    response, signatures = metadata_proto(core, spec)
    return (
        f'{{\n"model_spec":{_json(response.model_spec)},\n'
        f'"metadata": {{"signature_def": {_json(signatures)}}}\n}}\n'
    )


def _json(message: object) -> str:
    text: str = json_format.MessageToJson(
        message,
        indent=1,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return text


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote_to_bytes(text).decode(errors="replace")
