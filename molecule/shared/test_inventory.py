#!/usr/bin/env python3
"""An inventory for tests: one that ships, as environment `test`, with names, subnet and ports of its own.

GROUNDCREW_TEST_INVENTORY: which one, `single` (default) or `local`.
GROUNDCREW_TEST_VARIANTS: for `single`, the kinds of host image, one host each; default `baked`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PORT_SHIFT = 1000
SUBNET = "10.78."


def rename(name: str, source: str) -> str:
    """local -> test, local_gateway -> test_gateway, local-gateway-1 -> test-gateway-1; other names stay."""
    for separator in ("_", "-"):
        if name.startswith(source + separator):
            return "test" + name[len(source) :]
    return "test" if name == source else name


def readdress(value: Any, subnet: str) -> Any:
    """Addresses of the source's subnet as addresses of the tests' own."""
    if isinstance(value, dict):
        return {key: readdress(item, subnet) for key, item in value.items()}
    if isinstance(value, list):
        return [readdress(item, subnet) for item in value]
    return value.replace(subnet, SUBNET) if isinstance(value, str) else value


def inventory(source: str, variants: list[str]) -> dict[str, Any]:
    """The inventory in the form that Ansible expects of a program."""
    folder = ROOT / "inventories" / source
    variables: dict[str, Any] = {}
    for file in sorted((folder / "group_vars" / source).glob("*.yml")):
        variables.update(yaml.safe_load(file.read_text()) or {})
    subnet = ".".join(variables["network_cidr"].split(".")[:2]) + "."
    variables = readdress(variables, subnet)
    variables["environment_name"] = "test"
    for name in [name for name in variables if name.endswith("_published_port")]:
        variables[name] += PORT_SHIFT

    groups: dict[str, Any] = {"embedded": {"children": ["test"]}}
    hostvars: dict[str, Any] = {}

    def add(name: str, group: dict[str, Any] | None) -> None:
        group = group or {}
        entry = groups.setdefault(rename(name, source), {"hosts": [], "children": []})
        for host, values in (group.get("hosts") or {}).items():
            entry["hosts"].append(rename(host, source))
            hostvars.setdefault(rename(host, source), {}).update(readdress(values or {}, subnet))
        for child, content in (group.get("children") or {}).items():
            entry["children"].append(rename(child, source))
            add(child, content)

    for name, group in yaml.safe_load((folder / "hosts.yml").read_text()).items():
        add(name, group)
    if source == "single":
        (first,) = hostvars
        for number, variant in enumerate(variants, start=1):
            host = f"test-{number}"
            hostvars.setdefault(host, {"private_address": f"{SUBNET}0.{9 + number}"})[
                "local_cloud_variant"
            ] = variant
            if host != first:
                for name in [
                    name for name, group in groups.items() if first in group.get("hosts", [])
                ]:
                    groups[name]["hosts"].append(host)
    # As variables of the hosts: a program's group variables would lose against the shared group_vars/all.
    for name, values in hostvars.items():
        hostvars[name] = {**variables, **values}
    return {**groups, "_meta": {"hostvars": hostvars}}


if __name__ == "__main__":
    wanted = os.environ.get("GROUNDCREW_TEST_INVENTORY", "single")
    print(
        json.dumps(
            inventory(wanted, os.environ.get("GROUNDCREW_TEST_VARIANTS", "baked").split(","))
        )
    )
