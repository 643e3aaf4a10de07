from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from groundcrew import golden
from groundcrew.errors import GroundcrewError
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = golden.Golden(
    cases=[
        {"request": {"instances": [[1]]}, "response": {"predictions": [[0.25, 0.75]]}},
        {"request": {"instances": [[2]]}, "response": {"predictions": [[1.0, 0.0]]}},
    ],
    tolerance=1e-6,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_anything_equals_itself(value):
    assert golden.compare(value, value, 0) == []


@given(VALUES, VALUES)
def test_comparison_without_tolerance_agrees_with_json(left, right):
    if golden.compare(left, right, 0) == [] and not _has_object(right):
        assert left == right


def _has_object(value: Any) -> bool:
    # A response may have more keys than expected.
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_has_object, value)))


@pytest.mark.parametrize(
    ("found", "expected", "differs"),
    [
        ([0.5], [0.5 + 1e-7], False),
        ([0.5], [0.5 + 1e-5], True),
        ([float("nan")], [0.5], True),
        ([True], [1], True),
        ([0.5, 0.5], [0.5], True),
        ({"a": 1, "more": 2}, {"a": 1}, False),
        ({"b": 1}, {"a": 1}, True),
        ("x", ["x"], True),
        (None, {"a": 1}, True),
    ],
)
def test_compare(found, expected, differs):
    assert bool(golden.compare(found, expected, 1e-6)) is differs


def test_difference_says_where():
    faults = golden.compare({"predictions": [[1, 2]]}, {"predictions": [[1, 3]]}, 1e-6)
    assert faults == ["response.predictions[0][1] is 2, expected 3 (tolerance 1e-06)"]


@given(st.text() | st.binary() | VALUES.map(json.dumps))
def test_any_text_is_golden_or_a_readable_error(data):
    message = "source"
    try:
        golden.parse(data, "source")
    except GroundcrewError as error:
        message = str(error)
    assert "source" in message


@pytest.fixture
def server() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = self.server.answer(body, self.headers)  # type: ignore[attr-defined]
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_arguments: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1/models/digits:predict"


def right(body: Any, _headers: Any) -> tuple[int, Any]:
    return 200, next(c["response"] for c in GOLDEN.cases if c["request"] == body)


def test_right_answers(server):
    server.answer = right
    result = golden.check(url(server), GOLDEN)
    assert result.ok
    assert (result.cases, result.passed) == (2, 2)
    assert result.detail.startswith("2 of 2 golden cases right")


def test_wrong_answer_is_told(server):
    server.answer = lambda body, headers: (200, {"predictions": [[0.25, 0.75]]})
    result = golden.check(url(server), GOLDEN)
    assert not result.ok
    assert result.passed == 1
    assert "case 1: response.predictions[0][0] is 0.25, expected 1.0" in result.detail


def test_headers_are_sent_and_a_refusal_is_told(server):
    def keyed(body: Any, headers: Any) -> tuple[int, Any]:
        return right(body, headers) if headers["X-Api-Key"] == "k" else (401, {"error": "no key"})

    server.answer = keyed
    assert golden.check(url(server), GOLDEN, headers={"X-Api-Key": "k"}).ok
    result = golden.check(url(server), GOLDEN)
    assert "answered 401" in result.detail
    assert "no key" in result.detail


def test_answer_that_is_not_json_is_told(server):
    server.answer = lambda body, headers: (200, b"<html>")
    assert "other than JSON" in golden.check(url(server), GOLDEN).detail


def test_refused_connection_is_a_difference_not_an_exception(server):
    address = url(server)
    server.server_close()
    result = golden.check(address, GOLDEN, timeout=1)
    assert not result.ok
    assert "did not answer" in result.detail


def test_key_is_never_carried_to_another_address(server):
    asked = []

    def redirect(body: Any, headers: Any) -> tuple[int, Any]:
        asked.append(headers["X-Api-Key"])
        return 302, b""

    server.answer = redirect
    result = golden.check(url(server), GOLDEN, headers={"X-Api-Key": "k"})
    assert "answered 302" in result.detail
    assert asked == ["k"]
