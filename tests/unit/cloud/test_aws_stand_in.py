"""The AWS stand-in as it is run: a process that is killed and started again."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

PROGRAM = Path(__file__).parents[3] / "files" / "local_cloud" / "aws_stand_in.py"


@pytest.fixture(scope="module")
def is_read() -> Callable[[str, str, bytes], bool]:
    spec = importlib.util.spec_from_file_location("aws_stand_in", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[str, str, bytes], bool] = module.is_read
    return function


@pytest.mark.parametrize(
    ("method", "target", "body", "expected"),
    [
        # EC2 and its like: the action is in the form.
        ("POST", "", b"Action=DescribeInstances&Version=2016-11-15", True),
        ("POST", "", b"Version=2016-11-15&Action=GetConsoleOutput", True),
        ("POST", "", b"Action=RunInstances&ImageId=ami-1", False),
        ("POST", "", b"Action=TerminateInstances&InstanceId.1=i-1", False),
        ("POST", "", b"Action=CreateTags&Tag.1.Value=GetThis", False),
        # JSON services: the action is in a header.
        ("POST", "secretsmanager.BatchGetSecretValue", b"{}", True),
        ("POST", "secretsmanager.GetSecretValue", b"{}", True),
        ("POST", "secretsmanager.PutSecretValue", b'{"SecretString": "x.GetY"}', False),
        ("POST", "AmazonSSM.GetParameter", b"{}", True),
        ("POST", "AmazonSSM.PutParameter", b"{}", False),
        # S3: the method is the action.
        ("GET", "", b"", True),
        ("HEAD", "", b"", True),
        ("PUT", "", b"Action=DescribeInstances", False),
        ("DELETE", "", b"", False),
        ("POST", "", b"<Delete/>", False),
    ],
)
def test_reads_and_writes_are_told_apart(
    is_read: Callable[..., bool], method: str, target: str, body: bytes, expected: bool
) -> None:
    assert is_read(method, target, body) is expected


class StandIn:
    """The program, and clients of it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.process: subprocess.Popen[str] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> str:
        """Start it; returns its first line."""
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "127.0.0.1", str(self.port), str(self.state)],
            stdout=subprocess.PIPE,
            stderr=(self.state.parent / "errors").open("a"),
            text=True,
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=30)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="embedded",
            aws_secret_access_key="embedded",
        )

    def launch(self) -> str:
        ec2 = self.client("ec2")
        reply = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)
        return str(reply["Instances"][0]["InstanceId"])

    def instances(self) -> list[tuple[str, str, str]]:
        pages = self.client("ec2").get_paginator("describe_instances").paginate()
        return sorted(
            (i["InstanceId"], i["PrivateIpAddress"], i["State"]["Name"])
            for page in pages
            for reservation in page["Reservations"]
            for i in reservation["Instances"]
        )


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("NO_PROXY", "*")
    stand_in = StandIn(tmp_path / "state")
    yield stand_in
    stand_in.kill()


def test_everything_is_as_it_was_after_kill_9(cloud: StandIn) -> None:
    assert cloud.start().endswith(", 0 requests replayed\n")
    # A read before the first write makes EC2's own network, whose ids no replay may draw at another moment.
    assert cloud.instances() == []
    network = cloud.client("ec2").create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    first = cloud.launch()
    # A read between two writes must not move the identities of what comes after.
    before = cloud.instances()
    second = cloud.launch()
    secrets = cloud.client("secretsmanager")
    version = secrets.create_secret(Name="groundcrew/test/x", SecretString="old")["VersionId"]
    version = secrets.put_secret_value(SecretId="groundcrew/test/x", SecretString="new")[
        "VersionId"
    ]
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="store")
    s3.put_object(Bucket="store", Key="models/a b/1", Body=bytes(range(256)))
    s3.put_object(Bucket="store", Key="gone", Body=b"x")
    s3.delete_object(Bucket="store", Key="gone")
    cloud.client("ec2").terminate_instances(InstanceIds=[first])
    after = cloud.instances()
    assert [row[0] for row in before] == [first] and first != second
    cloud.kill()

    assert cloud.start().startswith(f"ready on 127.0.0.1:{cloud.port}, ")
    assert cloud.instances() == after
    assert network in [vpc["VpcId"] for vpc in cloud.client("ec2").describe_vpcs()["Vpcs"]]
    value = cloud.client("secretsmanager").get_secret_value(SecretId="groundcrew/test/x")
    assert (value["SecretString"], value["VersionId"]) == ("new", version)
    s3 = cloud.client("s3")
    assert s3.get_object(Bucket="store", Key="models/a b/1")["Body"].read() == bytes(range(256))
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="store")["Contents"]] == ["models/a b/1"]
    # What is new now gets an identity of its own.
    assert cloud.launch() not in (first, second)


