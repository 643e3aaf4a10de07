"""Requests and the arrays that models take.

The request format is TensorFlow Serving's REST API, row format
(https://www.tensorflow.org/tfx/serving/api_rest#predict_api): ``{"instances": [<instance>, …]}``,
an instance being a nested list of numbers of the shape that the model's signature tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NoReturn

import numpy as np
from groundcrew.errors import GroundcrewError

_NUMBERS = frozenset({int, float})
_FEW = 512
_KINDS = {
    str: "text",
    bool: "a truth value",
    type(None): "null",
    list: "a list",
    dict: "an object",
}


class BadRequest(Exception):
    """What is wrong with a request, in words for the client."""


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    ``shape`` is that of one instance, ``minimum`` and ``maximum`` the range of each number (None:
    any finite number). ``outputs`` is the shape of one prediction; ``labels`` names its entries
    when they are probabilities of classes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    minimum: float | None
    maximum: float | None
    outputs: tuple[int, ...]
    labels: tuple[str, ...] | None

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number that may be given, both finite."""
        largest = float(np.finfo(self.dtype).max)
        low = -largest if self.minimum is None else self.minimum
        return low, largest if self.maximum is None else self.maximum

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Signature:
        """Raises GroundcrewError when the manifest's signature is not of this form."""
        try:
            inputs, outputs = manifest["signature"]["inputs"], manifest["signature"]["outputs"]
            labels = outputs.get("labels")
            signature = cls(
                shape=tuple(int(length) for length in inputs["shape"]),
                dtype=np.dtype(str(inputs["dtype"])),
                minimum=_bound(inputs.get("minimum")),
                maximum=_bound(inputs.get("maximum")),
                outputs=tuple(int(length) for length in outputs["shape"]),
                labels=None if labels is None else tuple(str(label) for label in labels),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GroundcrewError(
                f"the manifest's signature is malformed ({type(error).__name__}: {error}); publish "
                "the model with inputs {shape, dtype} and outputs {shape}"
            ) from error
        if not signature.shape or min(signature.shape) < 1 or signature.dtype.kind != "f":
            raise GroundcrewError(
                f"the manifest's signature has shape {list(signature.shape)} and dtype "
                f"{signature.dtype}; inputs must have at least one dimension and a float dtype"
            )
        return signature


def _bound(value: Any) -> float | None:
    return None if value is None else float(value)


def instances_of(document: Any) -> list[Any]:
    """The instances of a decoded request. Raises BadRequest when there are none."""
    if not isinstance(document, dict):
        raise BadRequest(f'the body is {_kind(document)}; it must be an object with "instances"')
    if "instances" not in document:
        raise BadRequest('the body has no "instances"')
    instances = document["instances"]
    if not isinstance(instances, list):
        raise BadRequest(f'"instances" is {_kind(instances)}; it must be a list')
    if not instances:
        raise BadRequest('"instances" is empty')
    return instances


def to_array(instances: list[Any], signature: Signature) -> np.ndarray[Any, Any]:
    """Instances, at least one, as an array (n, *shape), finite and in range.

    Raises BadRequest that names the instance and the position of the first fault.
    """
    flat: list[Any] = instances
    for depth, length in enumerate(signature.shape):
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {length}:
            _find_fault(instances, signature, depth)
        flat = list(chain.from_iterable(flat))
    # One look at the types for all numbers: bool is an int and numpy would take "1" for 1.
    if not set(map(type, flat)) <= _NUMBERS:
        _find_fault(instances, signature)
    low, high = signature.range
    if len(flat) < _FEW:
        # Calling into NumPy costs more than it saves on one row.
        if not (min(flat) >= low and max(flat) <= high):
            _find_fault(instances, signature)
        array = np.array(flat, dtype=signature.dtype)
    else:
        try:
            with np.errstate(over="ignore"):
                array = np.array(flat, dtype=signature.dtype)
        except OverflowError:
            _find_fault(instances, signature)
        # NaN and infinity are out of every range: a comparison with NaN is false.
        if not (array.min() >= low and array.max() <= high):
            _find_fault(instances, signature)
    return array.reshape(len(instances), *signature.shape)


def _find_fault(instances: list[Any], signature: Signature, depth: int | None = None) -> NoReturn:
    """Raise for the first fault, in reading order; slow, so only called when there is one."""
    for number, instance in enumerate(instances):
        _check(instance, signature, 0, f"instances[{number}]", depth)
    raise AssertionError("no fault found")


def _check(value: Any, signature: Signature, level: int, where: str, depth: int | None) -> None:
    if level < len(signature.shape) and (depth is None or level <= depth):
        length = signature.shape[level]
        if not isinstance(value, list):
            raise BadRequest(f"{where} is {_kind(value)}; it must be a list of {length} values")
        if len(value) != length:
            raise BadRequest(f"{where} has {len(value)} values; it must have {length}")
        for position, inner in enumerate(value):
            _check(inner, signature, level + 1, f"{where}[{position}]", depth)
    elif depth is None:
        check_number(value, signature, where)


def check_number(value: Any, signature: Signature, where: str) -> None:
    """Raise BadRequest, which names ``where``, unless a model may be given this number."""
    if type(value) not in _NUMBERS:
        raise BadRequest(f"{where} is {_kind(value)}; it must be a number")
    try:
        with np.errstate(over="ignore"):
            number = float(np.array(value, dtype=signature.dtype))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRequest(f"{where} is too large a number")
    low, high = signature.minimum, signature.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        raise BadRequest(f"{where} is {number:g}; it must be {_range(low, high)}")


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
