"""Instances as declared, a first login that leaves nothing to reuse, and hosts that follow the cloud."""

from __future__ import annotations

import base64
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud


def only_instance():
    (instance,) = cloud.instances()
    return instance


def user_data(instance_id):
    reply = cloud.client("ec2").describe_instance_attribute(
        InstanceId=instance_id, Attribute="userData"
    )
    return base64.b64decode(reply["UserData"]["Value"]).decode()


def test_instance_is_protected_and_tagged():
    instance = only_instance()
    attribute = cloud.client("ec2").describe_instance_attribute(
        InstanceId=instance["InstanceId"], Attribute="disableApiTermination"
    )
    assert attribute["DisableApiTermination"]["Value"] is True
    shutdown = cloud.client("ec2").describe_instance_attribute(
        InstanceId=instance["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
    )
    assert shutdown["InstanceInitiatedShutdownBehavior"]["Value"] == "stop"
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    (interface,) = instance["NetworkInterfaces"]
    assert interface["Attachment"]["DeleteOnTermination"] is False
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert (
        tags["Name"] == "test-1"
        and tags["Environment"] == "test"
        and tags["Project"] == "groundcrew"
    )
    attached = [disk["Ebs"]["VolumeId"] for disk in instance["BlockDeviceMappings"]]
    volumes = cloud.client("ec2").describe_volumes(VolumeIds=attached)["Volumes"]
    assert [(volume["VolumeType"], volume["Encrypted"]) for volume in volumes] == [
        ("gp3", True)
    ] * 2


def test_security_groups_let_in_what_the_flows_say():
    found = cloud.client("ec2").describe_security_groups(
        Filters=[{"Name": "tag:Environment", "Values": ["test"]}]
    )["SecurityGroups"]
    groups = {group["GroupName"].removeprefix("groundcrew-test-"): group for group in found}
    names = {group["GroupId"]: name for name, group in groups.items()}

    def let_in(fleet):
        """First port -> who."""
        return {
            rule["FromPort"]: {block["CidrIp"] for block in rule["IpRanges"]}
            | {names[pair["GroupId"]] for pair in rule["UserIdGroupPairs"]}
            for rule in groups[fleet]["IpPermissions"]
        }

    assert let_in("gateway")[443] == {"0.0.0.0/0"}
    assert let_in("gateway")[22] == {"10.78.0.1/32"}
    assert let_in("prediction")[18080] == {"gateway", "monitoring"}
    everywhere = [
        (fleet, port)
        for fleet in groups
        for port, sources in let_in(fleet).items()
        if "0.0.0.0/0" in sources
    ]
    assert everywhere == [("gateway", 443)]
    # The one host is in every fleet.
    (interface,) = only_instance()["NetworkInterfaces"]
    assert {group["GroupId"] for group in interface["Groups"]} == set(names)


def test_the_store_is_versioned_encrypted_and_closed():
    s3 = cloud.client("s3")
    assert s3.get_bucket_versioning(Bucket="groundcrew-test-store")["Status"] == "Enabled"
    assert s3.get_bucket_encryption(Bucket="groundcrew-test-store")[
        "ServerSideEncryptionConfiguration"
    ]["Rules"]
    assert all(
        s3.get_public_access_block(Bucket="groundcrew-test-store")[
            "PublicAccessBlockConfiguration"
        ].values()
    )


def test_hosts_have_the_role_of_their_fleet():
    assert only_instance()["IamInstanceProfile"]["Arn"].endswith("/groundcrew-test-everything")
    iam = cloud.client("iam")
    (role,) = iam.get_instance_profile(InstanceProfileName="groundcrew-test-everything")[
        "InstanceProfile"
    ]["Roles"]
    policy = iam.get_role_policy(RoleName=role["RoleName"], PolicyName="groundcrew")
    allowed = {
        action
        for statement in policy["PolicyDocument"]["Statement"]
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
    }
    assert "s3:GetObject" in allowed
    assert not [
        action for action in allowed if action.startswith(("ec2:", "iam:", "secretsmanager:"))
    ]


def test_there_is_a_way_out_and_a_public_address():
    ec2 = cloud.client("ec2")
    ours = [{"Name": "tag:Environment", "Values": ["test"]}]
    (nat,) = ec2.describe_nat_gateways(Filters=ours)["NatGateways"]
    (internet,) = ec2.describe_internet_gateways(Filters=ours)["InternetGateways"]
    ways = {}
    for table in ec2.describe_route_tables(Filters=ours)["RouteTables"]:
        (name,) = (tag["Value"] for tag in table["Tags"] if tag["Key"] == "Name")
        ways[name] = {
            route.get("NatGatewayId") or route.get("GatewayId")
            for route in table["Routes"]
            if route.get("DestinationCidrBlock") == "0.0.0.0/0"
        }
    assert ways == {
        "groundcrew-test": {nat["NatGatewayId"]},
        "groundcrew-test-public": {internet["InternetGatewayId"]},
    }
    (interface,) = only_instance()["NetworkInterfaces"]
    kept = [{"Name": "tag:Name", "Values": ["test-1"]}]
    (address,) = ec2.describe_addresses(Filters=kept)["Addresses"]
    assert address["NetworkInterfaceId"] == interface["NetworkInterfaceId"]


def test_a_data_volume_is_attached_and_outlives_the_instance():
    found = cloud.client("ec2").describe_volumes(
        Filters=[{"Name": "tag:Name", "Values": ["test-1-data"]}]
    )["Volumes"]
    assert [(v["Size"], v["VolumeType"], v["Encrypted"]) for v in found] == [(2, "gp3", True)]
    (attachment,) = found[0]["Attachments"]
    assert attachment["InstanceId"] == only_instance()["InstanceId"]
    # The container that stands for the host has it where the host would mount it.
    binds = cloud.docker("inspect", "-f", "{{json .HostConfig.Binds}}", "test-1")
    assert "groundcrew-test-test-1-data:/srv/data" in binds


def test_nothing_is_made_before_somebody_says_yes():
    iam, role = cloud.client("iam"), "groundcrew-test-everything"

    def spoil():
        iam.update_role_description(RoleName=role, Description="changed by hand")

    def described():
        return iam.get_role(RoleName=role)["Role"]["Description"]

    spoil()
    asked = cloud.playbook("playbooks/provision.yml", "-e", "provision_asks=true")
    said = " ".join(asked.stdout.split())
    assert asked.returncode != 0 and "-e approve=yes" in said
    assert "change role groundcrew-test-everything" in said
    assert described() == "changed by hand"
    looked = cloud.playbook("playbooks/provision.yml", "--check")
    assert looked.returncode == 0 and "change role" in " ".join(looked.stdout.split())
    assert described() == "changed by hand"
    approved = cloud.playbook(
        "playbooks/provision.yml", "-e", "provision_asks=true", "-e", "approve=yes"
    )
    assert approved.returncode == 0, approved.stdout[-3000:]
    assert described().startswith("Hosts of fleet everything")


def test_an_instance_that_is_not_declared_is_named_and_left():
    ec2 = cloud.client("ec2")
    tags = {"Project": "groundcrew", "Environment": "test", "Name": "test-9", "Fleet": "everything"}
    (stray,) = ec2.run_instances(
        ImageId=only_instance()["ImageId"],
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
        ],
    )["Instances"]
    try:
        done = cloud.playbook("playbooks/provision.yml")
        said = " ".join(done.stdout.split())
        assert done.returncode == 0 and stray["InstanceId"] in said
        assert "playbooks/retire.yml -l test -e host=test-9" in said
        assert len(cloud.instances()) == 2
    finally:
        ec2.terminate_instances(InstanceIds=[stray["InstanceId"]])