@pytest.mark.parametrize("key", ["ü", "a%20b"])
def test_keys_that_an_address_must_encode_come_back(cloud: StandIn, key: str) -> None:
    cloud.start()
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="store")
    s3.put_object(Bucket="store", Key=key, Body=b"x")
    cloud.kill()
    cloud.start()
    contents = cloud.client("s3").list_objects_v2(Bucket="store")["Contents"]
    assert [o["Key"] for o in contents] == [key]


def test_a_torn_last_line_is_cut_off_and_the_rest_replayed(cloud: StandIn) -> None:
    cloud.start()
    kept = cloud.launch()
    cloud.launch()
    cloud.kill()
    log = cloud.state / "requests.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])

    assert cloud.start().endswith(f", {len(lines) - 1} requests replayed\n")
    assert [row[0] for row in cloud.instances()] == [kept]
    again = cloud.launch()
    cloud.kill()
    assert all(json.loads(line) for line in log.read_bytes().splitlines())
    cloud.start()
    assert sorted(row[0] for row in cloud.instances()) == sorted([kept, again])


def test_the_log_holds_writes_alone_and_is_private(cloud: StandIn) -> None:
    cloud.start()
    cloud.launch()
    log = cloud.state / "requests.jsonl"
    size = log.stat().st_size
    cloud.instances()
    cloud.client("secretsmanager").list_secrets()
    assert log.stat().st_size == size
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(os.stat(cloud.state).st_mode) == 0o700


def test_a_polite_stop_ends_it(cloud: StandIn) -> None:
    cloud.start()
    assert cloud.process is not None
    cloud.process.terminate()
    assert cloud.process.wait(timeout=30) == 0


def test_another_checkouts_is_not_taken_for_ours(cloud: StandIn, tmp_path: Path) -> None:
    """It has another cloud: to deploy into that would be to deploy over somebody else's hosts."""
    cloud.start()

    def start(state: Path) -> subprocess.CompletedProcess[str]:
        words = [PROGRAM.with_name("start-aws-stand-in"), sys.executable, "127.0.0.1"]
        return subprocess.run(
            [*map(str, words), str(cloud.port), str(state)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    ours = start(cloud.state)
    assert (ours.returncode, ours.stdout) == (0, "running\n")
    theirs = start(tmp_path / "other")
    assert theirs.returncode == 1
    assert cloud.process is not None
    assert f"process {cloud.process.pid}" in theirs.stderr and str(cloud.state) in theirs.stderr
    assert cloud.instances() == []


def test_a_request_that_moto_cannot_do_is_no_end_of_its_memory(cloud: StandIn) -> None:
    cloud.start()
    instance = cloud.launch()
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]
    with pytest.raises(Exception, match="500|Internal Server Error|parse response"):
        cloud.client("ec2").create_image(InstanceId=instance, Name="image", TagSpecifications=tags)
    after = cloud.launch()
    before = cloud.instances()
    cloud.kill()
    assert cloud.start().startswith("ready")
    assert cloud.instances() == before and {i[0] for i in before} == {instance, after}
