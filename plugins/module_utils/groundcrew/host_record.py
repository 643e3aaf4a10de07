"""What is kept of a host when its machine is gone: which machine it was, and the parts of its fingerprint.

In the store: hosts/<name>.json = {"machine", "digest", "parts", "releases"}. On its network interface, where one call for
the environment finds it: the tags Built (the machine) and Fingerprint (the digest).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import fingerprint, objects
from .errors import GroundcrewError

# What a machine that comes back must have again. Packages and kernel follow the distribution's updates; they are told, not refused.
_FREE = ("package/", "kernel")
_SHOWN = 8


def key(name: str) -> str:
    """Where in the store."""
    return f"hosts/{name}.json"


def read(s3: Any, bucket: str, name: str) -> dict[str, Any]:
    """The record of a host; empty when there is none."""
    found = objects.get(s3, bucket, key(name))
    record: dict[str, Any] = json.loads(found.data) if found else {}
    return record


def write(s3: Any, bucket: str, name: str, record: Mapping[str, Any]) -> None:
    """Keep a record."""
    s3.put_object(
        Bucket=bucket, Key=key(name), Body=json.dumps(record, sort_keys=True, indent=1).encode()
    )


def made(machine: str, parts: Mapping[str, str], releases: Mapping[str, str]) -> dict[str, Any]:
    """A record."""
    digest = fingerprint.digest({**parts, **_prefixed(releases)})
    return {"machine": machine, "digest": digest, "parts": parts, "releases": releases}


def _prefixed(releases: Mapping[str, str]) -> dict[str, str]:
    return {f"release/{service}": release for service, release in releases.items()}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """In what a machine differs from the one before it: what must be the same, and what may follow updates. A line a part."""
    strict: list[str] = []
    free: list[str] = []
    for part, row in fingerprint.differences({"before": before, "after": after}).items():
        line = f"{part}: {row['before'] or 'nothing'} -> {row['after'] or 'nothing'}"
        (free if part.startswith(_FREE) else strict).append(line)
    return strict, free


def compare(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How a machine came back, by two records: a line for the report. Raises GroundcrewError when it is another host."""
    if not before:
        return "recorded for the first time"
    if before["machine"] == now["machine"]:
        return "the same machine"
    strict, free = changes(
        *({**of["parts"], **_prefixed(of.get("releases", {}))} for of in (before, now))
    )
    if strict:
        more = f" and {len(strict) - _SHOWN} more" if len(strict) > _SHOWN else ""
        raise GroundcrewError(
            f"{name} came back as another host than it was: {'; '.join(strict[:_SHOWN])}{more}. Was that declared meanwhile? "
            "Then accept it: the same command with -e accept_fingerprint=yes. Otherwise correct it; until then the host counts as "
            "unfinished."
        )
    if free:
        shown = "; ".join(free[:_SHOWN])
        return f"another machine, the same host but for {len(free)} packages or its kernel: {shown}"
    return "another machine, the same fingerprint and releases"
