"""What a new version is judged by."""

from __future__ import annotations

import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from groundcrew import canary, golden
from groundcrew.canary import Limits, Seen, judge, pair, seen, together, weights
from groundcrew.errors import GroundcrewError

GOOD = {"golden_ok": True, "golden": "10 of 10 golden cases right", "alike": 10, "cases": 10}


def line(variant: str = "2", status: int = 200, ms: int = 3, **more: Any) -> str:
    entry = {"model": "digits", "variant": variant, "status": status, "Ta": ms, "end": "--"}
    return json.dumps({**entry, "path": "/v1/models/digits:predict", **more})


def test_what_clients_saw_is_counted_by_version() -> None:
    lines = [
        *[line("1", ms=n) for n in range(1, 101)],
        line(status=503, ms=9),
        line(status=-1, end="sH"),
        line(status=-1, end="CD"),
        line(status=429),
        line(path="/v1/models/digits/versions/2:predict"),
        line(model="other"),
        line(variant=""),
        "Proxy public started.",
        "{broken",
        line(ms=7),
    ]
    found = seen(lines, "digits")
    assert set(found) == {"1", "2"}
    assert (found["1"].requests, found["1"].errors, found["1"].p95_ms()) == (100, 0, 95.0)
    # A refusal of the client's own and one that went away count for nobody.
    assert (found["2"].requests, found["2"].errors, found["2"].p95_ms()) == (3, 2, 7.0)


def test_what_several_gateways_saw_is_added() -> None:
    window = canary.as_data(seen([line(), line(status=500), line("1", ms=8)], "digits"))
    # As it comes back from hosts.
    window = json.loads(json.dumps(window))
    found = together([window, window])
    assert (found["2"].requests, found["2"].errors) == (4, 2)
    assert found["1"].times == Counter({8: 2})


def version(requests: int = 1000, errors: int = 0, ms: int = 4) -> Seen:
    return Seen(requests, errors, Counter({ms: requests - errors}))


@pytest.mark.parametrize(
    ("new", "said", "why"),
    [
        (version(), GOOD, ""),
        (version(ms=11), GOOD, ""),
        (version(ms=12), GOOD, "p95 is 12 ms, of version 1 4 ms; at most 11 ms"),
        (version(errors=5), GOOD, ""),
        (version(errors=6), GOOD, "6 of its 1000 requests failed"),
        (version(99), GOOD, "too few to judge"),
        (Seen(), GOOD, "answered 0 requests"),
        (version(), {**GOOD, "golden_ok": False, "golden": "no answer"}, "wrong: no answer"),
        (version(), {**GOOD, "alike": 8}, "labels 8 of 10 golden cases of version 1 alike"),
    ],
)
def test_a_version_goes_on_or_the_reason_is_said(new: Seen, said: dict[str, Any], why: str) -> None:
    reasons = judge("1", "2", {"1": version(), "2": new}, said, Limits(), 5)
    assert (why in "; ".join(reasons)) if why else reasons == []


def test_errors_that_both_have_are_not_the_new_ones() -> None:
    both = {"1": version(errors=50), "2": version(errors=52)}
    assert judge("1", "2", both, GOOD, Limits(), 50) == []


def test_alone_it_is_judged_by_itself() -> None:
    assert judge("1", "2", {"2": version(ms=400)}, GOOD, Limits(), 100) == []
    assert judge("1", "2", {"2": version(errors=100)}, GOOD, Limits(), 100) != []


def test_a_share_comes_from_the_version_that_serves() -> None:
    variants = [
        {"version": "1", "weight": 70, "servers": []},
        {"version": "2", "weight": 10, "servers": []},
        {"version": "3", "weight": 20, "servers": []},
    ]
    models = [{"name": "digits", "variants": variants}, {"name": "other", "variants": variants}]

    def share(percent: int) -> list[int]:
        changed = weights(models, "digits", "3", percent)
        assert changed[1]["variants"] == variants
        return [variant["weight"] for variant in changed[0]["variants"]]

    assert [share(0), share(5), share(90), share(100)] == [
        [90, 10, 0],
        [85, 10, 5],
        [0, 10, 90],
        [0, 10, 90],
    ]
    assert variants[0]["weight"] == 70


def test_a_version_that_is_not_served_is_refused_with_the_edit() -> None:
    with pytest.raises(GroundcrewError, match=r"version 4 of digits.*weight: 0.*then deploy"):
        pair([{"version": "3", "weight": 100}], "digits", "4")
    with pytest.raises(GroundcrewError, match="not served beside another"):
        pair([{"version": "3", "weight": 100}], "digits", "3")
    assert pair([{"version": "3", "weight": 0}, {"version": "4", "weight": 100}], "m", "4") == (
        "3",
        "4",
    )


@pytest.fixture
def server() -> Iterator[str]:
    """Answers label 1 for whatever it is asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"predictions": [[0.2, 0.8]]}')

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/"
        listening.shutdown()


def cases(*predictions: Any) -> golden.Golden:
    found = [
        {"request": {"instances": [[0]]}, "response": {"predictions": [prediction]}}
        for prediction in predictions
    ]
    return golden.Golden(found, 1e-6)


def test_answers_are_compared_by_label_and_its_own_exactly(server: str) -> None:
    said = canary.answers(server, cases([0.2, 0.8]), cases([0.4, 0.6], [0.9, 0.1], 3.0))
    assert (said.golden_ok, said.alike, said.cases) == (True, 1, 3)
    assert not canary.answers(server, cases([0.3, 0.7]), cases([0.4, 0.6])).golden_ok
    gone = canary.answers("http://127.0.0.1:9/", cases([0.2, 0.8]), cases([0.4, 0.6]))
    assert (gone.golden_ok, gone.alike) == (False, 0)


def test_numbers_are_alike_within_a_tenth() -> None:
    def alike(one: Any, other: Any) -> bool:
        return canary._alike({"predictions": [one]}, {"predictions": [other]})

    assert alike(10.9, 10) and not alike(11.1, 10) and alike("cat", "cat")
    assert not alike([0.1], [0.1, 0.9])
    assert not canary._alike({}, {"predictions": [1]})
    assert not canary._alike({"predictions": []}, {"predictions": []})


def test_before_anybody_sees_it_its_answers_are_judged() -> None:
    record = canary.step([], GOOD, "1", "2", 0, {})
    assert record["reasons"] == []
    refused = canary.step([], {**GOOD, "alike": 6}, "1", "2", 0, {})
    assert "labels 6 of 10" in refused["reasons"][0]
    said = canary.summary([record, refused], "1", "2")
    assert said.startswith("It answered 0 of 0 requests. Why: it labels 6")
    window = canary.as_data(seen([line()] * 3 + [line("1")] * 97, "digits"))
    step = canary.step([window], GOOD, "1", "2", 3, {"requests": 3})
    assert canary.summary([record, step], "1", "2") == "It answered 3 of 100 requests."
