"""What provisioning says that it will do: made, changed, left, orphaned, and what it costs."""

from __future__ import annotations

from typing import Any

from groundcrew import cloud_plan

PRICES = {
    "date": "2026-01-02",
    "currency": "USD",
    "regions": {"here": {"gp3_gb_month": 0.1, "instance_hour": {"c7i.large": 0.1}}},
}


def host(name: str = "a-1", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "private_address": "10.0.0.4",
        "instance_type": "c7i.large",
        "image_id": "ami-1",
        "fleet": "web",
        "fleets": ["web"],
        "root_volume_gb": 30,
        "data_volume_gb": 0,
        "public": False,
        "spot": False,
        **more,
    }


def declared(*hosts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "hosts": list(hosts),
        "network": "n",
        "key": "k",
        "group_prefix": "p-",
        "subnets": [{"name": "s", "cidr": "10.0.0.0/24"}],
        "internet": False,
        "security_groups": [{"name": "p-web", "description": "Web", "digest": "d1"}],
        "roles": [{"name": "r-web", "description": "Web", "digest": "d2"}],
        "bucket": {"name": "b", "digest": "d3"},
        "repositories": [],
        **more,
    }


def there(**more: Any) -> dict[str, Any]:
    """An environment as `declared(host())` wants it."""
    return {
        "instances": {
            "a-1": {
                "id": "i-1",
                "state": "running",
                "instance_type": "c7i.large",
                "image_id": "ami-1",
            }
        },
        "network": {"id": "vpc", "subnets": {"s": {"id": "sub", "zone": "z"}}, "internet": False},
        "public_addresses": {},
        "security_groups": {"p-web": {"id": "sg-1", "digest": "d1"}},
        "interfaces": {"a-1": {"id": "eni-1", "groups": ["sg-1"], "built": "", "fingerprint": ""}},
        "volumes": {},
        "key": True,
        "roles": {"r-web": "d2"},
        "bucket": "d3",
        "repositories": [],
        **more,
    }


EMPTY = {
    "instances": {},
    "network": {},
    "public_addresses": {},
    "security_groups": {},
    "interfaces": {},
    "volumes": {},
    "key": False,
    "roles": {},
    "bucket": None,
    "repositories": [],
}


def plan(state: dict[str, Any], wanted: dict[str, Any], everything: bool = True) -> dict[str, Any]:
    return cloud_plan.plan(state, wanted, PRICES, "here", everything)


def said(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(item["action"], item["what"], item["name"]) for item in found["items"]}


def test_what_is_as_declared_needs_nothing() -> None:
    found = plan(there(), declared(host()))
    assert found["items"] == [] and found["launch"] == [] and not found["foundation"]
    assert cloud_plan.lines(found, "prod", PRICES, "here") == []


def test_an_empty_account_gets_all_of_it() -> None:
    wanted = declared(
        host(data_volume_gb=10, public=True), internet=True, repositories=["groundcrew/x"]
    )
    found = plan(EMPTY, wanted)
    assert said(found) == {
        ("create", "network", "n"),
        ("create", "subnet", "s"),
        ("create", "way out", "n"),
        ("create", "public address", "a-1"),
        ("create", "key pair", "k"),
        ("create", "security group", "p-web"),
        ("create", "role", "r-web"),
        ("create", "bucket", "b"),
        ("create", "image repository", "groundcrew/x"),
        ("create", "network interface", "a-1"),
        ("create", "data volume", "a-1-data"),
        ("create", "instance", "a-1"),
    }
    assert found["launch"] == ["a-1"] and found["interfaces"] == ["a-1"] and found["foundation"]
    # 730 hours at 0.10, and 40 GB at 0.10.
    assert found["monthly"] == {"now": 0.0, "after": 77.0, "unknown": []}
    text = "\n".join(cloud_plan.lines(found, "prod", PRICES, "here"))
    assert "+77.00" in text and "prices of 2026-01-02" in text


def test_a_change_is_one_and_names_what_changed() -> None:
    state = there(
        security_groups={"p-web": {"id": "sg-1", "digest": "old"}},
        roles={"r-web": "old"},
        bucket="old",
    )
    assert said(plan(state, declared(host()))) == {
        ("change", "security group", "p-web"),
        ("change", "role", "r-web"),
        ("change", "bucket", "b"),
    }


def test_an_interface_follows_the_fleets_of_its_host() -> None:
    state = there(interfaces={"a-1": {"id": "eni-1", "groups": ["sg-other"]}})
    found = plan(state, declared(host()))
    assert said(found) == {("change", "network interface", "a-1")} and found["foundation"]


def test_another_type_or_image_is_told_and_left() -> None:
    found = plan(there(), declared(host(instance_type="c7i.8xlarge", image_id="ami-2")))
    assert said(found) == {("differs", "instance", "a-1")}
    assert found["launch"] == [] and not found["foundation"]
    text = "\n".join(cloud_plan.lines(found, "prod", PRICES, "here"))
    assert "playbooks/rebuild.yml -l prod -e replace=a-1" in text
    # It costs what it is, not what it would be.
    assert "76.00 USD a month now, 76.00 after" in text


def test_what_has_no_price_is_named_instead_of_a_wrong_sum() -> None:
    found = plan(EMPTY, declared(host(instance_type="c7i.8xlarge")))
    assert found["monthly"] == {"now": 0.0, "after": 0.0, "unknown": ["c7i.8xlarge"]}
    assert "without c7i.8xlarge" in "\n".join(cloud_plan.lines(found, "prod", PRICES, "here"))


def test_what_is_not_declared_is_an_orphan_only_when_all_hosts_are_meant() -> None:
    state = there()
    state["instances"]["b-1"] = {**state["instances"]["a-1"], "id": "i-2"}
    assert ("orphan", "host", "b-1") in said(plan(state, declared(host())))
    assert said(plan(state, declared(host()), everything=False)) == set()
    text = "\n".join(cloud_plan.lines(plan(state, declared(host())), "prod", PRICES, "here"))
    assert "playbooks/retire.yml -l prod -e host=b-1" in text


def test_two_groups_of_equal_rules_are_told_apart() -> None:
    wanted = declared(host())
    wanted["security_groups"].append({"name": "p-other", "description": "Other", "digest": "d1"})
    assert said(plan(there(), wanted)) == {("create", "security group", "p-other")}
