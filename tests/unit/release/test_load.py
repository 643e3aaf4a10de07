"""Where the time of a load test's requests goes."""

from __future__ import annotations

import json

from groundcrew.load import Sample, blame, blame_of, csv_of, lines, logged, percentile, phases


def sample(number: int = 0, ms: float = 10.0, failed: str = "") -> Sample:
    return Sample(number / 100, ms / 1000, failed, 2.0, 1.0, f"load-a-{number}")


def entry(number: int, **more: int) -> str:
    said = {"request_id": f"load-a-{number}", "Tw": 1, "Tc": 0, "Tr": 5, "Ta": 8}
    return json.dumps({**said, **more})


def test_log_lines_of_other_loads_and_of_haproxy_itself_are_passed_over() -> None:
    text = [entry(0), entry(1).replace("load-a", "load-b"), 'stopped "load-a-', "x", entry(2, Ta=9)]
    assert logged(text, "load-a") == {"load-a-0": [1, 0, 5, 8], "load-a-2": [1, 0, 5, 9]}


def test_the_phases_of_a_request_add_up_to_its_time() -> None:
    found = phases(sample(), logged([entry(0)], "load-a"))
    assert found == {
        "total": 10.0,
        "client": 2.0,
        "gateway": 2.0,
        "queue": 2.0,
        "service": 2.0,
        "model": 2.0,
    }
    # Without the gateway's word there is what the client and the service know.
    assert phases(sample(), {}) == {"total": 10.0, "model": 2.0}


def test_the_slowest_are_blamed_on_what_took_them_longest() -> None:
    log = logged([entry(number) for number in range(99)] + [entry(99, Tw=80, Ta=87)], "load-a")
    samples = [sample(number) for number in range(99)] + [sample(99, 90.0)]
    found = blame(samples, log)
    assert found["slowest_spent_most_in"] == "queue"
    assert found["total"] == {"p50_ms": 10.0, "p99_ms": 90.0}
    assert blame([sample(failed="503")], log) == {}


def test_percentiles() -> None:
    assert [percentile(list(range(100)), share) for share in (0, 0.5, 0.99)] == [0, 50, 99]
    assert percentile([7.0], 0.99) == 7.0


def test_as_modules_hand_it_on_it_is_a_table_and_lines() -> None:
    raw = [
        list(vars(sample(1)).values()),
        list(vars(sample(0, failed='503 {"error": "x, y"}')).values()),
    ]
    logs = [logged([entry(1)], "load-a"), logged([entry(0)], "load-a")]
    rows = csv_of(raw, logs).splitlines()
    assert rows[0].count(",") == rows[1].count(",") == rows[2].count(",")
    assert rows[1].startswith("load-a-0,0.000,10.000,2.000") and "503" in rows[1]
    found = {"requests": 2, "failed": 1, "first_failures": [{"at_s": 0.0, "why": "503"}]}
    said = lines(found, blame_of(raw, logs))
    assert said[0] == "2 requests, 1 failed" and "503" in said[1]
    assert any(line.startswith("  model") and "2.00 ms" in line for line in said)
