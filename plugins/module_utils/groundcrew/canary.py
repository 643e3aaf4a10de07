"""Whether a new version of a model may take more of the requests, judged beside the one that serves.

What clients saw of both is read from the gateways' access logs of the same minutes: every answer
counts, the gateway's own refusals too. What the new version answers is asked of it directly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import golden
from .errors import GroundcrewError


@dataclass(frozen=True)
class Limits:
    """What a new version has to keep to.

    requests: so many of its own, or there is nothing to judge. errors: how much larger its share of
    errors (0 to 1) may be. slower, slack_ms: its p95 may be so many times the other's, and so many
    milliseconds more. agreement: share of the other's golden cases that it answers with the same
    label, or with a number within a tenth.
    """

    requests: int = 100
    errors: float = 0.005
    slower: float = 1.5
    slack_ms: float = 5.0
    agreement: float = 0.9


@dataclass
class Seen:
    """What clients saw of one version: requests, those that failed, and times in whole ms -> how often."""

    requests: int = 0
    errors: int = 0
    times: Counter[int] = field(default_factory=Counter)

    @property
    def error_share(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def p95_ms(self) -> float:
        """Of the requests that were answered; 0 without any."""
        rank, passed = 0.95 * sum(self.times.values()), 0
        for milliseconds in sorted(self.times):
            passed += self.times[milliseconds]
            if passed >= rank:
                return float(milliseconds)
        return 0.0


def seen(lines: Iterable[str], model: str) -> dict[str, Seen]:
    """Version -> what clients saw of it, from a gateway's access log.

    Only predictions that named no version count: those of the canary's own checks name it. A client
    that went away (status -1 or an end of C…) is nobody's error.
    """
    found: dict[str, Seen] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["model"] != model or "/versions/" in entry["path"] or not entry["variant"]:
                continue
            status, gone = int(entry["status"]), str(entry["end"]).startswith("C")
        except (ValueError, KeyError, TypeError):
            continue  # a line that was torn when the log was rotated
        if gone or 400 <= status < 500:
            continue
        version = found.setdefault(str(entry["variant"]), Seen())
        version.requests += 1
        if status >= 500 or status < 0:
            version.errors += 1
        else:
            version.times[int(entry["Ta"])] += 1
    return found


def together(windows: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Seen]:
    """What several gateways saw, as module gateway_log returns it."""
    found: dict[str, Seen] = {}
    for window in windows:
        for version, counts in window.items():
            total = found.setdefault(version, Seen())
            total.requests += int(counts["requests"])
            total.errors += int(counts["errors"])
            for milliseconds, often in counts["times"].items():
                total.times[int(milliseconds)] += int(often)
    return found


@dataclass(frozen=True)
class Answers:
    """What the new version answered: its own golden cases, and how many of the other's it labels alike."""

    golden_ok: bool
    golden: str
    alike: int
    cases: int


def answers(
    url: str,
    own: golden.Golden,
    other: golden.Golden,
    headers: Mapping[str, str] | None = None,
    ca_file: str | None = None,
) -> Answers:
    """Ask the new version its own golden cases and those of the version that serves."""
    result = golden.check(url, own, headers, ca_file)
    alike = 0
    for case in other.cases:
        found, fault = golden.ask(url, case["request"], headers, ca_file)
        if fault is None and _alike(found, case["response"]):
            alike += 1
    return Answers(result.ok, result.detail, alike, len(other.cases))


def _alike(found: Any, expected: Any) -> bool:
    """Whether each prediction has the same label (the place of the largest number of a list), or is a number within a tenth."""
    try:
        pairs = list(zip(found["predictions"], expected["predictions"], strict=True))
    except (KeyError, TypeError, ValueError):
        return False
    for one, other in pairs:
        if isinstance(other, list) and isinstance(one, list) and len(one) == len(other):
            if not other or one.index(max(one)) != other.index(max(other)):
                return False
        elif isinstance(other, (int, float)) and isinstance(one, (int, float)):
            if abs(one - other) > 0.1 * max(abs(other), 1e-9):
                return False
        elif one != other:
            return False
    return bool(pairs)


