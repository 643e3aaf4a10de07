"""Reading a request and writing its answer, which every handler in an archive does alike.

Multi Model Server calls ``handle(data, context)`` in a worker: once with ``data=None`` to load the
model, then with a list of requests. ``{"instances": [[…], …]}`` is answered with
``{"predictions": [[…], …]}``, a bad request with status 400 and ``{"error": …}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np


class BadRequest(Exception):
    """What is wrong with a request."""


def read(body: Any, width: int) -> np.ndarray:
    """The instances of a request, float32 (n, width). Raises BadRequest.

    body: bytes, or what the server parsed where its decode_input_request is on.
    """
    if isinstance(body, (bytes, bytearray, str)):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict) or "instances" not in body:
        raise BadRequest('the body must be {"instances": [[...], ...]}')
    try:
        instances = np.array(body["instances"])
    except ValueError as error:
        raise BadRequest(f"instances must be lists of {width} numbers each") from error
    if instances.ndim != 2 or instances.shape[1] != width or instances.dtype.kind not in "iuf":
        raise BadRequest(
            f"instances must be lists of {width} numbers each; these have the shape "
            f"{list(instances.shape)} and the type {instances.dtype}"
        )
    with np.errstate(over="ignore"):
        instances = instances.astype(np.float32)
    if not np.isfinite(instances).all():
        raise BadRequest("instances must be finite numbers that float32 can hold")
    return instances


def answer(
    data: list[dict[str, Any]],
    context: Any,
    width: int,
    predict: Callable[[np.ndarray], np.ndarray],
) -> list[bytes]:
    """The answers to a list of requests, in their order."""
    answers = []
    for number, request in enumerate(data):
        try:
            reply = {"predictions": predict(read(request.get("body"), width)).tolist()}
        except BadRequest as error:
            # The server's own PredictionException would write a traceback for each of them.
            context.set_response_status(400, "Bad Request", number)
            reply = {"error": str(error)}
        context.set_response_content_type(number, "application/json")
        answers.append(json.dumps(reply).encode())
    return answers
