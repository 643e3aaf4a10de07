"""The gateway's access log: a JSON object a line, in the order in which requests ended; `at` is that moment in ms since 1970."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import GroundcrewError

LOG = Path("/var/log/haproxy/access.log")
_AT = re.compile(rb'\{"at": (\d+)')
_STEP = 1 << 20


def since(moment_ms: float, log: Path = LOG) -> list[str]:
    """The lines of requests that ended after a moment, from the log and from the one that was rotated last.

    Raises GroundcrewError when HAProxy does not write there.
    """
    try:
        found, reached = _tail(log, moment_ms)
    except FileNotFoundError as error:
        raise GroundcrewError(
            f"HAProxy does not write {log}: it was started before it was configured to. On this host: systemctl restart haproxy"
        ) from error
    rotated = log.with_name(log.name + ".1")
    if not reached and rotated.exists():
        found = _tail(rotated, moment_ms)[0] + found
    return found


def _tail(log: Path, moment_ms: float) -> tuple[list[str], bool]:
    """The lines after the moment, read from the end, and whether an older one was seen."""
    with log.open("rb") as file:
        end = file.seek(0, 2)
        begin, data = end, b""
        while begin > 0:
            step = min(begin, max(_STEP, len(data)))
            begin -= step
            file.seek(begin)
            data = file.read(step) + data
            first = _AT.search(data)
            if first and int(first.group(1)) < moment_ms:
                break
    lines = data.split(b"\n")
    times = [(m and int(m.group(1)), line) for line in lines for m in [_AT.match(line)]]
    fresh = [line.decode(errors="replace") for at, line in times if at and at >= moment_ms]
    return fresh, any(at and at < moment_ms for at, _ in times)
