#!/usr/bin/env python3
"""An inventory for tests: one that ships, as environment `test`, with names, subnet and ports of its own.

GROUNDCREW_TEST_INVENTORY: which one, `single` (default) or `local`.
GROUNDCREW_TEST_VARIABLES: a file of variables that replace those of the environment.
GROUNDCREW_TEST_VARIANTS: for `single`, the kinds of host image, one host each: test-1 of `baked` (the default), test-plain, test-dlami.
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
ADDRESSES = {"baked": "10.78.0.10", "plain": "10.78.0.11", "dlami": "10.78.0.12"}


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
    if own := os.environ.get("GROUNDCREW_TEST_VARIABLES"):
        variables.update(yaml.safe_load(Path(own).read_text()))
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
        # A name and an address of its own for each kind, so that a host never changes its kind.
        (first,) = hostvars
        names = {first if kind == "baked" else f"test-{kind}": kind for kind in variants}
        for group in groups.values():
            if first in group.get("hosts", []):
                group["hosts"] = list(names)
        hostvars = {
            name: {"private_address": ADDRESSES[kind], "local_cloud_variant": kind}
            for name, kind in names.items()
        }
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
