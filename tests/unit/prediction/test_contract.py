from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from groundcrew.errors import GroundcrewError
from groundcrew_prediction.contract import BadRequest, Signature, to_array
from groundcrew_prediction.request import instances as parsed
from hypothesis import given
from hypothesis import strategies as st


def signature(*shape: int, dtype: str = "float64", **bounds: Any) -> Signature:
    inputs = {"shape": list(shape), "dtype": dtype, **bounds}
    return Signature.from_manifest({"signature": {"inputs": inputs, "outputs": {"shape": [1]}}})


def read_instances(data: bytes, taken: Signature) -> np.ndarray[Any, Any]:
    return to_array(parsed(data, 1000), taken)


THREE = signature(3, minimum=0, maximum=16)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


def body(instances: Any) -> bytes:
    return json.dumps({"instances": instances}).encode()


@given(st.lists(st.lists(st.floats(0, 16), min_size=3, max_size=3), min_size=1, max_size=5))
def test_valid_instances_come_back_as_they_are(instances):
    array = read_instances(body(instances), THREE)
    assert array.shape == (len(instances), 3)
    assert array.tolist() == instances


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_nested_shapes_keep_their_order(count, rows, columns, data):
    numbers = st.lists(
        st.floats(-1e6, 1e6), min_size=count * rows * columns, max_size=count * rows * columns
    )
    array = np.array(data.draw(numbers)).reshape(count, rows, columns)
    assert np.array_equal(read_instances(body(array.tolist()), signature(rows, columns)), array)


@given(ANYTHING | st.lists(st.lists(ANYTHING, min_size=3, max_size=3), min_size=1, max_size=3))
@pytest.mark.parametrize(
    "taken", [THREE, signature(1), signature(2, 2), signature(3, dtype="float32")]
)
def test_anything_else_is_a_bad_request_never_another_exception(taken, instances):
    try:
        array = read_instances(body(instances), taken)
    except BadRequest as error:
        json.dumps(str(error)).encode("utf-8")
    else:
        assert np.isfinite(array).all()
        assert array.shape[1:] == taken.shape
        assert _only_numbers(instances)


def _only_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_only_numbers, value))
    return type(value) in (int, float) and math.isfinite(value)


@given(st.binary() | st.text().map(str.encode) | ANYTHING.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_a_bad_request(data):
    with pytest.raises(BadRequest):
        read_instances(data, THREE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is empty"),
        (b"hello", "the body is not JSON"),
        (b'{"instances": [[1, 2, 3]]', "the body is not JSON"),
        (b"[1]", "the body is a list"),
        (b"{}", 'the body has no "instances"'),
        (b'{"instances": {}}', '"instances" is an object; it must be a list'),
        (b'{"instances": []}', '"instances" is empty'),
        (b'{"instances": [[1, 2, NaN]]}', "the body holds NaN"),
        (b'{"instances": [[1, 2, -Infinity]]}', "the body holds -Infinity"),
        (b'{"instances": [[1, 2, 1e999]]}', "instances[0][2] is too large a number"),
        (b'{"instances": [[1, 2, 1' + b"0" * 400 + b"]]}", "instances[0][2] is too large"),
        (b'{"instances": [[1, 2, 1' + b"0" * 5000 + b"]]}", "the body is not JSON"),
        (b'{"instances": [[1, 2, 3], [1, 2]]}', "instances[1] has 2 values; it must have 3"),
        (b'{"instances": [[1, 2, 3], 7]}', "instances[1] is a number; it must be a list of 3"),
        (b'{"instances": [[1, 2, "3"]]}', "instances[0][2] is text; it must be a number"),
        (b'{"instances": [[1, 2, null]]}', "instances[0][2] is null"),
        (b'{"instances": [[1, true, 3]]}', "instances[0][1] is a truth value"),
        (b'{"instances": [[1, [2], 3]]}', "instances[0][1] is a list; it must be a number"),
        (b'{"instances": [[1, 2, 3], [1, 17, 3]]}', "instances[1][1] is 17; it must be from 0 to"),
        (b'{"instances": [[1, 2, -0.5]]}', "instances[0][2] is -0.5; it must be from 0 to 16"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"instances": ' + b"[" * 500 + b"]" * 500 + b"}", "instances[0] has 1 values"),
    ],
)
def test_message_says_where_and_what(data, message):
    with pytest.raises(BadRequest) as caught:
        read_instances(data, THREE)
    assert message in str(caught.value)


def test_float32_overflow_is_found():
    with pytest.raises(BadRequest, match="too large"):
        read_instances(body([[1e39]]), signature(1, dtype="float32"))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"shape": [], "dtype": "float64"},
        {"shape": [0], "dtype": "float64"},
        {"shape": [3], "dtype": "object"},
        {"shape": [3], "dtype": "nonsense"},
        {"shape": "x", "dtype": "float64"},
        {"shape": [3], "dtype": "float64", "minimum": "a"},
    ],
)
def test_malformed_signature_is_refused(inputs):
    with pytest.raises(GroundcrewError, match="signature"):
        Signature.from_manifest({"signature": {"inputs": inputs, "outputs": {"shape": [1]}}})
