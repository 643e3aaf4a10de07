"""Filters over the hosts of an environment."""

from __future__ import annotations

from typing import Any


def host_values(names: list[str], hostvars: Any, keys: dict[str, str]) -> list[dict[str, Any]]:
    """One dictionary a host: its name, and for each of ``keys`` the host's variable of that (dotted) name.

    A variable that the host does not have is left out, so a module's own default applies.
    """
    rows = []
    for name in names:
        row: dict[str, Any] = {"name": name}
        for key, path in keys.items():
            value: Any = hostvars[name]
            for part in path.split("."):
                value = value.get(part) if hasattr(value, "get") else None
            if value is not None:
                row[key] = value
        rows.append(row)
    return rows


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        return {"host_values": host_values}
