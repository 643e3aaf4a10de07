"""Load from wrk, and the figures of several measurements."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("requests.lua")
_MARK = "groundcrew "


class BenchError(Exception):
    """Something did not run or answered wrongly, so that there is nothing to measure."""


def install(program: str, package: str = "") -> None:
    """A program from the distribution, unless it is there."""
    if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
        return
    sudo = [] if os.getuid() == 0 else ["sudo"]
    package = package or program
    print(f"bench | {package} from the distribution", flush=True)
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
        done = subprocess.run(
            [*sudo, "apt-get", *words],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(
                f"{program} is missing and apt-get {words[0]} failed: {done.stderr.strip()}\n"
                f"Install it yourself (apt-get install {package}), then run it again."
            )


def measure(
    url: str,
    headers: Mapping[str, str],
    bodies: Sequence[Any],
    connections: int,
    seconds: float,
    rate: float = 0,
    namespace_of: int = 0,
) -> dict[str, float]:
    """What one run of wrk found. Raises BenchError when any request was not answered with success.

    rate: requests a second, on schedule; 0 is as many as are answered. namespace_of: a process whose
    network is used. wrk checks no certificate: whoever measures TLS asks once with a client that does.
    """
    lines = [f"{name}: {value}" for name, value in headers.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".requests") as file:
        file.write("\n".join([*lines, "", *map(json.dumps, bodies)]) + "\n")
        file.flush()
        command = ["wrk", "--threads", "1", "--connections", str(connections)]
        command += ["--duration", f"{seconds:g}s", "--timeout", "10s"]
        command += ["--script", str(SCRIPT), url, "--", file.name]
        command += [f"{rate:g}"] if rate else []
        command = [*in_namespace(namespace_of), *command]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + 60
        )
    if done.returncode != 0:
        raise BenchError(f"wrk at {url} failed: {done.stdout}{done.stderr}")
    return parse(done.stdout, url)


def in_namespace(process: int) -> list[str]:
    """The beginning of a command that uses the network of a process; nothing for 0."""
    if not process:
        return []
    sudo = [] if os.getuid() == 0 else ["sudo"]
    return [*sudo, "nsenter", f"--net=/proc/{process}/ns/net"]


def parse(output: str, url: str) -> dict[str, float]:
    """The figures of requests.lua. Raises BenchError when a request was refused or failed."""
    found = [line for line in output.splitlines() if line.startswith(_MARK)]
    if len(found) != 1:
        raise BenchError(f"wrk at {url} printed no figures: {output.strip()}")
    figures = json.loads(found[0].removeprefix(_MARK))
    if figures["refused"] or figures["failed"] or not figures["requests"]:
        raise BenchError(
            f"of {figures['requests']} requests to {url}, {figures['refused']} were answered with "
            f"an error and {figures['failed']} not at all"
        )
    return {
        "requests_per_second": round(figures["requests"] / figures["seconds"], 1),
        "p50_ms": figures["p50_ms"],
        "p99_ms": figures["p99_ms"],
    }


def medians(rounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over several rounds that have the same figures."""
    listed = list(rounds)
    return {name: round(statistics.median(r[name] for r in listed), 3) for name in listed[0]}


def container_memory_mb(stats: str, service: str) -> float:
    """The memory of a service's containers in what `docker stats --format '{{json .}}'` printed, a container a line."""
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    used = []
    for container in map(json.loads, stats.splitlines()):
        name, own = container["Name"].replace("_", "-"), service.replace("_", "-")
        # A backend is named for its service, as a host name: without underscores.
        if name == own or name.startswith(f"{own}-"):
            [(number, unit)] = re.findall(r"^([0-9.]+)([A-Za-z]+)", container["MemUsage"])
            used.append(float(number) * units[unit])
    if not used:
        raise BenchError(f"the host runs no container of {service}")
    return round(sum(used) / 1e6, 1)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first one to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
