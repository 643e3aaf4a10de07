#!/usr/bin/python
"""Bring the maps of a running HAProxy to what their files say."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_maps
short_description: Bring the maps of a running HAProxy to what their files say
description:
  - HAProxy reads the files of its maps when it starts. This module makes it go by them now, without a reload, in every process that runs,
    those too that a reload has left to finish their connections.
  - Entries that are new come first and entries that go go last.
options:
  paths: {description: "Files of the maps, as the configuration names them.", type: list, elements: path, required: true}
  master_socket: {description: Socket of HAProxy's master process., type: path, default: /run/haproxy-master.sock}
attributes:
  check_mode: {support: full, description: Says what would change.}
author: [Groundcrew]
"""

RETURN = r"""
changes: {description: "What changed, `path: add|set|del key` each; clients are hashes.", type: list, elements: str, returned: always}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.errors import GroundcrewError
from ansible.module_utils.groundcrew.gateway import Maps, MasterSocket, parse_map


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True},
            "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
        },
        supports_check_mode=True,
    )
    try:
        wanted = {path: parse_map(Path(path).read_text()) for path in module.params["paths"]}
        changes = Maps(MasterSocket(module.params["master_socket"])).follow(
            wanted, check=bool(module.check_mode)
        )
    except OSError as error:
        module.fail_json(
            msg=f"a map cannot be read: {error}. Run: ansible-playbook playbooks/deploy_gateway.yml -l <environment>"
        )
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(changes),
        changes=changes,
        diff={"prepared": "".join(change + "\n" for change in changes)},
    )


if __name__ == "__main__":
    main()
