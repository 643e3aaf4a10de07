"""Reading a request and writing its answer, which every handler in an archive does alike.

Multi Model Server calls ``handle(data, context)`` in a worker: once with ``data=None`` to load the
model, then with a list of requests. ``{"instances": [[…], …]}`` is answered with
``{"predictions": [[…], …]}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np


def refuse(message: str) -> NoReturn:
    """Answer 400 with the message; the worker lives on."""
    from mms.service import PredictionException  # the server's own, so only in a worker

    raise PredictionException(message, 400)


def read(body: Any, width: int) -> np.ndarray:
    """The instances of a request, float32 (n, width). Refuses anything else.

    body: bytes, or what the server parsed where its decode_input_request is on.
    """
    if isinstance(body, (bytes, bytearray, str)):
        try:
            body = json.loads(body)
        except ValueError as error:  # UnicodeDecodeError is one
            refuse(f"the body is not JSON: {error}")
    if not isinstance(body, dict) or "instances" not in body:
        refuse('the body must be {"instances": [[…], …]}')
    try:
        with np.errstate(over="ignore"):
            instances = np.array(body["instances"], dtype=np.float32)
    except (TypeError, ValueError):
        refuse(f"instances must be lists of {width} numbers each")
    if instances.ndim != 2 or instances.shape[1] != width or not len(instances):
        refuse(f"instances have the shape {list(instances.shape)}; it must be [n, {width}]")
    if not np.isfinite(instances).all():
        refuse("instances must be finite numbers that float32 can hold")
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
        predictions = predict(read(request.get("body"), width)).tolist()
        context.set_response_content_type(number, "application/json")
        answers.append(json.dumps({"predictions": predictions}).encode())
    return answers
