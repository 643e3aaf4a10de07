#!/usr/bin/python
"""Tell HAProxy, while it runs, which ports of which hosts to send requests to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_servers
short_description: Tell HAProxy, while it runs, which ports of which hosts to send requests to
description:
  - Connects to these ports, enables their servers, waits until HAProxy's own check of them passes, then drains and disables the
    servers of all other ports of the same addresses. Servers at other addresses are not touched.
  - Saves the state of the servers, so that a reload or a restart starts with it.
  - Where the role gateway has not been there is nobody to tell, and nothing is done.
options:
  serving: {description: "Address -> the ports that are to get requests.", type: dict, required: true}
  drain_seconds: {description: Seconds that open requests have to end., type: float, default: 30}
  master_socket: {description: Socket of HAProxy's master process., type: path, default: /run/haproxy-master.sock}
  save_program: {description: The program that saves the state., type: path, default: /usr/local/sbin/gateway-save-state}
attributes:
  check_mode: {support: full, description: Says which servers would change.}
author: [Groundcrew]
"""

RETURN = r"""
enabled: {description: Servers that get requests now., type: list, elements: str, returned: always}
disabled: {description: Servers that got requests before., type: list, elements: str, returned: always}
unknown: {description: "address:port in `serving` that no server has.", type: list, elements: str, returned: always}
cut: {description: Requests that were open when their server was disabled., type: int, returned: always}
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.errors import GroundcrewError
from ansible.module_utils.groundcrew.gateway import (
    Change,
    Gateway,
    MasterSocket,
    connects,
    installed,
    saver,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "serving": {"type": "dict", "required": True},
            "drain_seconds": {"type": "float", "default": 30},
            "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
            "save_program": {"type": "path", "default": "/usr/local/sbin/gateway-save-state"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    if not installed(parameters["save_program"]):
        module.exit_json(changed=False, **asdict(Change()))
    gateway = Gateway(
        MasterSocket(parameters["master_socket"]),
        saver(parameters["save_program"]),
        connects=connects,
    )
    try:
        change = gateway.send_to(
            parameters["serving"],
            drain_seconds=parameters["drain_seconds"],
            check=bool(module.check_mode),
        )
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    lines = [f"{name}: on" for name in change.enabled] + [
        f"{name}: off" for name in change.disabled
    ]
    module.exit_json(
        changed=change.changed,
        diff={"prepared": "".join(line + "\n" for line in lines)},
        **asdict(change),
    )


if __name__ == "__main__":
    main()
