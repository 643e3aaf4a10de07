"""What an environment has in the cloud: read in a few calls at once, by the tags and names that provisioning gives.

The hosts' network interfaces outlive their instances, so what must be known of a host when it is gone is written on them as tags:

- ``Built``: the machine (instance id, and locally the container) that was last configured, deployed and proven to its end
- ``Fingerprint``: the SHA-256 over what that machine was made of (fingerprint.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .errors import GroundcrewError

PROJECT = "groundcrew"
# Terminated ones do not count.
THERE = ("pending", "running", "stopping", "stopped")
LEAVING = "shutting-down"


class Cloud:
    """One environment through boto3. ``client`` gives a boto3 client for the name of a service."""

    def __init__(self, client: Callable[[str], Any], environment: str, bucket: str) -> None:
        self._client, self._environment, self._bucket = client, environment, bucket
        self._ec2 = client("ec2")
        self._ours = [
            {"Name": "tag:Project", "Values": [PROJECT]},
            {"Name": "tag:Environment", "Values": [environment]},
        ]

    def state(self) -> dict[str, Any]:
        """All of it: see the methods. Raises GroundcrewError where two things claim to be the same one."""
        parts: dict[str, Callable[[], Any]] = {
            "machines": self.machines,
            "network": self.network,
            "public_addresses": self.public_addresses,
            "security_groups": self.security_groups,
            "interfaces": self.interfaces,
            "volumes": self.volumes,
            "key": self.key,
            "roles": self.roles,
            "bucket": self.bucket,
            "repositories": self.repositories,
        }
        with ThreadPoolExecutor(len(parts)) as pool:
            running = {name: pool.submit(read) for name, read in parts.items()}
            found = {name: result.result() for name, result in running.items()}
        return {**found.pop("machines"), **found}

    def _tagged(self, operation: str, key: str, *more: dict[str, Any]) -> list[dict[str, Any]]:
        pages = self._ec2.get_paginator(operation).paginate(Filters=[*self._ours, *more])
        return [item for page in pages for item in page[key]]

    def machines(self) -> dict[str, Any]:
        """ "instances": host name -> id, state, instance_type, image_id, address, bootstrap_host_key. "leaving": the hosts whose
        instance is being terminated; it still holds the interface and the data volume."""
        states = {"Name": "instance-state-name", "Values": [*THERE, LEAVING]}
        found = [
            instance
            for reservation in self._tagged("describe_instances", "Reservations", states)
            for instance in reservation["Instances"]
        ]
        instances = _by_name(
            "instance",
            (
                (
                    tags(instance).get("Name", ""),
                    {
                        "id": instance["InstanceId"],
                        "state": instance["State"]["Name"],
                        "instance_type": instance["InstanceType"],
                        "image_id": instance["ImageId"],
                        "address": instance.get("PrivateIpAddress", ""),
                        "bootstrap_host_key": tags(instance).get("BootstrapHostKey", ""),
                    },
                )
                for instance in found
                if instance["State"]["Name"] != LEAVING
            ),
        )
        leaving = [tags(i).get("Name", "") for i in found if i["State"]["Name"] == LEAVING]
        return {"instances": instances, "leaving": leaving}

    def network(self) -> dict[str, Any]:
        """The network's id, its subnets by name, and whether it has a way out; empty before the first provisioning."""
        networks = self._tagged("describe_vpcs", "Vpcs")
        if not networks:
            return {}
        return {
            "id": networks[0]["VpcId"],
            "subnets": {
                tags(subnet).get("Name", ""): {"id": subnet["SubnetId"]}
                for subnet in self._tagged("describe_subnets", "Subnets")
            },
            # Made last of what leads out.
            "internet": any(
                nat["State"] in ("pending", "available")
                for nat in self._tagged("describe_nat_gateways", "NatGateways")
            ),
        }

    def public_addresses(self) -> dict[str, str]:
        """Host name -> the public address that outlives its instance."""
        found = self._ec2.describe_addresses(Filters=self._ours)["Addresses"]
        return {tags(address).get("Name", ""): address["PublicIp"] for address in found}

    def security_groups(self) -> dict[str, dict[str, str]]:
        """Name -> id, and the digest of the rules that were written last."""
        return {
            group["GroupName"]: {"id": group["GroupId"], "digest": tags(group).get("Flows", "")}
            for group in self._tagged("describe_security_groups", "SecurityGroups")
        }

    def interfaces(self) -> dict[str, dict[str, Any]]:
        """Host name -> id, groups, and what is kept of its last machine: built, fingerprint."""
        return _by_name(
            "network interface",
            (
                (
                    tags(interface).get("Name", ""),
                    {
                        "id": interface["NetworkInterfaceId"],
                        "groups": sorted(group["GroupId"] for group in interface["Groups"]),
                        "built": tags(interface).get("Built", ""),
                        "fingerprint": tags(interface).get("Fingerprint", ""),
                    },
                )
                for interface in self._tagged("describe_network_interfaces", "NetworkInterfaces")
            ),
        )

    def volumes(self) -> dict[str, dict[str, Any]]:
        """Name of a data volume -> id. Root volumes have the name of their instance, without the ending."""
        return _by_name(
            "data volume",
            (
                (tags(volume)["Name"], {"id": volume["VolumeId"]})
                for volume in self._tagged("describe_volumes", "Volumes")
                if tags(volume).get("Name", "").endswith("-data")
            ),
        )

    def key(self) -> bool:
        """Whether the deploy key is registered."""
        name = f"{PROJECT}-{self._environment}"
        found = self._ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": [name]}])
        return bool(found["KeyPairs"])

    def roles(self) -> dict[str, str]:
        """Name of a role of ours -> digest of its policies, which its description ends with."""
        prefix = f"{PROJECT}-{self._environment}-"
        return {
            role["RoleName"]: role.get("Description", "").rpartition(" ")[2]
            for page in self._client("iam").get_paginator("list_roles").paginate()
            for role in page["Roles"]
            if role["RoleName"].startswith(prefix)
        }

    def bucket(self) -> str | None:
        """Digest of the store's declared settings; None: it does not exist."""
        from botocore.exceptions import ClientError

        try:
            found = self._client("s3").get_bucket_tagging(Bucket=self._bucket)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchTagSet":
                return ""
            if code in ("NoSuchBucket", "404"):
                return None
            raise
        return next((tag["Value"] for tag in found["TagSet"] if tag["Key"] == "Declared"), "")

    def repositories(self) -> list[str]:
        """Names of the image repositories below our prefix."""
        pages = self._client("ecr").get_paginator("describe_repositories").paginate()
        return sorted(
            repository["repositoryName"]
            for page in pages
            for repository in page["repositories"]
            if repository["repositoryName"].startswith(f"{PROJECT}/")
        )


def tags(item: Mapping[str, Any]) -> dict[str, str]:
    """The tags of something that EC2 described; network interfaces call them otherwise."""
    return {tag["Key"]: tag["Value"] for tag in item.get("Tags") or item.get("TagSet") or []}


def _by_name(what: str, found: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    named: dict[str, dict[str, Any]] = {}
    for name, item in found:
        if name in named:
            raise GroundcrewError(
                f"two are called {name}: the {what}s {named[name]['id']} and {item['id']}. Decide which one is right and remove the "
                "Name tag of the other: aws ec2 delete-tags --resources <id> --tags Key=Name"
            )
        named[name] = item
    return named
