#!/usr/bin/python
"""Follow the AWS stand-in with containers; thin over groundcrew.local_hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: local_hosts
short_description: For each running instance of the AWS stand-in, one container at its private address
description:
  - Runs on the controller. Region, endpoint and credentials come from the play's C(environment).
options:
  environment_name: {description: The value of the tag Environment., type: str, required: true}
  network: {description: Docker network that stands for the subnet., type: str, required: true}
  hosts:
    description: What the inventory declares and the cloud does not know.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Host name., type: str, required: true}
      variant: {description: "Kind of machine image: plain, baked or dlami.", type: str, required: true}
      memory: {description: Memory limit such as 1g., type: str}
      data_directory: {description: Where a volume that outlives the container is mounted; left out it has none., type: str}
      publish: {description: "Ports on this machine: address, port, host_port.", type: list, elements: dict, default: []}
  images: {description: "Host image of each variant, by host-<variant>.", type: dict, default: {}}
  bake:
    description: "Make an image of a host instead: host, image_id (of the machine image that stands for it), fleet."
    type: dict
  remember_only: {description: Change nothing; fail when there are containers and the cloud knows no instance., type: bool, default: false}
  remove_all: {description: Remove every container of the environment instead., type: bool, default: false}
"""

RETURN = r"""
created: {description: Hosts that were created., type: list, elements: str, returned: always}
removed: {description: Hosts that were removed., type: list, elements: str, returned: always}
machines: {description: Host name to the short id of its container., type: dict, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.errors import GroundcrewError
from ansible.module_utils.groundcrew.local_hosts import (
    LocalHosts,
    plan,
    read_instances,
    read_user_data,
    wait_for_sshd,
)


def main():
    module = AnsibleModule(
        argument_spec={
            "environment_name": {"type": "str", "required": True},
            "network": {"type": "str", "required": True},
            "hosts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "variant": {"type": "str", "required": True},
                    "memory": {"type": "str"},
                    "data_directory": {"type": "str"},
                    "publish": {"type": "list", "elements": "dict", "default": []},
                },
            },
            "images": {"type": "dict", "default": {}},
            "bake": {"type": "dict"},
            "remember_only": {"type": "bool", "default": False},
            "remove_all": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    import docker
    import docker.errors

    try:
        engine = docker.from_env(timeout=120)
        local = LocalHosts(engine, module.params["environment_name"], module.params["network"])
        containers = local.containers()
        if module.params["remove_all"]:
            if not module.check_mode:
                for container in containers.values():
                    local.remove(container)
                local.remove_kept()
            module.exit_json(
                changed=bool(containers), created=[], removed=sorted(containers), instances={}
            )
        if baking := module.params["bake"]:
            if not module.check_mode:
                local.bake(containers[baking["host"]], baking["image_id"], baking["fleet"])
            module.exit_json(changed=True, created=[], removed=[], machines={})
        import boto3

        ec2 = boto3.client("ec2")
        instances = read_instances(ec2, module.params["environment_name"])
        images = module.params["images"]
        declared = {
            h["name"]: {**h, "image": images.get(f"host-{h['variant']}")}
            for h in module.params["hosts"]
        }
        todo = plan(
            list(declared),
            instances,
            {
                # One that was never started lacks its user-data: it is made anew.
                name: (
                    c.labels["groundcrew.instance"] if c.status != "created" else "",
                    c.status == "running",
                )
                for name, c in containers.items()
            },
        )
        if module.params["remember_only"]:
            module.exit_json(changed=False, created=[], removed=[], machines={})
        alive = {i.name: i for i in instances if i.state not in ("shutting-down", "terminated")}
        if not module.check_mode:
            for name in todo.remove:
                local.remove(containers[name])
            for name in todo.stop:
                containers[name].stop(timeout=30)
            for name in todo.start:
                containers[name].start()
            for name in todo.create:
                local.create(declared[name], alive[name], read_user_data(ec2, alive[name].id))
            # New hosts are waited for at their first login; the next task goes straight to these.
            for name in todo.start:
                wait_for_sshd(alive[name].address)
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    except docker.errors.DockerException as error:
        module.fail_json(msg=f"Docker Engine on this machine refused: {error}")
    module.exit_json(
        changed=todo.changed,
        created=todo.create,
        removed=todo.remove,
        started=todo.start,
        stopped=todo.stop,
        # A container that was made anew for the same instance presents the key of the first login again.
        machines={name: container.short_id for name, container in local.containers().items()},
    )


if __name__ == "__main__":
    main()
