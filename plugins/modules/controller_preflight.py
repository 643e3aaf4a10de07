#!/usr/bin/python
"""Check this machine before anything is changed: rights, disk, ports, network."""

from __future__ import annotations

DOCUMENTATION = r"""
module: controller_preflight
short_description: Check this machine before anything on it is changed
description: Rights, disk, ports and networks; reads only, and names the process that is in the way.
options:
  environment_name: {description: Ports that this environment's own containers publish are no conflict., type: str, required: true}
  disk_path: {description: Where images and hosts are kept., type: path, required: true}
  minimum_disk_gb: {description: Free space that is needed., type: int, required: true}
  loopback_ports: {description: Ports that will be published on loopback., type: list, elements: int, default: []}
  network_cidr: {description: The subnet of the hosts., type: str, required: true}
  bridge_name: {description: The subnet's own bridge., type: str, required: true}
"""

RETURN = r""" # """

import ipaddress
import os
import shutil

from ansible.module_utils.basic import AnsibleModule


def first_existing(path):
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def own_ports(environment):
    """Ports that containers of this environment publish; none when no engine answers yet."""
    import docker

    try:
        engine = docker.from_env(timeout=20)
        containers = engine.containers.list(
            all=True, filters={"label": f"groundcrew.environment={environment}"}
        )
    except Exception:  # no engine, no containers: the role installs and starts one later
        return set()
    bindings = [
        b for c in containers for b in (c.attrs["HostConfig"]["PortBindings"] or {}).values()
    ]
    return {int(entry["HostPort"]) for binding in bindings for entry in binding or []}


def main():
    module = AnsibleModule(
        argument_spec={
            "environment_name": {"type": "str", "required": True},
            "disk_path": {"type": "path", "required": True},
            "minimum_disk_gb": {"type": "int", "required": True},
            "loopback_ports": {"type": "list", "elements": "int", "default": []},
            "network_cidr": {"type": "str", "required": True},
            "bridge_name": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    import psutil

    p, problems = module.params, []
    if (
        os.getuid() != 0
        and not shutil.which("sudo")
        and not os.access("/var/run/docker.sock", os.W_OK)
    ):
        problems.append(
            "You are not root, there is no sudo, and Docker's socket is not yours. Run as root, or install sudo."
        )

    where = first_existing(p["disk_path"])
    free = shutil.disk_usage(where).free // 2**30
    if free < p["minimum_disk_gb"]:
        problems.append(
            f"{free} GB are free under {where}, {p['minimum_disk_gb']} GB are needed. Make room: 'docker system prune' and "
            "'apt-get clean' are good places to start."
        )

    taken = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in (
            "127.0.0.1",
            "0.0.0.0",
            "::",
            "::1",
        ):
            taken[connection.laddr.port] = connection.pid
    for port in set(p["loopback_ports"]) & set(taken) - own_ports(p["environment_name"]):
        try:
            process = psutil.Process(taken[port])
            who = f"{process.name()} (process {process.pid}: {' '.join(process.cmdline())[:120]})"
        except (psutil.Error, TypeError):
            who = "another user's process"
        problems.append(
            f"Port {port} on this machine is taken by {who}. Stop it, or change the port: "
            f"grep -rn {port} inventories/{p['environment_name']}"
        )

    wanted = ipaddress.ip_network(p["network_cidr"])
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if name == p["bridge_name"] or not address.netmask or ":" in address.address:
                continue
            have = ipaddress.ip_interface(f"{address.address}/{address.netmask}").network
            if have.overlaps(wanted):
                problems.append(
                    f"The subnet {wanted} overlaps with {have} of this machine's interface {name}. Change network_cidr and the "
                    f"addresses in inventories/{p['environment_name']}."
                )
    if problems:
        module.fail_json(
            msg="This machine cannot take the environment yet. Nothing was changed.\n- "
            + "\n- ".join(problems)
        )
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
