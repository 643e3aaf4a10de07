"""Feature work that belongs to a model version: ``transform.py`` in its artifact.

The file may define ``preprocess(instances)`` and ``postprocess(predictions)``; each takes an array
(n, …) and returns one with as many rows. What preprocess raises as ValueError is an answer to the
client; anything else is a failure of the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from groundcrew.errors import GroundcrewError

from .contract import BadRequest

FILE = "transform.py"

Array = np.ndarray[Any, Any]


def _same(array: Array) -> Array:
    return array


@dataclass(frozen=True)
class Transform:
    """What a model version does before and after its model; nothing by default."""

    before: Callable[[Array], Array] = _same
    after: Callable[[Array], Array] = _same

    def preprocess(self, instances: Array) -> Array:
        """Raises BadRequest with the words of a ValueError."""
        try:
            return _rows(self.before(instances), instances, "preprocess")
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def postprocess(self, predictions: Array) -> Array:
        return _rows(self.after(predictions), predictions, "postprocess")


def load(path: Path, code: bytes | None) -> Transform:
    """From the verified bytes of the file, None when the version has none.

    Raises GroundcrewError when it cannot be run, or defines neither function.
    """
    if code is None:
        return Transform()
    names: dict[str, Any] = {"__name__": "transform", "__file__": str(path)}
    try:
        # A model version's own code, as a pickle is; its sha256 was right.
        exec(compile(code, str(path), "exec"), names)  # noqa: S102
    except Exception as error:
        raise GroundcrewError(
            f"{path} cannot be run ({type(error).__name__}: {error}); it may import numpy and the "
            f"standard library"
        ) from error
    found = {
        name: names[name] for name in ("preprocess", "postprocess") if callable(names.get(name))
    }
    if not found:
        raise GroundcrewError(f"{path} defines neither preprocess nor postprocess")
    return Transform(found.get("preprocess", _same), found.get("postprocess", _same))


def _rows(result: Any, given: Array, what: str) -> Array:
    array = np.asarray(result)
    if array.ndim == 0 or len(array) != len(given):
        raise TypeError(f"{what} made {array.shape} of {len(given)} rows")
    return array
