"""Containers as EC2 instances: for each running instance of the stand-in there is one container at its private address.

The cloud says what runs; this only follows. An instance that was terminated loses its container, a stopped one keeps it
stopped, a replaced one (same name and address, new instance id) gets a fresh container.
"""

from __future__ import annotations

import io
import socket
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .errors import GroundcrewError

LABEL = "groundcrew"
# What a baked machine image (AMI) is here: a container image of this name with the AMI's id as its tag, and a volume with what its
# Docker Engine had.
BAKED = "groundcrew/machine"
ENGINE = "/var/lib/docker"

# What systemd, sshd and a nested Docker Engine need. Less than --privileged: no SYS_RESOURCE (which some machines
# cannot give), no devices, no host namespaces but the control groups.
HOST_CONFIG: dict[str, Any] = {
    "CapAdd": ["ALL"],
    "CapDrop": ["SYS_RESOURCE"],
    "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
    # What the command line calls systempaths=unconfined: nested containers mount a /proc of their own.
    "MaskedPaths": [],
    "ReadonlyPaths": [],
    # Nested containers do not start in a private control group namespace (control groups v1).
    "CgroupnsMode": "host",
    "Binds": ["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
    "Tmpfs": {"/run": "", "/run/lock": ""},
    "RestartPolicy": {"Name": "unless-stopped"},
}


@dataclass(frozen=True)
class Instance:
    """One instance as the cloud reports it."""

    id: str
    name: str
    address: str
    state: str  # pending, running, stopping, stopped, shutting-down, terminated
    image_id: str = ""


@dataclass
class Plan:
    """What must happen to the containers, by host name."""

    create: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    start: list[str] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.create or self.remove or self.start or self.stop)


def plan(
    declared: list[str], instances: list[Instance], containers: dict[str, tuple[str, bool]]
) -> Plan:
    """Compare the cloud with the containers.

    ``declared`` are the inventory's host names, ``containers`` maps a host name to (instance id, whether it runs).
    Raises GroundcrewError when there are containers and the cloud knows nothing: it was lost, and following it would
    delete every host.
    """
    alive = {
        i.name: i for i in instances if i.state in ("pending", "running", "stopping", "stopped")
    }
    if containers and not instances:
        raise GroundcrewError(
            f"the AWS stand-in knows no instance, but the hosts {', '.join(sorted(containers))} are there: its memory is "
            "lost or belongs to another checkout. Nothing was deleted. Restore build/<environment>/cloud, or run "
            "'make clean' and then 'make deploy'."
        )
    result = Plan()
    for name, (instance_id, running) in containers.items():
        instance = alive.get(name)
        if instance is None or instance.id != instance_id:
            result.remove.append(name)
        elif instance.state in ("pending", "running") and not running:
            result.start.append(name)
        elif instance.state in ("stopping", "stopped") and running:
            result.stop.append(name)
    for name, instance in alive.items():
        kept = name in containers and name not in result.remove
        if not kept and name in declared and instance.state in ("pending", "running"):
            result.create.append(name)
    return result


def read_instances(ec2: Any, environment: str) -> list[Instance]:
    """Every instance of the environment, terminated ones included while the cloud still lists them."""
    pages = ec2.get_paginator("describe_instances").paginate(
        Filters=[{"Name": "tag:Environment", "Values": [environment]}]
    )
    found = []
    for page in pages:
        for reservation in page["Reservations"]:
            for raw in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in raw.get("Tags", [])}
                found.append(
                    Instance(
                        raw["InstanceId"],
                        tags.get("Name", ""),
                        raw.get("PrivateIpAddress", ""),
                        raw["State"]["Name"],
                        raw.get("ImageId", ""),
                    )
                )
    return found


def read_user_data(ec2: Any, instance_id: str) -> str:
    """The user-data that an instance was started with."""
    import base64

    reply = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
    return base64.b64decode(reply["UserData"].get("Value", "")).decode()


