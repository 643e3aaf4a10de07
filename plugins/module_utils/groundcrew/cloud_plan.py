"""What provisioning will do, and what that costs: the declared environment against what Cloud.state() found.

An item of a plan is {"action", "what", "name", "detail", "monthly"}; `monthly` is in the currency of the price file, None where that has
no price. Actions: create and change are done by provisioning; differs and orphan are only reported, because mending them terminates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

HOURS_A_MONTH = 730
# What a repeated name of the cloud is called in a plan.
CREATE, CHANGE, DIFFERS, ORPHAN = "create", "change", "differs", "orphan"


def digest(of: Any) -> str:
    """A short hash of something declared; kept on what was made of it, so that a change is seen without comparing every part."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def monthly(host: Mapping[str, Any], prices: Mapping[str, Any], region: str) -> float | None:
    """What a host costs a month, on demand, with its volumes; None where the price file does not know it.

    host: instance_type, root_volume_gb, data_volume_gb. prices: {"regions": {region: {"instance_hour": {type: price}, "gp3_gb_month"}}}.
    """
    known = prices.get("regions", {}).get(region, {})
    hour = known.get("instance_hour", {}).get(host["instance_type"])
    if hour is None:
        return None
    disks = int(host.get("root_volume_gb", 0)) + int(host.get("data_volume_gb", 0))
    return round(float(hour) * HOURS_A_MONTH + disks * float(known["gp3_gb_month"]), 2)


def plan(
    state: Mapping[str, Any],
    declared: Mapping[str, Any],
    prices: Mapping[str, Any],
    region: str,
    everything: bool = True,
) -> dict[str, Any]:
    """Compare.

    state: as Cloud.state() returns it. declared: hosts, subnets, internet, security_groups, roles, bucket, repositories; a digest is
    what tells a changed one. everything: whether `hosts` are all of the environment, so that others are orphans.
    Returns {"items", "launch" and "interfaces": hosts whose instance or network interface is to be made or changed, "foundation":
    whether anything but instances is to be made or written, "monthly": {"now", "after", "unknown": instance types without a price}}.
    """
    hosts = {host["name"]: host for host in declared["hosts"]}
    items = _foundation(declared, state)
    foundation = bool(items)
    launch, interfaces, cost_now, cost_after = [], [], 0.0, 0.0
    unknown = set()
    for name, host in hosts.items():
        if fault := _interface(declared["group_prefix"], host, state):
            interfaces.append(name)
            items.append(fault)
        if host["data_volume_gb"] and f"{name}-data" not in state["volumes"]:
            foundation = True
            size = f"{host['data_volume_gb']} GB"
            items.append(_item(CREATE, "data volume", f"{name}-data", size))
        instance = state["instances"].get(name)
        price = monthly(host, prices, region)
        if instance is None:
            launch.append(name)
            detail = f"{host['instance_type']}{', spot' if host.get('spot') else ''}, {host['image_id']}, {host['private_address']}"
            items.append(_item(CREATE, "instance", name, detail, price))
        else:
            present = monthly({**host, "instance_type": instance["instance_type"]}, prices, region)
            cost_now += present or 0.0
            items += _differences(name, host, instance)
            price = present
            if present is None:
                unknown.add(instance["instance_type"])
        if price is None:
            unknown.add(host["instance_type"])
        cost_after += price or 0.0
    if everything:
        for name in sorted((set(state["instances"]) | set(state["interfaces"])) - set(hosts)):
            instance = state["instances"].get(name, {})
            detail = instance.get("id") or "its network interface alone"
            items.append(_item(ORPHAN, "host", name, detail))
    return {
        "items": items,
        "launch": launch,
        "interfaces": interfaces,
        "foundation": foundation or bool(interfaces),
        "monthly": {
            "now": round(cost_now, 2),
            "after": round(cost_after, 2),
            "unknown": sorted(unknown),
        },
    }


def _item(
    action: str, what: str, name: str, detail: str, cost: float | None = None
) -> dict[str, Any]:
    return {"action": action, "what": what, "name": name, "detail": detail, "monthly": cost}


