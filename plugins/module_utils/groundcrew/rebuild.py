"""Which hosts have to be rebuilt, and how: what is declared against what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEALTHY, MISSING, STOPPED, UNREACHABLE, UNFINISHED = (
    "healthy",
    "missing",
    "stopped",
    "unreachable",
    "unfinished",
)
STOPS = ("stopping", "stopped")
# What a rebuild does about each.
REMEDY = {
    MISSING: "is launched again: same name, address, host key and data volume",
    STOPPED: "is started",
    UNREACHABLE: "is stopped and started",
    UNFINISHED: "is configured and deployed to its end",
    HEALTHY: "is left alone",
}


def verdict(
    instance: Mapping[str, Any] | None, machine: str, built: str, reachable: bool | None
) -> str:
    """What is the matter with one host.

    instance: as Cloud.machines() has it. machine: what tells its present machine from the one before. built: the machine that was
    finished last. reachable: whether it answered over ssh; None: it was not asked.
    """
    if not instance:
        return MISSING
    if instance["state"] in STOPS:
        return STOPPED
    if reachable is False:
        return UNREACHABLE
    return HEALTHY if machine == built else UNFINISHED


def verdicts(
    hosts: Sequence[str],
    state: Mapping[str, Any],
    machines: Mapping[str, str],
    answered: Mapping[str, bool],
    sleepers: Sequence[str] = (),
) -> dict[str, str]:
    """Host -> what is the matter with it. state: Cloud.state(); the others by host name: see verdict(). sleepers: hosts that may be
    stopped."""
    return {
        name: HEALTHY
        if name in sleepers and state["instances"].get(name, {}).get("state") in STOPS
        else verdict(
            state["instances"].get(name),
            machines.get(name, ""),
            state["interfaces"].get(name, {}).get("built", ""),
            answered.get(name),
        )
        for name in hosts
    }


def gone(hosts: Sequence[str], state: Mapping[str, Any]) -> list[str]:
    """The declared hosts that were finished once and have no running instance: rebuilt, not provisioned."""
    return [
        name
        for name in hosts
        if state["interfaces"].get(name, {}).get("built")
        and state["instances"].get(name, {}).get("state") not in ("pending", "running")
    ]


def lines(found: Mapping[str, str]) -> list[str]:
    """Verdicts for people."""
    wrong = {name: what for name, what in sorted(found.items()) if what != HEALTHY}
    if not wrong:
        return [f"All {len(found)} hosts are healthy: nothing to rebuild."]
    width = max(len(name) for name in wrong)
    return [
        *(f"{name.ljust(width)}  {what}: it {REMEDY[what]}" for name, what in wrong.items()),
        f"{len(found) - len(wrong)} of {len(found)} hosts are healthy and left alone",
    ]
