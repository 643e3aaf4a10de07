from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_stand_in import json_tensor
from serving_stand_in.errors import Code, ServingError

ONE = {"instances": "float"}


def read(document: Any, types: dict[str, str] = ONE) -> tuple[dict[str, np.ndarray], bool]:
    return json_tensor.inputs(json_tensor.parse(json.dumps(document).encode()), types)


def test_rows_become_one_array_of_the_inputs_type():
    arrays, rows = read({"instances": [[1, 2.5], [3, 4]]})
    assert rows
    assert arrays["instances"].dtype == np.float32
    assert arrays["instances"].tolist() == [[1, 2.5], [3, 4]]


def test_columns_become_the_array_as_it_is():
    arrays, rows = read({"inputs": [[1, 2]]})
    assert not rows
    assert arrays["instances"].tolist() == [[1, 2]]


def test_named_inputs_of_several_types():
    types = {"a": "int64", "b": "string"}
    arrays, _rows = read({"instances": [{"a": 1, "b": "x"}, {"a": 2, "b": {"b64": "eQ=="}}]}, types)
    assert arrays["a"].tolist() == [1, 2]
    assert arrays["b"].tolist() == [b"x", b"y"]


def test_nan_and_infinity_are_numbers():
    # The official server parses with kParseNanAndInfFlag; the front must refuse them.
    arrays, _rows = json_tensor.inputs(json_tensor.parse(b'{"instances": [NaN, -Infinity]}'), ONE)
    assert np.isnan(arrays["instances"][0]) and arrays["instances"][1] == -math.inf


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], "Is not object"),
        ({"x": 1}, "Missing 'inputs' or 'instances' key"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": 3}, "Expecting 'instances' to be an list/array"),
        ({"instances": [1], "inputs": [1]}, "expecting only one of 'inputs' or 'instances'"),
        ({"instances": [[1, 2], [1]]}, "element: 1 .* Expecting tensor size: 2 but got: 1"),
        ({"instances": [[[1], [2]], [[1, 2]]]}, r"Expecting shape \[2,1\] but got: \[1,2\]"),
        ({"instances": [["1"]]}, "Type: String is not of expected type: float"),
        ({"instances": [[True]]}, "Type: True is not of expected type: float"),
        ({"instances": [[None]]}, "Type: Null is not of expected type: float"),
        ({"instances": [[1, [2]]]}, "Encountered list at unexpected level: 1"),
        ({"instances": [[[1], 2]]}, "found at incorrect level: 2"),
        ({"instances": [[[1], [2, 3]]]}, "list at unexpected size: 2 at level: 1 expected size: 1"),
        ({"instances": [{"x": 1}]}, "does not have named input: x"),
        ({"instances": [{"instances": 1}, 2]}, "Expecting object but got list at item 1"),
        ({"instances": [1, {"instances": 2}]}, "Expecting value/list but got object at item 1"),
        ({"instances": [[10**400]]}, "Number too big"),
    ],
)
def test_bad_input_is_refused_in_the_official_words(document, message):
    with pytest.raises(ServingError, match=message) as raised:
        read(document)
    assert raised.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"[" * 100_000, b'{"instances": [1,'])
def test_what_is_not_json_is_refused(body):
    with pytest.raises(ServingError, match="JSON Parse error"):
        json_tensor.parse(body)


@pytest.mark.parametrize(
    ("kind", "value", "right"),
    [("int32", 2**31, False), ("int32", 1.0, False), ("uint32", 2**31, True), ("bool", 1, False)],
)
def test_whole_numbers_must_fit_their_type(kind, value, right):
    if right:
        assert read({"instances": [value]}, {"x": kind})[0]["x"].tolist() == [value]
    else:
        with pytest.raises(ServingError, match=f"is not of expected type: {kind}"):
            read({"instances": [value]}, {"x": kind})


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_float32_survives_the_way_there_and_back(values):
    array = np.array(values, dtype=np.float32)
    answer = json.loads(json_tensor.outputs({"y": array}, rows=True))
    np.testing.assert_array_equal(np.array(answer["predictions"], dtype=np.float32), array)


def test_shortest_decimals_are_written():
    assert json_tensor.outputs({"y": np.array([[0.2]], np.float32)}, rows=True) == (
        '{"predictions": [[0.2]]}'
    )


def test_several_outputs_are_objects_a_row():
    arrays = {"a": np.array([1, 2]), "b": np.array([[0.5], [1.5]])}
    assert json.loads(json_tensor.outputs(arrays, rows=True)) == {
        "predictions": [{"a": 1, "b": [0.5]}, {"a": 2, "b": [1.5]}]
    }
    assert json.loads(json_tensor.outputs(arrays, rows=False)) == {
        "outputs": {"a": [1, 2], "b": [[0.5], [1.5]]}
    }
    with pytest.raises(ServingError, match="inconsistent batch size"):
        json_tensor.outputs({"a": np.zeros(2), "b": np.zeros(3)}, rows=True)
