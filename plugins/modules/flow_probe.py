#!/usr/bin/python
"""Try to connect where nobody may, from this host. Never fails; the caller judges the result."""

from __future__ import annotations

DOCUMENTATION = r"""
module: flow_probe
short_description: Try to connect where no flow leads from this host
description: Opens TCP connections to all of them at once and says which were accepted. Sends nothing.
options:
  closed:
    description: Where nothing may answer this host.
    type: list
    elements: dict
    required: true
    suboptions:
      host: {description: Name of the other host., type: str, required: true}
      address: {description: Its private address., type: str, required: true}
      port: {description: TCP port., type: int, required: true}
      what: {description: What is there., type: str, required: true}
  seconds: {description: How long a connection may take to be refused., type: float, default: 2}
attributes:
  check_mode: {support: full, description: It only looks.}
author: [Groundcrew]
"""

RETURN = r"""
checks: {description: "One check: name, ok and detail.", type: list, elements: dict, returned: always}
"""

import platform
import socket
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "closed": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "host": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "what": {"type": "str", "required": True},
                },
            },
            "seconds": {"type": "float", "default": 2},
        },
        supports_check_mode=True,
    )
    seconds = module.params["seconds"]

    def opens(probe):
        try:
            with socket.create_connection((probe["address"], probe["port"]), timeout=seconds):
                return True
        except OSError:
            return False

    closed = module.params["closed"]
    with ThreadPoolExecutor(max_workers=64) as pool:
        found = [
            probe for probe, opened in zip(closed, pool.map(opens, closed), strict=True) if opened
        ]
    name = f"no other way in from {platform.node()}"
    detail = f"{len(closed)} ports of other hosts refuse"
    if found:
        detail = "open: " + ", ".join(f"{p['host']}:{p['port']} ({p['what']})" for p in found)
    module.exit_json(changed=False, checks=[{"name": name, "ok": not found, "detail": detail}])


if __name__ == "__main__":
    main()
