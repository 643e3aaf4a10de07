"""JSON bodies of the REST interface to arrays and back (util/json_tensor.cc), needing NumPy only."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving_stand_in.errors import Code, ServingError, invalid

_DEBUG_CHARACTERS = 256
_DECODER = json.JSONDecoder()
# JSON numbers of any kind, and those that must be whole.
_FLOATS = frozenset({"float", "double"})
_INTEGERS = {
    "int32": 32,
    "int16": 32,
    "int8": 32,
    "uint8": 32,
    "int64": 64,
    "uint32": -32,
    "uint64": -64,
}
_NUMPY = {"float": np.float32, "double": np.float64, "string": np.object_, "bool": np.bool_}


def parse(body: bytes) -> dict[str, Any]:
    """The object in a request's body. NaN and Infinity are numbers, as for the official server."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode()
        start = len(text) - len(text.lstrip())
        # What follows the value is not looked at.
        document, _end = _DECODER.raw_decode(text, start)
    except (UnicodeDecodeError, RecursionError) as error:
        raise invalid("JSON Parse error: Invalid encoding in string. at offset: 0") from error
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid value. at offset: {error.pos}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_debug(document)} Is not object")
    return document


def signature_name(document: dict[str, Any]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_debug(document)} not formatted correctly. 'signature_name' key must be "
            "a string value."
        )
    return name


def inputs(
    document: dict[str, Any], types: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of a predict request by input name, and whether it is in the row format.

    ``types`` maps each input of the signature to the name of its type, such as float.
    """
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {_debug(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(
                f"JSON Value: {_debug(document)} Expecting 'instances' to be an list/array"
            )
        if not instances:
            raise invalid(f"JSON Value: {_debug(document)} No values in 'instances' array")
        return _from_rows(instances, types), True
    if "inputs" in document:
        return _from_columns(document["inputs"], types), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_rows(instances: list[Any], types: Mapping[str, str]) -> dict[str, np.ndarray]:
    named = _is_named(instances[0])
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    rows: dict[str, _Rows] = {}
    only = next(iter(types))
    for number, element in enumerate(instances):
        if named != _is_named(element):
            raise invalid(
                f"Expecting object but got list at item {number} of input list"
                if named
                else f"Expecting value/list but got object at item {number} of input list"
            )
        for name, value in element.items() if named else [(only, element)]:
            try:
                if name not in types:
                    raise invalid(f"JSON object: does not have named input: {name}")
                rows.setdefault(name, _Rows(types[name])).add(value)
            except ServingError as error:
                key = f" key: {name}" if named else ""
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: {error}"
                ) from error
        if named and set(element) != set(types):
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{_debug(element)} keys must be equal to: {','.join(sorted(types))}"
            )
    return {name: one.array() for name, one in rows.items()}


class _Rows:
    """Values of one input, each of the same shape."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.shape: list[int] | None = None
        self.size = 0
        self.count = 0
        self.values: list[Any] = []

    def add(self, value: Any) -> None:
        shape = _shape(value)
        before = len(self.values)
        _fill(value, 0, shape, self.kind, self.values)
        size = len(self.values) - before
        self.count += 1
        if self.shape is None:
            self.shape, self.size = shape, size
        elif size != self.size:
            raise invalid(f"Expecting tensor size: {self.size} but got: {size}")
        elif shape != self.shape:
            raise invalid(f"Expecting shape {_text(self.shape)} but got: {_text(shape)}")

    def array(self) -> np.ndarray:
        return _array(self.values, self.kind, [self.count, *(self.shape or [])])


def _from_columns(value: Any, types: Mapping[str, str]) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = {next(iter(types)): value}
    arrays = {}
    for name, kind in types.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        shape = _shape(value[name])
        values: list[Any] = []
        _fill(value[name], 0, shape, kind, values)
        arrays[name] = _array(values, kind, shape)
    return arrays


def _shape(value: Any) -> list[int]:
    """Read off the first element of each level, as the official server does."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _fill(value: Any, level: int, shape: list[int], kind: str, values: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_debug(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        values.append(_scalar(value, kind))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    if level == len(shape) - 1 and kind in _FLOATS and {*map(type, value)} <= {int, float}:
        values.extend(value)
        return
    for element in value:
        _fill(element, level + 1, shape, kind, values)


def _scalar(value: Any, kind: str) -> Any:
    if kind in _FLOATS:
        right = type(value) in (int, float)
    elif kind in _INTEGERS:
        bits = _INTEGERS[kind]
        low, high = (0, 2**-bits) if bits < 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        right = type(value) is int and low <= value < high
    elif kind == "string":
        if isinstance(value, dict):
            return _base64(value)
        right = isinstance(value, str)
        value = value.encode() if right else value
    elif kind == "bool":
        right = isinstance(value, bool)
    else:
        raise ServingError(
            Code.UNIMPLEMENTED, f"Conversion of JSON Value: {_debug(value)} to type: {kind}"
        )
    if not right:
        raise invalid(
            f"JSON Value: {_debug(value)} Type: {_type(value)} is not of expected type: {kind}"
        )
    return value


def _base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_debug(value)} not formatted correctly for base64 data")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except binascii.Error as error:
        raise invalid("Unable to base64 decode") from error


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _array(values: list[Any], kind: str, shape: list[int]) -> np.ndarray:
    try:
        return np.array(values, dtype=_NUMPY.get(kind, kind)).reshape(shape)
    except OverflowError as error:
        raise invalid("JSON Parse error: Number too big to be stored in double.") from error


def outputs(arrays: Mapping[str, np.ndarray], rows: bool) -> str:
    """The answer's body: {"predictions": […]} for rows, {"outputs": …} for columns."""
    if not rows:
        columns = {name: _plain(array, name) for name, array in sorted(arrays.items())}
        content = columns if len(columns) > 1 else next(iter(columns.values()))
        return _dump({"outputs": content})
    sizes = set()
    for name, array in arrays.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        sizes.add(len(array))
        if len(sizes) > 1:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)}")
    columns = {name: _plain(array, name) for name, array in sorted(arrays.items())}
    if len(columns) == 1:
        return _dump({"predictions": next(iter(columns.values()))})
    lines = zip(*columns.values(), strict=True)
    return _dump({"predictions": [dict(zip(columns, line, strict=True)) for line in lines]})


def _plain(array: np.ndarray, name: str) -> Any:
    if array.dtype == np.float32:
        # The shortest decimal of the float32, not the digits that its double has.
        flat = [float(str(value)) for value in array.ravel()]
        return _nested(flat, array.shape)
    if array.dtype == np.object_:
        flat = [_string(value, name.endswith("_bytes")) for value in array.ravel()]
        return _nested(flat, array.shape)
    return array.tolist()


def _string(value: bytes, as_bytes: bool) -> Any:
    if as_bytes:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode(errors="replace")


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)] if size else []
    return flat


def _dump(document: Any) -> str:
    return json.dumps(document)


def _text(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _debug(value: Any) -> str:
    return json.dumps(value, default=str)[:_DEBUG_CHARACTERS]


def _type(value: Any) -> str:
    names: dict[type, str] = {
        bool: "True" if value is True else "False",
        dict: "Object",
        list: "Array",
        str: "String",
        bytes: "String",
        int: "Number",
        float: "Number",
    }
    return names.get(type(value), "Null")