def seed_archive(instance: Instance, user_data: str) -> bytes:
    """A tar archive with cloud-init's NoCloud seed, to be unpacked at the root of the container."""
    files = {
        "user-data": user_data,
        "meta-data": f"instance-id: {instance.id}\nlocal-hostname: {instance.name}\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"var/lib/cloud/seed/nocloud/{name}")
            info.size, info.mode = len(text.encode()), 0o600
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def wait_for_sshd(address: str, port: int = 22, seconds: float = 60) -> None:
    """Return once sshd greets; raises GroundcrewError after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((address, port), timeout=2) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise GroundcrewError(
                f"waited {seconds:g} s for sshd on {address}, port {port}. Look at the host: docker logs, docker exec."
            )
        time.sleep(0.2)


class LocalHosts:
    """The containers of one environment, through the Docker SDK."""

    def __init__(self, docker: Any, environment: str, network: str) -> None:
        self.docker, self.environment, self.network = docker, environment, network

    def containers(self) -> dict[str, Any]:
        """Host name to container."""
        found = self.docker.containers.list(
            all=True,
            filters={"label": [f"{LABEL}.environment={self.environment}", f"{LABEL}.kind=host"]},
        )
        return {container.labels[f"{LABEL}.host"]: container for container in found}

    def create(self, host: dict[str, Any], instance: Instance, user_data: str) -> None:
        """Create and start the container of one host.

        ``host``: name, image, memory (such as "1g"), publish (list of {address, port, host_port}).
        """
        from docker.utils import parse_bytes

        published = host.get("publish") or []
        baked = self._baked(instance)
        # A volume of its own: nested overlay2 needs a real file system under it. Without a name it goes with the container.
        own: dict[str, Any] = {"Volumes": {ENGINE: {}}} if not baked else {}
        config = {
            **own,
            "Image": f"{BAKED}:{baked}" if baked else host["image"],
            "Cmd": ["/lib/systemd/systemd"],
            "Hostname": host["name"],
            "Env": ["container=docker"],
            "StopSignal": "SIGRTMIN+3",
            "ExposedPorts": {f"{entry['port']}/tcp": {} for entry in published},
            "Labels": {
                f"{LABEL}.environment": self.environment,
                f"{LABEL}.kind": "host",
                f"{LABEL}.host": host["name"],
                f"{LABEL}.instance": instance.id,
            },
            "HostConfig": {
                **HOST_CONFIG,
                "Binds": [
                    *HOST_CONFIG["Binds"],
                    *self._data(host),
                    *([self._engine_of(baked, instance)] if baked else []),
                ],
                "NetworkMode": self.network,
                "Memory": parse_bytes(host["memory"]) if host.get("memory") else 0,
                "PortBindings": {
                    f"{entry['port']}/tcp": [
                        {"HostIp": entry["address"], "HostPort": str(entry["host_port"])}
                    ]
                    for entry in published
                },
            },
            "NetworkingConfig": {
                "EndpointsConfig": {self.network: {"IPAMConfig": {"IPv4Address": instance.address}}}
            },
        }
        created = self.docker.api.create_container_from_config(config, name=host["name"])
        container = self.docker.containers.get(created["Id"])
        try:
            container.put_archive("/", seed_archive(instance, user_data))
            container.start()
        except Exception:
            # Half a host would look like a whole one to the next run.
            container.remove(force=True, v=True)
            raise

    def bake(self, container: Any, image_id: str, fleet: str) -> None:
        """Make an image of a host, for instances that are started from this machine image; the fleet's older ones go."""
        labels = {f"{LABEL}.environment": self.environment, f"{LABEL}.baked": fleet}
        self._forget_baked(fleet)
        changes = "\n".join(f"LABEL {key}={value}" for key, value in labels.items())
        container.commit(BAKED, image_id, changes=changes)
        (engine,) = [m["Name"] for m in container.attrs["Mounts"] if m["Destination"] == ENGINE]
        kept = self.docker.volumes.create(f"{LABEL}-machine-{image_id}", labels=labels)
        self._copy(f"{BAKED}:{image_id}", engine, kept.name)

    def _forget_baked(self, fleet: str = "") -> None:
        """Remove the machine images of a fleet, or of all, but those that hosts run."""
        from docker.errors import APIError, NotFound

        baked = f"{LABEL}.baked={fleet}" if fleet else f"{LABEL}.baked"
        wanted = {"label": [f"{LABEL}.environment={self.environment}", baked]}
        for older in self.docker.images.list(filters=wanted):
            tags = list(older.tags)
            try:
                self.docker.images.remove(older.id, force=True)
            except APIError as error:
                if error.status_code != 409:
                    raise
                continue
            for tag in tags:
                # A run that was cut off between the two leaves an image without its volume.
                with suppress(NotFound):
                    self.docker.volumes.get(f"{LABEL}-machine-{tag.rpartition(':')[2]}").remove()

    def _baked(self, instance: Instance) -> str:
        """The id of the instance's machine image if it was baked here; otherwise nothing."""
        found = instance.image_id and self.docker.images.list(f"{BAKED}:{instance.image_id}")
        return instance.image_id if found else ""

    def _engine_of(self, baked: str, instance: Instance) -> str:
        """A volume with what the baked host's engine had."""
        labels = {f"{LABEL}.environment": self.environment}
        own = self.docker.volumes.create(f"{LABEL}-engine-{instance.id}", labels=labels)
        self._copy(f"{BAKED}:{baked}", f"{LABEL}-machine-{baked}", own.name)
        return f"{own.name}:{ENGINE}"

    def _copy(self, image: str, source: str, target: str) -> None:
        """One volume's content into another, with owners, devices and attributes, which overlay2 needs."""
        self.docker.containers.run(
            image,
            ["cp", "--archive", "/from/.", "/to/"],
            entrypoint=[],
            network_mode="none",
            remove=True,
            # Or it would be taken for the host that the image was made of.
            labels={f"{LABEL}.kind": "copy", f"{LABEL}.host": ""},
            cap_add=HOST_CONFIG["CapAdd"],
            cap_drop=HOST_CONFIG["CapDrop"],
            security_opt=HOST_CONFIG["SecurityOpt"],
            volumes={
                source: {"bind": "/from", "mode": "ro"},
                target: {"bind": "/to", "mode": "rw"},
            },
        )

    def _data(self, host: dict[str, Any]) -> list[str]:
        """The data volume, which outlives the container, where the instance's would be mounted."""
        if not host.get("data_directory"):
            return []
        name = f"{LABEL}-{self.environment}-{host['name']}-data"
        self.docker.volumes.create(name, labels={f"{LABEL}.environment": self.environment})
        return [f"{name}:{host['data_directory']}"]

    def remove_kept(self) -> None:
        """Remove what outlives the environment's containers: machine images and every volume."""
        self._forget_baked()
        label = {"label": f"{LABEL}.environment={self.environment}"}
        for volume in self.docker.volumes.list(filters=label):
            volume.remove()

    def remove(self, container: Any) -> None:
        """Remove a container and the volume of its Docker Engine."""
        engines = [
            mount["Name"]
            for mount in container.attrs.get("Mounts", [])
            if mount.get("Destination") == ENGINE
            and mount.get("Name", "").startswith(f"{LABEL}-engine-")
        ]
        container.remove(force=True, v=True)
        for name in engines:
            self.docker.volumes.get(name).remove()