def judge(
    stable: str,
    canary: str,
    found: Mapping[str, Seen],
    said: Mapping[str, Any],
    limits: Limits,
    share: int,
) -> list[str]:
    """Why the new version must not take more, a line each; none: it may.

    With a share of 0, before anybody was sent to it, its answers alone are judged.
    """
    old, new = found.get(stable, Seen()), found.get(canary, Seen())
    reasons = []
    if not said["golden_ok"]:
        reasons.append(f"its golden predictions are wrong: {said['golden']}")
    if said["alike"] < limits.agreement * said["cases"]:
        reasons.append(
            f"it labels {said['alike']} of {said['cases']} golden cases of version {stable} alike, "
            f"{limits.agreement:.0%} are asked"
        )
    if share == 0:
        return reasons
    if new.requests < limits.requests:
        reasons.append(
            f"it answered {new.requests} requests, which is too few to judge: {limits.requests} are asked"
        )
        return reasons
    if new.error_share > old.error_share + limits.errors:
        reasons.append(
            f"{new.errors} of its {new.requests} requests failed ({new.error_share:.1%}), "
            f"of version {stable} {old.error_share:.1%}"
        )
    if old.requests < limits.requests:
        return reasons  # at its last step there is nothing left beside it
    most = old.p95_ms() * limits.slower + limits.slack_ms
    if new.p95_ms() > most:
        reasons.append(
            f"its p95 is {new.p95_ms():.0f} ms, of version {stable} {old.p95_ms():.0f} ms; at most {most:.0f} ms are allowed"
        )
    return reasons


def weights(
    models: Sequence[Mapping[str, Any]], model: str, canary: str, share: int
) -> list[dict[str, Any]]:
    """gateway_models with `share` percent for the new version, taken from the one that serves.

    Other versions keep theirs; a share beyond what the two have together means all of it.
    """
    changed = []
    for entry in models:
        variants = [dict(variant) for variant in entry["variants"]]
        if entry["name"] == model:
            stable, _ = pair(variants, model, canary)
            two = [variant for variant in variants if variant["version"] in (stable, canary)]
            total = sum(variant["weight"] for variant in two)
            for variant in two:
                own = min(share, total)
                variant["weight"] = own if variant["version"] == canary else total - own
        changed.append({**entry, "variants": variants})
    return changed


def pair(variants: Sequence[Mapping[str, Any]], model: str, canary: str) -> tuple[str, str]:
    """The version that serves (of the largest weight besides the new one's) and the new one. Raises GroundcrewError."""
    versions = [str(variant["version"]) for variant in variants]
    if canary not in versions or len(versions) < 2:
        raise GroundcrewError(
            f"version {canary} of {model} is not served beside another; served is {', '.join(versions) or 'nothing'}. "
            f'In models.yml: variants: [{{version: "{versions[0] if versions else 1}", weight: 100}}, '
            f'{{version: "{canary}", weight: 0}}], then deploy.'
        )
    others = [variant for variant in variants if str(variant["version"]) != canary]
    return str(max(others, key=lambda variant: variant["weight"])["version"]), canary


def step(
    windows: Sequence[Mapping[str, Mapping[str, Any]]],
    said: Mapping[str, Any],
    stable: str,
    canary: str,
    share: int,
    limits: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of one step: share, what was seen of both, why it must not go on (nothing: it may)."""
    found = together(windows)
    record: dict[str, Any] = {"share": share, "golden": said["golden"]}
    record["alike"] = f"{said['alike']} of {said['cases']}"
    for version in (stable, canary):
        own = found.get(version, Seen())
        record[f"version_{version}"] = {
            "requests": own.requests,
            "errors": own.errors,
            "p95_ms": own.p95_ms(),
        }
    record["reasons"] = judge(stable, canary, found, said, Limits(**limits), share)
    return record


def summary(records: Sequence[Mapping[str, Any]], stable: str, canary: str) -> str:
    """How many requests the new version answered, and why it must not go on if it must not."""
    new = sum(record[f"version_{canary}"]["requests"] for record in records)
    both = new + sum(record[f"version_{stable}"]["requests"] for record in records)
    seen_by = f"It answered {new} of {both} requests."
    reasons = [reason for record in records for reason in record["reasons"]]
    return " ".join([seen_by, *(f"Why: {reason}." for reason in reasons)])


def as_data(found: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """For a module's result."""
    return {
        version: {"requests": own.requests, "errors": own.errors, "times": dict(own.times)}
        for version, own in found.items()
    }
