"""Who may talk to whom, on which TCP port: declared once (`flows` in the inventory), rendered for firewalls and for proofs.

A flow is {name, from, to, ports}. `from` and `to` name fleets; `to` may be `all`, `from` may be
`world` (anybody) or `operators` (networks, given as addresses or CIDR blocks).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .cloud_plan import digest
from .errors import GroundcrewError

WORLD, OPERATORS, ALL = "world", "operators", "all"
# What must never be open, whether or not something listens there by a mistake: engines, and model servers' own ports.
NEVER = {
    2375: "Docker",
    2376: "Docker",
    7070: "Multi Model Server",
    8081: "management",
    8500: "gRPC",
}


class Flows:
    """The flows of one environment.

    fleets: fleet -> names of its hosts. addresses: host -> private address. operators: CIDR blocks.
    Raises GroundcrewError for a flow that names what does not exist.
    """

    def __init__(
        self,
        flows: Sequence[Mapping[str, Any]],
        fleets: Mapping[str, Iterable[str]],
        addresses: Mapping[str, str],
        operators: Iterable[str],
    ) -> None:
        self._fleets = {fleet: sorted(hosts) for fleet, hosts in fleets.items()}
        self._addresses = dict(addresses)
        self._operators = sorted(_network(operator) for operator in operators)
        self._flows = [self._checked(flow) for flow in flows]

    @staticmethod
    def _checked(flow: Mapping[str, Any]) -> dict[str, Any]:
        name = flow.get("name", "?")
        unknown = sorted(set(flow) - {"name", "from", "to", "ports"})
        missing = [key for key in ("name", "from", "to", "ports") if key not in flow]
        if unknown or missing:
            raise GroundcrewError(
                f"flow '{name}' {'has the unknown key ' + unknown[0] if unknown else 'lacks ' + missing[0]}: "
                f"a flow is {{name, from: [fleets], to: [fleets], ports: [numbers]}}."
            )
        ports = [int(port) for port in flow["ports"]]
        bad = [port for port in ports if not 1 <= port <= 65535]
        if bad:
            raise GroundcrewError(f"flow '{name}' has the port {bad[0]}; use 1 to 65535.")
        return {"name": name, "from": list(flow["from"]), "to": list(flow["to"]), "ports": ports}

    def _hosts(self, fleets: Iterable[str]) -> set[str]:
        """A fleet without hosts is none: an environment need not have every kind."""
        found: set[str] = set()
        for fleet in fleets:
            found |= set(self._addresses if fleet == ALL else self._fleets.get(fleet, ()))
        return found

    def _sources(self, flow: Mapping[str, Any]) -> list[str] | None:
        """Addresses; None is everybody."""
        if WORLD in flow["from"]:
            return None
        found = {self._addresses[host] for host in self._hosts(flow["from"])}
        if OPERATORS in flow["from"]:
            found |= set(self._operators)
        return sorted(found)

    def allowed(self, host: str) -> list[dict[str, Any]]:
        """What a host lets in: [{"name", "ports", "sources"}]; without sources: from everybody."""
        rules = []
        for flow in self._flows:
            sources = self._sources(flow)
            if host not in self._hosts(flow["to"]) or not flow["ports"] or sources == []:
                continue
            rule: dict[str, Any] = {"name": flow["name"], "ports": sorted(flow["ports"])}
            rules.append(rule if sources is None else {**rule, "sources": sources})
        return rules

    def closed_to(self, host: str) -> list[dict[str, Any]]:
        """What must refuse this host: [{"host", "address", "port", "what"}], every port of every other host that no flow opens to it."""
        own = self._addresses[host]
        names = {port: flow["name"] for flow in self._flows for port in flow["ports"]} | NEVER
        found = []
        for other, address in sorted(self._addresses.items()):
            if other == host:
                continue
            there = {
                port: flow["name"]
                for flow in self._flows
                if other in self._hosts(flow["to"])
                for port in flow["ports"]
            } | NEVER
            opened = {
                port
                for rule in self.allowed(other)
                if own in rule.get("sources", [own])
                for port in rule["ports"]
            }
            found += [
                {"host": other, "address": address, "port": port, "what": names[port]}
                for port in sorted(there)
                if port not in opened
            ]
        return found

    def security_group(self, fleet: str, prefix: str) -> list[dict[str, Any]]:
        """What the EC2 security group <prefix><fleet> lets in, as rules of amazon.aws.ec2_security_group."""
        rules: list[dict[str, Any]] = []
        for flow in self._flows:
            if not (fleet in flow["to"] or ALL in flow["to"]) or not flow["ports"]:
                continue
            ports = {"proto": "tcp", "ports": _ranges(flow["ports"]), "rule_desc": flow["name"]}
            if WORLD in flow["from"]:
                rules.append({**ports, "cidr_ip": ["0.0.0.0/0"]})
                continue
            if OPERATORS in flow["from"] and self._operators:
                rules.append({**ports, "cidr_ip": self._operators})
            sources = [source for source in flow["from"] if source in self._fleets]
            # A group that does not exist yet is made by the first rule that names it.
            rules += [
                {**ports, "group_name": prefix + source, "group_desc": group_description(source)}
                for source in sources
            ]
        return rules

    def security_groups(self, prefix: str) -> list[dict[str, Any]]:
        """One group a fleet that has hosts: [{"name", "description", "rules", "digest"}]."""
        found = []
        for fleet in sorted(self._fleets):
            rules = self.security_group(fleet, prefix)
            found.append(
                {
                    "name": prefix + fleet,
                    "description": group_description(fleet),
                    "rules": rules,
                    "digest": digest(rules),
                }
            )
        return found


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(str(text)))
    except ValueError as error:
        raise GroundcrewError(
            f"operators has '{text}', which is no address and no network ({error}). Write 203.0.113.7 or 203.0.113.0/24."
        ) from error


def group_description(fleet: str) -> str:
    """It cannot be changed later, so it says nothing that may change."""
    return f"Hosts of fleet {fleet}"


def _ranges(ports: Iterable[int]) -> list[int | str]:
    """Neighbours as one range: EC2 counts a rule for each."""
    ranges: list[list[int]] = []
    for port in sorted(set(ports)):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return [first if first == last else f"{first}-{last}" for first, last in ranges]


def _of(
    flows: Sequence[Mapping[str, Any]],
    environment: str,
    groups: Mapping[str, Sequence[str]],
    addresses: Mapping[str, str],
    operators: Iterable[str],
) -> Flows:
    prefix = f"{environment}_"
    fleets = {
        name[len(prefix) :]: hosts for name, hosts in groups.items() if name.startswith(prefix)
    }
    return Flows(flows, fleets, addresses, operators)


def allowed(host: str, *environment: Any) -> list[dict[str, Any]]:
    """See Flows.allowed; then flows, environment, groups, addresses, operators."""
    return _of(*environment).allowed(host)


def closed_to(host: str, *environment: Any) -> list[dict[str, Any]]:
    """See Flows.closed_to."""
    return _of(*environment).closed_to(host)


def security_groups(prefix: str, *environment: Any) -> list[dict[str, Any]]:
    """See Flows.security_groups."""
    return _of(*environment).security_groups(prefix)


def variant_ports(variants: Iterable[Mapping[str, Any]]) -> list[int]:
    """The ports of all variants on a host, both slots, gRPC too."""
    first = [int(v[key]) for v in variants for key in ("host_port", "grpc_port") if key in v]
    return sorted(port + slot for port in first for slot in (0, 1))


def service_ports(services: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """The ports of the team's services, both slots."""
    return sorted(int(service["port"]) + slot for service in services.values() for slot in (0, 1))
