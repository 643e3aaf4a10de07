"""The figures of the serving bench."""

from __future__ import annotations

import json
import os

import gateway
import pytest
from load import BenchError, container_memory_mb, measure, medians, parse, table

FIGURES = {
    "requests": 3000,
    "seconds": 1.5,
    "p50_ms": 1.25,
    "p99_ms": 4.5,
    "refused": 0,
    "failed": 0,
}


def printed(**changes: float) -> str:
    return f"Running 1s test\n  2 threads\ngroundcrew {json.dumps({**FIGURES, **changes})}\n"


def test_figures_of_wrk():
    assert parse(printed(), "http://x") == {
        "requests_per_second": 2000.0,
        "p50_ms": 1.25,
        "p99_ms": 4.5,
    }


@pytest.mark.parametrize("changes", [{"refused": 1}, {"failed": 1}, {"requests": 0}])
def test_figures_of_failures_are_none(changes):
    with pytest.raises(BenchError, match="http://x"):
        parse(printed(**changes), "http://x")


def test_output_without_figures_is_an_error():
    with pytest.raises(BenchError, match="unable to connect"):
        parse("unable to connect to x\n", "http://x")


def test_median_of_each_figure():
    rounds = [{"a": 1, "b": 9.0}, {"a": 3, "b": 8.0}, {"a": 2, "b": 70.0}]
    assert medians(rounds) == {"a": 2, "b": 9.0}


def test_figures_stand_at_the_right():
    assert table([["server", "p50"], ["ours", "1234"]]) == "server   p50\nours    1234"


def test_key_is_not_on_the_command_line(monkeypatch, tmp_path):
    program = tmp_path / "wrk"
    program.write_text(
        f"#!/bin/sh\necho \"$@\" >{tmp_path}/words\necho 'groundcrew {json.dumps(FIGURES)}'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert measure("http://x", {"X-Api-Key": "secret"}, [{}], 1, 1)["p50_ms"] == 1.25
    assert "secret" not in (tmp_path / "words").read_text()


def test_memory_of_a_service_and_its_backend():
    names = {
        "digits-1": "100MiB / 1GiB",
        "digits-1-backend": "0.5GiB / 1GiB",
        "digits-10": "7B / 1B",
    }
    stats = "\n".join(json.dumps({"Name": n, "MemUsage": m}) for n, m in names.items())
    assert container_memory_mb(stats, "digits-1") == 641.7
    with pytest.raises(BenchError, match="digits-2"):
        container_memory_mb(stats, "digits-2")


def test_a_steady_rate_and_a_network_are_words_of_the_command(monkeypatch, tmp_path):
    for name in ("wrk", "nsenter", "sudo"):
        program = tmp_path / name
        program.write_text(
            f"#!/bin/sh\necho \"$0 $@\" >>{tmp_path}/words\necho 'groundcrew {json.dumps(FIGURES)}'\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    measure("http://x", {}, [{}], 64, 1, rate=2000)
    measure("http://x", {}, [{}], 64, 1, namespace_of=7)
    steady, elsewhere = (tmp_path / "words").read_text().splitlines()
    assert steady.endswith(" 2000")
    assert "--net=/proc/7/ns/net wrk" in elsewhere


def test_targets_of_the_gateway():
    def figures(rate, p50):
        return {"requests_per_second": rate, "p50_ms": p50, "p99_ms": 9.0}

    steady = {
        gateway.DIRECT: figures(2000, 1.0),
        gateway.HAPROXY: figures(2000, 1.4),
        gateway.NGINX: figures(2000, 2.0),
    }
    saturated = {
        gateway.DIRECT: figures(10000, 1.0),
        gateway.HAPROXY: figures(5800, 1.0),
        gateway.NGINX: figures(6000, 1.0),
    }
    targets = gateway.targets_of(steady, saturated)
    assert [(t["value"], t["met"]) for t in targets] == [(0.4, True), (0.58, True), (0.967, False)]
