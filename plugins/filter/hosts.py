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


def fleet_servers(fleet: str, environment: str, groups: Any, hostvars: Any, port: int, suffix: str = "") -> list[dict[str, Any]]:
    """Where a service of one fleet listens: [{"name", "address", "port"}], one a host of the fleet."""
    return [
        {"name": name + suffix, "address": hostvars[name]["private_address"], "port": port}
        for name in sorted(groups.get(f"{environment}_{fleet}", []))
    ]


def gateway_models(variants: list[dict[str, Any]], environment: str, groups: Any, hostvars: Any) -> list[dict[str, Any]]:
    """The gateway's view of the models: [{"name", "servers"}], a server for each variant on each host of its fleet."""
    models: dict[str, list[dict[str, Any]]] = {}
    for variant in variants:
        servers = fleet_servers(
            variant["fleet"], environment, groups, hostvars, int(variant["host_port"]), "-" + str(variant["version"])
        )
        models.setdefault(variant["model"], []).extend(servers)
    return [{"name": name, "servers": servers} for name, servers in sorted(models.items())]


def model_versions(variants: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What module model_store is to fetch for these variants: [{"name", "version"}]."""
    return [{"name": variant["model"], "version": str(variant["version"])} for variant in variants]


def model_manifests(fetched: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Model to version to the sha256 of its manifest, from what module model_store returns."""
    manifests: dict[str, dict[str, str]] = {}
    for model in fetched:
        if model.get("manifest_sha256"):
            manifests.setdefault(model["name"], {})[str(model["version"])] = model["manifest_sha256"]
    return manifests


def client_hashes(clients: list[dict[str, Any]], secrets: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The gateway's clients with the hashes of their keys; the keys themselves stay in the secret store."""
    return [{**client, "key_sha256": secrets["clients/" + client["name"]]["sha256"]} for client in clients]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        return {
            "host_values": host_values,
            "fleet_servers": fleet_servers,
            "gateway_models": gateway_models,
            "model_versions": model_versions,
            "client_hashes": client_hashes,
            "model_manifests": model_manifests,
        }
