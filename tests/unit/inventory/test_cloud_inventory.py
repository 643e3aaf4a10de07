"""inventories/cloud: what the cloud has, by the tags of its instances."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).resolve().parents[3]
FILE = "inventories/cloud/aws_ec2.yml"
REGION = "eu-west-1"
ADDRESS = "172.31.0.77"
HOSTS = {
    "prod-prediction-1": {"Project": "groundcrew", "Environment": "prod", "Fleet": "prediction"},
    "staging-gateway-1": {"Project": "groundcrew", "Environment": "staging", "Fleet": "gateway"},
    "prod-prediction-2": {"Project": "groundcrew", "Environment": "prod", "Fleet": "prediction"},
    "foreign": {"Project": "another", "Environment": "prod", "Fleet": "prediction"},
}


@pytest.fixture(scope="module")
def cloud() -> Iterator[dict[str, str]]:
    """The environment variables of somebody who looks: as controller_environment has them."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    ec2: Any = boto3.client(
        "ec2",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    image = ec2.describe_images()["Images"][0]["ImageId"]
    ids = {}
    for name, tags in HOSTS.items():
        every = [{"Key": key, "Value": value} for key, value in {"Name": name, **tags}.items()]
        reply = ec2.run_instances(
            ImageId=image,
            InstanceType="m5.large",
            PrivateIpAddress=ADDRESS,
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": every}],
        )
        ids[name] = reply["Instances"][0]["InstanceId"]
    ec2.stop_instances(InstanceIds=[ids["staging-gateway-1"]])
    ec2.terminate_instances(InstanceIds=[ids["prod-prediction-2"]])
    yield {
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_URL": endpoint,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "NO_PROXY": "*",
    }
    server.stop()


def inventory(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """ansible-inventory with this and no other variable of AWS."""
    rest = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        [str(Path(sys.executable).parent / "ansible-inventory"), *arguments],
        cwd=ROOT,
        env={**rest, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def found(cloud: dict[str, str]) -> dict[str, Any]:
    """What ansible-inventory lists."""
    done = inventory(cloud, "-i", FILE, "--list")
    assert done.returncode == 0, done.stderr
    # A string of the cloud's is marked, so that Ansible never takes it for a template.
    return dict(
        json.loads(done.stdout, object_hook=lambda item: item.get("__ansible_unsafe", item))
    )


def test_hosts_are_grouped_by_environment_and_fleet(found: dict[str, Any]) -> None:
    groups = {name: group["hosts"] for name, group in found.items() if "hosts" in group}
    assert {name: sorted(hosts) for name, hosts in groups.items()} == {
        "aws_ec2": ["prod-prediction-1", "staging-gateway-1"],
        "environment_prod": ["prod-prediction-1"],
        "environment_staging": ["staging-gateway-1"],
        "fleet_gateway": ["staging-gateway-1"],
        "fleet_prediction": ["prod-prediction-1"],
    }


def test_a_host_says_what_it_is(found: dict[str, Any]) -> None:
    variables = found["_meta"]["hostvars"]
    # Neither another project's nor one that is terminated.
    assert set(variables) == {"prod-prediction-1", "staging-gateway-1"}
    assert variables["prod-prediction-1"]["instance_state"] == "running"
    host = variables["staging-gateway-1"]
    assert host["instance_type"] == "m5.large" and host["instance_state"] == "stopped"
    assert host["private_address"] == ADDRESS
    assert host["launch_time"].startswith("20")
    # Words to which Ansible gives a meaning of its own.
    assert not {"tags", "state", "ansible_host", "environment"} & set(host)


def test_without_a_region_it_says_how_to_name_one(cloud: dict[str, str]) -> None:
    nowhere = {name: text for name, text in cloud.items() if not name.endswith("REGION")}
    done = inventory(nowhere, "-i", FILE, "--list")
    assert done.returncode != 0
    assert "AWS_REGION=eu-west-1 ansible-inventory" in " ".join(done.stderr.split())


def test_deploys_do_not_see_it(cloud: dict[str, str]) -> None:
    done = inventory(cloud, "--list")
    assert done.returncode == 0, done.stderr
    assert not {"aws_ec2", "environment_prod"} & set(json.loads(done.stdout))