def test_known_hosts_holds_permanent_keys_only():
    lines = (cloud.BUILD / "ssh/known_hosts").read_text().splitlines()
    assert lines == [f"test-1,10.78.0.10 {cloud.secret('host-keys/test-1')['public']}"]
    assert (cloud.BUILD / "ssh/deploy_key").stat().st_mode & 0o777 == 0o600


def test_host_presents_the_permanent_key_alone():
    seen = subprocess.run(
        ["ssh-keyscan", "-T", "5", cloud.ADDRESS], capture_output=True, text=True, check=False
    ).stdout
    keys = {" ".join(line.split()[1:3]) for line in seen.splitlines() if not line.startswith("#")}
    assert keys == {cloud.secret("host-keys/test-1")["public"]}


def test_key_in_user_data_is_no_longer_accepted():
    """The key is readable in the cloud and on the host, so whoever holds it may pose as the host, in vain."""
    document = yaml.safe_load(user_data(only_instance()["InstanceId"]))
    private, public = (
        document["ssh_keys"]["ed25519_private"],
        document["ssh_keys"]["ed25519_public"],
    )
    assert public not in (cloud.BUILD / "ssh/known_hosts").read_text()
    on_host = "sudo grep -rlF ssh_keys: /var/lib/cloud/instance/user-data.txt"
    assert cloud.ssh(on_host).returncode == 0, "the host can read it: that is why it must not count"
    # An impostor at the host's address, on another port, with that key.
    started = cloud.ssh(
        f"printf '%s' {shlex.quote(private)} | sudo install -m 0600 /dev/stdin /root/bootstrap &&"
        " sudo /usr/sbin/sshd -f /dev/null -h /root/bootstrap -p 2222 -o PidFile=/run/impostor.pid"
    )
    assert started.returncode == 0, started.stderr
    try:
        seen = subprocess.run(
            ["ssh-keyscan", "-p", "2222", cloud.ADDRESS],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        assert public in seen
        refused = cloud.ssh("true", port=2222)
        assert refused.returncode == 255
        assert "Host key verification failed" in refused.stderr
    finally:
        cloud.ssh("sudo sh -c 'kill $(cat /run/impostor.pid); rm /root/bootstrap'")
    assert cloud.ssh("true").returncode == 0


@pytest.mark.parametrize(
    ("hosts", "word"),
    [
        ([("a", "10.78.0.10"), ("b", "10.78.0.10")], "share a name or an address"),
        ([("a", "10.78.0.10"), ("a", "10.78.0.11")], "share a name or an address"),
    ],
)
def test_refuses_two_hosts_with_one_name_or_address(hosts, word, tmp_path):
    play = tmp_path / "play.yml"
    play.write_text(
        yaml.safe_dump(
            [
                {
                    "hosts": "all",
                    "gather_facts": False,
                    "tasks": [
                        {"include_role": {"name": "ec2_fleet", "tasks_from": "preflight.yml"}, "vars": {"ec2_fleet_hosts": [
                            {"name": name, "private_address": address} for name, address in hosts
                        ]}}
                    ],
                }
            ]
        )
    )  # fmt: skip
    done = cloud.playbook(str(play))
    assert done.returncode != 0 and word in " ".join((done.stdout + done.stderr).split())


def test_stopped_instance_stops_its_host_and_starts_it_again():
    ec2, instance = cloud.client("ec2"), only_instance()["InstanceId"]
    container = cloud.docker("inspect", "-f", "{{.Id}}", "test-1")
    ec2.stop_instances(InstanceIds=[instance])
    cloud.playbook("playbooks/provision.yml")
    assert (
        cloud.docker("inspect", "-f", "{{.Id}} {{.State.Running}}", "test-1")
        == f"{container} false"
    )
    ec2.start_instances(InstanceIds=[instance])
    done = cloud.playbook("playbooks/provision.yml")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (
        cloud.docker("inspect", "-f", "{{.Id}} {{.State.Running}}", "test-1") == f"{container} true"
    )


def test_terminated_instance_comes_back_as_the_same_host():
    """Last: it replaces the host."""
    ec2, old = cloud.client("ec2"), only_instance()
    before, (interface,) = old["InstanceId"], old["NetworkInterfaces"]
    permanent = cloud.secret("host-keys/test-1")["public"]
    ec2.modify_instance_attribute(InstanceId=before, DisableApiTermination={"Value": False})
    ec2.terminate_instances(InstanceIds=[before])
    done = cloud.playbook("playbooks/provision.yml")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    after = only_instance()
    assert after["InstanceId"] != before and after["PrivateIpAddress"] == cloud.ADDRESS
    (kept,) = after["NetworkInterfaces"]
    assert kept["NetworkInterfaceId"] == interface["NetworkInterfaceId"]
    assert (
        cloud.docker("inspect", "-f", '{{index .Config.Labels "groundcrew.instance"}}', "test-1")
        == after["InstanceId"]
    )
    # Strictly checked, with the permanent key: for a client it is the same host.
    assert cloud.secret("host-keys/test-1")["public"] == permanent
    assert cloud.ssh("hostname").stdout.strip() == "test-1"


def test_retiring_takes_the_name_twice_and_the_break_glass_role():
    """Last of all: it leaves no host."""
    known = only_instance()["InstanceId"]
    unconfirmed = cloud.playbook("playbooks/retire.yml")
    assert unconfirmed.returncode != 0 and "-e confirm=test-1" in unconfirmed.stdout
    nobody = cloud.playbook("playbooks/retire.yml", "-e", "host=test-7", "-e", "confirm=test-7")
    assert nobody.returncode != 0 and "no instance of 'test-7'" in " ".join(nobody.stdout.split())
    assert only_instance()["InstanceId"] == known
    roles = cloud.playbook("playbooks/identities.yml")
    assert roles.returncode == 0, roles.stdout[-3000:]
    again = cloud.playbook("playbooks/identities.yml")
    assert again.returncode == 0 and "changed=0" in again.stdout
    done = cloud.playbook("playbooks/retire.yml", "-e", "confirm=test-1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert cloud.instances() == []
    ec2 = cloud.client("ec2")
    ours = [
        {"Name": "tag:Environment", "Values": ["test"]},
        {"Name": "tag:Name", "Values": ["test-1"]},
    ]
    assert ec2.describe_network_interfaces(Filters=ours)["NetworkInterfaces"] == []
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "tag:Name", "Values": ["test-1-data"]}])[
        "Volumes"
    ]
    assert volume["State"] == "available", "what it held is still there"
    assert "test-1" not in cloud.docker("ps", "--all", "--format", "{{.Names}}").split()
