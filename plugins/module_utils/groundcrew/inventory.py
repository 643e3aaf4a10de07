"""What can be wrong in an environment's hosts.yml that Ansible itself passes over in silence."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .service_map import nearest

# What a fleet of the inventory may say; `memory` is for hosts that are containers.
FLEET_KEYS = (
    "instance_type",
    "machine_image",
    "root_volume_gb",
    "data_volume_gb",
    "spot",
    "memory",
)


def declared(text: str) -> Iterator[tuple[str, str | None, int]]:
    """Every mention of a host in a YAML inventory: (name, its private_address there or None, line number).

    Reads the document's nodes, because loading it would already have dropped one of two equal keys.
    """
    import yaml

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        for _, group in root.value:
            yield from _hosts(group)


def _hosts(group: Any) -> Iterator[tuple[str, str | None, int]]:
    import yaml

    if not isinstance(group, yaml.MappingNode):
        return
    for key, value in group.value:
        if not isinstance(value, yaml.MappingNode):
            continue
        if key.value == "children":
            for _, child in value.value:
                yield from _hosts(child)
        elif key.value == "hosts":
            for name, variables in value.value:
                pairs = variables.value if isinstance(variables, yaml.MappingNode) else []
                address = next(
                    (str(v.value) for k, v in pairs if k.value == "private_address"), None
                )
                yield str(name.value), address, name.start_mark.line + 1


def unedited(text: str, path: str) -> list[str]:
    """The lines of an example that still say EDIT instead of a value, with what their comment says about them."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        value, _, comment = line.partition("#")
        key, colon, rest = value.partition(":")
        if colon and re.search(r"\bEDIT\b", rest):
            found.append(f"{path}:{number}: {key.strip()}: {comment.strip() or 'give it a value'}")
    return found


def fleet_faults(fleets: Mapping[str, Mapping[str, Any]], path: str) -> list[str]:
    """Keys that no fleet has, one line each; a misspelt one would silently take its default.

    ``fleets`` is fleet to its keys, ``path`` the file that has them.
    """
    return [
        f"{path}: fleet {name} has an unknown key '{key}'.{nearest(str(key), FLEET_KEYS)}"
        for name, keys in fleets.items()
        for key in keys or {}
        if key not in FLEET_KEYS
    ]


def faults(text: str, network: str, path: str) -> list[str]:
    """Everything wrong with the hosts of one environment, one line each with the edit that mends it.

    ``text`` is the content of hosts.yml, ``network`` the environment's subnet (CIDR), ``path`` the file's name.
    A host has one declaration (where its private_address stands) and may be named in other groups without one.
    """
    found: list[str] = []
    declarations: dict[str, int] = {}
    addresses: dict[str, str] = {}
    mentions = list(declared(text))
    subnet = ipaddress.ip_network(network)
    for name, address, line in mentions:
        if address is None:
            continue
        if name in declarations:
            found.append(
                f"{path}:{line}: host '{name}' is declared twice (first in line {declarations[name]}). Give one of them another "
                "name, or, to put one host into several groups, leave private_address out of all but the first."
            )
            continue
        declarations[name] = line
        if address in addresses:
            found.append(
                f"{path}:{line}: hosts '{addresses[address]}' and '{name}' have the same address {address}. Give one another address."
            )
        addresses.setdefault(address, name)
        try:
            inside = ipaddress.ip_address(address) in subnet
        except ValueError:
            inside = False
        if not inside:
            found.append(
                f"{path}:{line}: host '{name}' has the address '{address}', which is not in the subnet {network} (network_cidr). "
                "Correct one of them."
            )
    for name, address, line in mentions:
        if address is None and name not in declarations:
            found.append(
                f"{path}:{line}: host '{name}' has no private_address. Add one: {{private_address: …}}, inside {network}."
            )
    return found
