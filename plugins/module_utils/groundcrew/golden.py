"""Golden predictions: requests with the answers that a model version gave when it was published.

``golden.json`` lies in every model version: ``{"cases": [{"request": {"instances": …}, "response":
{"predictions": …}}], "tolerance": 1e-6}``. Readiness, deploy gates and rebuild proofs all ask
:func:`check` whether a server still answers so.
"""

from __future__ import annotations

import http.client
import json
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import GroundcrewError

_MOST_DIFFERENCES = 5
_LARGEST_ANSWER = 64 * 1024 * 1024


@dataclass(frozen=True)
class Golden:
    """Cases and the largest absolute difference between two numbers that still counts as equal."""

    cases: list[dict[str, Any]]
    tolerance: float


@dataclass(frozen=True)
class Result:
    """What a check found: ``ok``, cases asked and passed, one line per fault, seconds of the
    slowest case."""

    ok: bool
    cases: int
    passed: int
    differences: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    @property
    def detail(self) -> str:
        """One line for a report."""
        if self.ok:
            return f"{self._count}, slowest {self.slowest_seconds * 1000:.1f} ms"
        return f"{self._count}: " + "; ".join(self.differences)

    @property
    def _count(self) -> str:
        return f"{self.passed} of {self.cases} golden cases right"


def parse(data: bytes | str, source: str = "golden.json") -> Golden:
    """Golden cases from JSON. Raises GroundcrewError that names ``source`` and the fault."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise GroundcrewError(
            f"{source} is not JSON ({error}); publish the model version again"
        ) from error
    cases = document.get("cases") if isinstance(document, dict) else None
    if not isinstance(cases, list) or not cases:
        raise GroundcrewError(
            f"{source} has no cases; it needs {{'cases': [{{'request', 'response'}}], 'tolerance'}}"
        )
    for number, case in enumerate(cases):
        if (
            not isinstance(case, dict)
            or not isinstance(case.get("request"), dict)
            or "response" not in case
        ):
            raise GroundcrewError(
                f"{source}: case {number} needs a 'request' object and a 'response'"
            )
    tolerance = document.get("tolerance", 0.0)
    number_given = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not number_given or not math.isfinite(tolerance) or tolerance < 0:
        raise GroundcrewError(
            f"{source}: tolerance is {tolerance!r}; it must be a number that is not negative"
        )
    return Golden(cases=cases, tolerance=float(tolerance))


def load(path: str | Path) -> Golden:
    """Golden cases from a file. Raises GroundcrewError when it is missing or malformed."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise GroundcrewError(
            f"cannot read {path}: {error.strerror}; fetch the model version again"
        ) from error
    return parse(data, str(path))


def compare(response: Any, expected: Any, tolerance: float) -> list[str]:
    """Where a response differs from the expected one; empty when it does not.

    Numbers may differ by ``tolerance`` (absolute; NaN differs from everything), the rest must be
    equal. A response may hold keys that the expected one lacks, so a server can add fields. At most
    five differences are returned.
    """
    differences: list[str] = []
    _compare(response, expected, tolerance, "response", differences)
    return differences[:_MOST_DIFFERENCES]


def _compare(
    found: Any, expected: Any, tolerance: float, where: str, differences: list[str]
) -> None:
    if len(differences) >= _MOST_DIFFERENCES:
        return
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            differences.append(f"{where} is {_short(found)}, not an object")
            return
        for key, value in expected.items():
            if key not in found:
                differences.append(f"{where} has no {key!r}")
            else:
                _compare(found[key], value, tolerance, f"{where}.{key}", differences)
    elif isinstance(expected, list):
        if not isinstance(found, list):
            differences.append(f"{where} is {_short(found)}, not a list")
        elif len(found) != len(expected):
            differences.append(f"{where} has {len(found)} entries, expected {len(expected)}")
        else:
            for index, value in enumerate(expected):
                _compare(found[index], value, tolerance, f"{where}[{index}]", differences)
    elif _is_number(expected):
        # "not <=" and not ">": a comparison with NaN is false.
        if not _is_number(found) or not (found == expected or abs(found - expected) <= tolerance):
            differences.append(
                f"{where} is {_short(found)}, expected {expected!r} (tolerance {tolerance:g})"
            )
    elif found != expected or type(found) is not type(expected):
        differences.append(f"{where} is {_short(found)}, expected {_short(expected)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check(
    url: str,
    golden: Golden,
    headers: Mapping[str, str] | None = None,
    ca_file: str | None = None,
    timeout: float = 5.0,
) -> Result:
    """Ask the predict address ``url`` every golden case and compare the answers.

    ``timeout`` is seconds a case. A refused connection or an answer other than 200 is a difference,
    never an exception: callers wait for readiness with this. After a fault that hits every case
    alike (no connection, 401) no more are asked.
    """
    opener = _opener(ca_file)
    passed = 0
    slowest = 0.0
    differences: list[str] = []
    for number, case in enumerate(golden.cases):
        started = time.monotonic()
        found, fault = _ask(opener, url, case["request"], headers or {}, timeout)
        slowest = max(slowest, time.monotonic() - started)
        if fault is not None:
            differences.append(f"case {number}: {fault}")
            break
        faults = compare(found, case["response"], golden.tolerance)
        if faults:
            differences.append(f"case {number}: {faults[0]}")
        else:
            passed += 1
    return Result(
        ok=passed == len(golden.cases),
        cases=len(golden.cases),
        passed=passed,
        differences=differences[:_MOST_DIFFERENCES],
        slowest_seconds=slowest,
    )


def ask(
    url: str,
    body: Any,
    headers: Mapping[str, str] | None = None,
    ca_file: str | None = None,
    timeout: float = 5.0,
) -> tuple[Any, str | None]:
    """The answer of the predict address ``url`` to one request, and None; or None and what failed."""
    return _ask(_opener(ca_file), url, body, headers or {}, timeout)


def _opener(ca_file: str | None) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=ca_file)
    # Proxies from the environment are for the Internet; hosts ask each other directly.
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect()
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any, **_keywords: Any) -> None:
        # A redirect would carry the API key to another address.
        return None


def _ask(
    opener: urllib.request.OpenerDirector,
    url: str,
    body: Any,
    headers: Mapping[str, str],
    timeout: float,
) -> tuple[Any, str | None]:
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
        method="POST",
    )
    try:
        with opener.open(request, timeout=timeout) as answer:
            data = answer.read(_LARGEST_ANSWER)
    except urllib.error.HTTPError as error:
        text = error.read(500).decode("utf-8", "replace").strip()
        return None, f"{url} answered {error.code}: {text[:200]}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return None, f"{url} did not answer: {reason}"
    except http.client.HTTPException as error:
        return None, f"{url} did not answer with HTTP: {type(error).__name__}: {error}"
    try:
        return json.loads(data), None
    except ValueError:
        return None, f"{url} answered something other than JSON: {data[:80]!r}"