def _foundation(declared: Mapping[str, Any], state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Everything that is not an instance."""
    items = []
    network = state["network"]
    if not network:
        items.append(_item(CREATE, "network", declared["network"], "for this environment alone"))
    for subnet in declared["subnets"]:
        if subnet["name"] not in network.get("subnets", {}):
            items.append(_item(CREATE, "subnet", subnet["name"], subnet["cidr"]))
    if declared["internet"] and not network.get("internet"):
        detail = "internet gateway, NAT gateway, routes"
        items.append(_item(CREATE, "way out", declared["network"], detail))
    if declared["internet"]:
        for host in declared["hosts"]:
            if host["public"] and host["name"] not in state["public_addresses"]:
                detail = "kept when the instance is gone"
                items.append(_item(CREATE, "public address", host["name"], detail))
    if not state["key"]:
        items.append(_item(CREATE, "key pair", declared["key"], "the deploy key's public half"))
    for what, kind, there in (
        (
            "security group",
            "security_groups",
            {n: g["digest"] for n, g in state["security_groups"].items()},
        ),
        ("role", "roles", state["roles"]),
    ):
        for wanted in declared[kind]:
            name = wanted["name"]
            if name not in there:
                items.append(_item(CREATE, what, name, wanted["description"]))
            elif there[name] != wanted["digest"]:
                items.append(_item(CHANGE, what, name, "not as it is declared now"))
    bucket = declared["bucket"]
    if state["bucket"] is None:
        items.append(_item(CREATE, "bucket", bucket["name"], "versioned, encrypted, closed"))
    elif state["bucket"] != bucket["digest"]:
        items.append(_item(CHANGE, "bucket", bucket["name"], "not as it is declared now"))
    for name in declared["repositories"]:
        if name not in state["repositories"]:
            items.append(_item(CREATE, "image repository", name, "scanned on push"))
    return items


def _interface(
    prefix: str, host: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What is to be done about a host's network interface, if anything."""
    name = host["name"]
    there = state["interfaces"].get(name)
    if there is None:
        return _item(CREATE, "network interface", name, host["private_address"])
    groups = {
        state["security_groups"].get(prefix + fleet, {}).get("id") for fleet in host["fleets"]
    }
    if groups != set(there["groups"]):
        return _item(CHANGE, "network interface", name, "its fleets are others now")
    return None


def _differences(
    name: str, host: Mapping[str, Any], instance: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What only a new instance would mend. A baked image is of a host that started from the fleet's own, so that one is as good."""
    good = {
        "instance_type": [host["instance_type"]],
        "image_id": [host["image_id"], host.get("base_image_id")],
    }
    return [
        _item(DIFFERS, "instance", name, f"{what} {instance[key]}, declared {host[key]}")
        for key, what in (("instance_type", "type"), ("image_id", "image"))
        if instance[key] not in good[key]
    ]


def lines(
    found: Mapping[str, Any], environment: str, prices: Mapping[str, Any], region: str
) -> list[str]:
    """A plan for people. Empty when there is nothing to say."""
    items: Sequence[Mapping[str, Any]] = found["items"]
    if not items:
        return []
    text = [f"Plan for {environment}:"]
    widths = [max(len(item[key]) for item in items) for key in ("action", "what", "name")]
    for item in items:
        cells = [item[key].ljust(w) for key, w in zip(("action", "what", "name"), widths)]
        cost = "" if item["monthly"] is None else f"  +{item['monthly']:.2f} a month"
        text.append(("  " + "  ".join([*cells, item["detail"]]) + cost).rstrip())
        if item["action"] == ORPHAN:
            text.append(
                f"    not in the inventory: ansible-playbook playbooks/retire.yml -l {environment} -e host={item['name']}"
            )
        if item["action"] == DIFFERS:
            text.append(
                f"    left as it is: ansible-playbook playbooks/rebuild.yml -l {environment} -e replace={item['name']}"
            )
    cost = found["monthly"]
    text.append(
        f"  {cost['now']:.2f} {prices['currency']} a month now, {cost['after']:.2f} after "
        f"({cost['after'] - cost['now']:+.2f}; {region}, on demand, prices of {prices['date']})"
    )
    if cost["unknown"]:
        text.append(
            f"  without {', '.join(cost['unknown'])}: no price in files/prices.yml for {region}"
        )
    return text
