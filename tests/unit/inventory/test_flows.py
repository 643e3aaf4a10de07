"""Who may talk to whom, rendered from one declaration."""

from __future__ import annotations

from typing import Any

import pytest
from groundcrew.errors import GroundcrewError
from groundcrew.flows import NEVER, Flows, closed_to, service_ports, variant_ports

FLOWS: list[dict[str, Any]] = [
    {"name": "clients", "from": ["world"], "to": ["gateway"], "ports": [443]},
    {"name": "logins", "from": ["operators"], "to": ["all"], "ports": [22]},
    {"name": "predictions", "from": ["gateway"], "to": ["prediction"], "ports": [18080, 18081]},
    {"name": "metrics", "from": ["monitoring"], "to": ["all"], "ports": [9100]},
    {"name": "alerts", "from": [], "to": ["monitoring"], "ports": [9090]},
]
FLEETS = {"gateway": ["g"], "prediction": ["p1", "p2"], "monitoring": ["b"], "batch": ["b"]}
ADDRESSES = {"g": "10.0.0.1", "p1": "10.0.0.2", "p2": "10.0.0.3", "b": "10.0.0.4"}


def flows(**more: Any) -> Flows:
    given = {"flows": FLOWS, "operators": ["198.51.100.0/24"], **more}
    return Flows(given["flows"], FLEETS, ADDRESSES, given["operators"])


def test_a_host_lets_in_what_leads_to_its_fleets() -> None:
    assert flows().allowed("g") == [
        {"name": "clients", "ports": [443]},
        {"name": "logins", "ports": [22], "sources": ["198.51.100.0/24"]},
        {"name": "metrics", "ports": [9100], "sources": ["10.0.0.4"]},
    ]
    assert flows().allowed("p1")[1] == {
        "name": "predictions",
        "ports": [18080, 18081],
        "sources": ["10.0.0.1"],
    }
    # Nobody but the host itself asks for alerts.
    assert [rule["name"] for rule in flows().allowed("b")] == ["logins", "metrics"]


def test_what_no_flow_opens_must_refuse() -> None:
    def ports(source: str, target: str) -> set[int]:
        found = flows().closed_to(source)
        assert all(probe["address"] == ADDRESSES[probe["host"]] for probe in found)
        return {probe["port"] for probe in found if probe["host"] == target}

    assert ports("b", "p1") == {22, 18080, 18081} | set(NEVER), "metrics are open to it"
    assert ports("g", "p1") == {22, 9100} | set(NEVER), "predictions are open to it"
    assert ports("p1", "p2") == {22, 9100, 18080, 18081} | set(NEVER)
    assert ports("p1", "g") == {22, 9100} | set(NEVER), "anybody may ask the gateway"
    assert ports("p1", "b") == {22, 9100, 9090} | set(NEVER)
    assert ports("p1", "p1") == set()
    assert {probe["what"] for probe in flows().closed_to("p1")} >= {"predictions", "Docker"}


def test_security_groups_name_fleets() -> None:
    assert flows().security_group("gateway", "groundcrew-test-") == [
        {"proto": "tcp", "ports": [443], "rule_desc": "clients", "cidr_ip": ["0.0.0.0/0"]},
        {"proto": "tcp", "ports": [22], "rule_desc": "logins", "cidr_ip": ["198.51.100.0/24"]},
        {
            "proto": "tcp",
            "ports": [9100],
            "rule_desc": "metrics",
            "group_name": "groundcrew-test-monitoring",
            "group_desc": "Hosts of fleet monitoring",
        },
    ]
    assert flows().security_group("prediction", "x-")[1]["ports"] == ["18080-18081"]
    assert len(flows(operators=[]).security_group("gateway", "x-")) == 2
    groups = flows().security_groups("x-")
    assert [group["name"] for group in groups] == [
        "x-batch",
        "x-gateway",
        "x-monitoring",
        "x-prediction",
    ]
    # A change of a flow changes the groups that it leads to, and no other.
    changed = flows(flows=[*FLOWS[:2], {**FLOWS[2], "ports": [1]}, *FLOWS[3:]]).security_groups(
        "x-"
    )
    differ = [a["name"] for a, b in zip(groups, changed, strict=True) if a["digest"] != b["digest"]]
    assert differ == ["x-prediction"]


def test_an_environment_need_not_have_every_fleet() -> None:
    groups = {"one": ["h"], "one_gateway": ["h"], "other_prediction": ["x"]}
    assert closed_to("h", FLOWS, "one", groups, {"h": "10.0.0.9"}, []) == []


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        ({"name": "x", "from": [], "to": []}, "flow 'x' lacks ports"),
        ({"name": "x", "from": [], "to": [], "ports": [], "port": 1}, "unknown key port"),
        ({"name": "x", "from": [], "to": [], "ports": [70000]}, "port 70000"),
    ],
)
def test_a_flow_that_cannot_be_is_named(flow: dict[str, Any], said: str) -> None:
    with pytest.raises(GroundcrewError, match=said):
        flows(flows=[flow])


def test_ports_are_those_of_both_slots() -> None:
    variants = [{"host_port": 18080}, {"host_port": 10000, "grpc_port": 20000}]
    assert variant_ports(variants) == [10000, 10001, 18080, 18081, 20000, 20001]
    assert service_ports({"page": {"port": "8000"}}) == [8000, 8001]


def test_operators_are_networks() -> None:
    assert flows(operators=["10.0.0.254"]).allowed("p1")[0]["sources"] == ["10.0.0.254/32"]
    with pytest.raises(GroundcrewError, match=r"'office'.*Write 203"):
        flows(operators=["office"])
