#!/usr/bin/env python3
"""Brings test hosts back as they were right after their provisioning, in seconds instead of a minute.

The first scenario that needs a host provisions it as production does, and `keep` makes an image of it. Later scenarios get a
container of that image: same instance, same address, same permanent host key, nothing of the scenario before. The cloud
stand-in, its store and the registry keep running in between.

Usage: fresh_hosts.py restore|keep DOCUMENT
DOCUMENT is JSON: environment, network, build_directory, deploy_user, endpoint, hosts (name, variant, memory, publish, private_address).
`restore` prints "restored", or "provision" when there is something that only provisioning can make; then the instances of these
hosts are terminated, so that it starts afresh.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import docker

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))

from groundcrew.image_build import Builder, Image  # noqa: E402
from groundcrew.local_hosts import (  # noqa: E402
    LocalHosts,
    read_instances,
    read_user_data,
    wait_for_sshd,
)

REPOSITORY = "groundcrew/test-host"
PROVISIONED_BY = (
    "roles/ec2_fleet",
    "roles/local_cloud",
    "playbooks/provision.yml",
    "plugins/module_utils/groundcrew/local_hosts.py",
)
SSH_CONFIG = """\
Host *
  User {user}
  IdentityFile {directory}/deploy_key
  IdentitiesOnly yes
  UserKnownHostsFile {directory}/known_hosts
  StrictHostKeyChecking yes
  ControlMaster auto
  ControlPath {directory}/%C
  ControlPersist 60
"""


def recipe(variant: str) -> str:
    """A hash over what a provisioned host of this variant is made by; another one makes the kept image useless."""
    image = Image(
        name=variant,
        dockerfile="files/images/host/Dockerfile",
        parent="debian",
        target=variant,
        inputs=PROVISIONED_BY,
    )
    return Builder(ROOT, [image]).tag(variant)


class Hosts:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document, self.hosts = document, document["hosts"]
        self.engine = docker.from_env(timeout=120)
        self.local = LocalHosts(self.engine, document["environment"], document["network"])
        self.ec2 = boto3.client(
            "ec2",
            endpoint_url=document["endpoint"],
            region_name="us-east-1",
            aws_access_key_id="embedded",
            aws_secret_access_key="embedded",
        )
        self.ssh = Path(document["build_directory"]) / "ssh"

    def remove(self) -> None:
        """The hosts of the scenario before, whichever they were."""
        for container in self.local.containers().values():
            self.local.remove(container)

    def restore(self) -> bool:
        self.remove()
        if not self._answers():
            # What it remembers are hosts that are gone now. It may live all the same, when its network went.
            state = Path(self.document["build_directory"]) / "cloud"
            subprocess.run([ROOT / "files/local_cloud/stop-aws-stand-in", state], check=True)
            shutil.rmtree(state, ignore_errors=True)
            return False
        alive = {
            i.name: i
            for i in read_instances(self.ec2, self.document["environment"])
            if i.state not in ("shutting-down", "terminated")
        }
        kept = {host["name"]: self._image(host, alive) for host in self.hosts}
        if not all(kept.values()):
            # The hosts of other scenarios keep their instances, and come back with them.
            stale = [alive[name].id for name in kept if name in alive]
            for instance in stale:
                self.ec2.modify_instance_attribute(
                    InstanceId=instance, DisableApiTermination={"Value": False}
                )
            if stale:
                self.ec2.terminate_instances(InstanceIds=stale)
            return False
        for host in self.hosts:
            instance = alive[host["name"]]
            self.local.create(
                {**host, "image": kept[host["name"]].id},
                instance,
                read_user_data(self.ec2, instance.id),
            )
        self._write_known_hosts(image.labels["groundcrew.known_hosts"] for image in kept.values())
        self._write_config()
        for host in self.hosts:
            wait_for_sshd(host["private_address"])
        return True

    def keep(self) -> None:
        """Make an image of each host, and note in it what is needed to bring it back."""
        known = (self.ssh / "known_hosts").read_text().splitlines()
        for name, container in self.local.containers().items():
            (host,) = [host for host in self.hosts if host["name"] == name]
            (line,) = [line for line in known if line.startswith(name + ",")]
            labels = {"known_hosts": line, "recipe": recipe(host["variant"])}
            changes = "\n".join(
                f"LABEL groundcrew.{key}={json.dumps(value)}" for key, value in labels.items()
            )
            for older in self.engine.images.list(f"{REPOSITORY}:{name}"):
                self.engine.images.remove(older.id, force=True)
            container.commit(REPOSITORY, name, changes=changes)
        self._write_config()

    def _image(self, host: dict[str, Any], alive: dict[str, Any]) -> Any:
        """The kept image of a host if it is of the present instance and made as it would be made today."""
        try:
            image = self.engine.images.get(f"{REPOSITORY}:{host['name']}")
        except docker.errors.ImageNotFound:
            return None
        wanted = (getattr(alive.get(host["name"]), "id", ""), recipe(host["variant"]))
        return (
            image
            if (image.labels["groundcrew.instance"], image.labels["groundcrew.recipe"]) == wanted
            else None
        )

    def _write_config(self) -> None:
        """How testinfra reaches the hosts."""
        hosts = (f"Host {h['name']}\n  HostName {h['private_address']}\n" for h in self.hosts)
        common = SSH_CONFIG.format(user=self.document["deploy_user"], directory=self.ssh)
        (self.ssh / "config").write_text("".join(hosts) + common)

    def _write_known_hosts(self, lines: Any) -> None:
        (self.ssh / "known_hosts").write_text("".join(line + "\n" for line in lines))
        # A connection that ControlPersist kept would go to the host of the scenario before.
        for path in self.ssh.iterdir():
            if path.is_socket():
                path.unlink()

    def _answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(self.document["endpoint"] + "/moto-api/config", timeout=20)
        except OSError:
            return False
        return True


def main() -> None:
    action, hosts = sys.argv[1], Hosts(json.loads(sys.argv[2]))
    if action == "restore":
        print("restored" if hosts.restore() else "provision")
    else:
        getattr(hosts, action)()


if __name__ == "__main__":
    main()
