"""Which hosts are rebuilt, what is kept of one that is gone, and what a new machine must have again."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from groundcrew import host_record, rebuild
from groundcrew.cloud import Cloud
from groundcrew.errors import GroundcrewError
from moto import mock_aws

RUNNING, STOPPED = {"state": "running"}, {"state": "stopped"}


@pytest.mark.parametrize(
    ("instance", "machine", "built", "reachable", "verdict"),
    [
        (None, "", "i-1", None, "missing"),
        (STOPPED, "i-1", "i-1", None, "stopped"),
        ({"state": "stopping"}, "i-1", "i-1", None, "stopped"),
        (RUNNING, "i-1", "i-1", False, "unreachable"),
        (RUNNING, "i-2", "i-1", True, "unfinished"),
        (RUNNING, "i-1", "", True, "unfinished"),
        # Nobody has logged in to it yet: it may be starting.
        (RUNNING, "i-2", "i-1", None, "unfinished"),
        (RUNNING, "i-1", "i-1", True, "healthy"),
    ],
)
def test_verdicts(
    instance: dict[str, str] | None, machine: str, built: str, reachable: bool | None, verdict: str
) -> None:
    assert rebuild.verdict(instance, machine, built, reachable) == verdict
    assert verdict in rebuild.REMEDY


def test_gone_is_what_was_finished_once() -> None:
    state = {
        "instances": {"a": RUNNING, "b": STOPPED},
        "interfaces": {name: {"built": "i"} for name in "abc"} | {"new": {"built": ""}},
    }
    assert rebuild.gone(["a", "b", "c", "new", "newer"], state) == ["b", "c"]


def test_lines_say_what_happens_to_whom() -> None:
    assert rebuild.lines({"a": "healthy"}) == ["All 1 hosts are healthy: nothing to rebuild."]
    text = rebuild.lines({"a": "healthy", "bb": "missing", "c": "stopped"})
    assert text[0].startswith("bb  missing") and text[1].startswith("c   stopped")
    assert text[2] == "1 of 3 hosts are healthy and left alone"


PARTS = {"system": "Debian 12", "conda/x": "1", "kernel": "6.1", "package/openssl": "3.0.1"}


def record(machine: str, releases: dict[str, str] | None = None, **parts: str) -> dict[str, Any]:
    return host_record.made(machine, {**PARTS, **parts}, releases or {"digits-1": "r1"})


def test_a_new_machine_has_to_be_what_the_old_one_was() -> None:
    before = record("i-1")
    assert "same fingerprint" in host_record.compare("h", before, record("i-2"))
    patched = host_record.compare("h", before, record("i-2", **{"package/openssl": "3.0.2"}))
    assert "package/openssl: 3.0.1 -> 3.0.2" in patched
    with pytest.raises(GroundcrewError, match=r"conda/x: 1 -> 2.*accept_fingerprint"):
        host_record.compare("h", before, record("i-2", **{"conda/x": "2"}))
    with pytest.raises(GroundcrewError, match="release/digits-1: r1 -> r2"):
        host_record.compare("h", before, record("i-2", {"digits-1": "r2"}))
    # The same machine may change: that is what deploys do.
    assert host_record.compare("h", before, record("i-1", **{"conda/x": "2"})) == "the same machine"
    assert "first time" in host_record.compare("h", {}, before)


@mock_aws
def test_a_record_outlives_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3, ec2 = boto3.client("s3"), boto3.client("ec2")
    s3.create_bucket(Bucket="store")
    assert host_record.read(s3, "store", "h") == {}
    host_record.write(s3, "store", "h", record("i-1"))
    assert host_record.read(s3, "store", "h") == record("i-1")
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ours = {"Project": "groundcrew", "Environment": "test"}

    def tagged(kind: str, **more: str) -> list[dict[str, Any]]:
        tags = [{"Key": key, "Value": value} for key, value in {**ours, **more}.items()]
        return [{"ResourceType": kind, "Tags": tags}]

    interface = ec2.create_network_interface(
        SubnetId=subnet, TagSpecifications=tagged("network-interface", Name="h", Built="i-1")
    )["NetworkInterface"]
    cloud = Cloud(boto3.client, "test", "store")
    state = cloud.state()
    assert state["interfaces"]["h"]["built"] == "i-1" and state["instances"] == {}
    assert state["bucket"] == "" and state["network"] == {}
    assert Cloud(boto3.client, "other", "none").state()["bucket"] is None
    ec2.create_network_interface(
        SubnetId=subnet, TagSpecifications=tagged("network-interface", Name="h")
    )
    with pytest.raises(
        GroundcrewError, match=rf"two are called h.*{interface['NetworkInterfaceId']}"
    ):
        cloud.interfaces()


def test_an_idle_host_that_stopped_itself_is_healthy_unless_it_is_meant():
    state = {"instances": {"a": {"state": "stopped"}, "b": {"state": "stopped"}}, "interfaces": {}}
    found = rebuild.verdicts(["a", "b"], state, {}, {}, sleepers=["a"])
    assert found == {"a": rebuild.HEALTHY, "b": rebuild.STOPPED}
    gone = {"instances": {}, "interfaces": {}}
    assert rebuild.verdicts(["a"], gone, {}, {}, sleepers=["a"]) == {"a": rebuild.MISSING}
