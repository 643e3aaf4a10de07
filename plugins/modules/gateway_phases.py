#!/usr/bin/python
"""What this gateway's access log says of the requests of one load test."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_phases
short_description: What this gateway's access log says of the requests of one load test
description: Runs on a host of the gateway and changes nothing.
options:
  name: {description: Beginning of the ids of the requests., type: str, required: true}
  seconds: {description: How far back., type: int, required: true}
attributes:
  check_mode: {support: full, description: It only reads.}
author: [Groundcrew]
"""

RETURN = r"""
requests: {description: "Request id -> Tw, Tc, Tr, Ta in ms.", type: dict, returned: always}
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.load import logged


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "seconds": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    since = f"@{time.time() - module.params['seconds']:.0f}"
    command = ["journalctl", "--unit=haproxy", "--output=cat", "--no-pager", f"--since={since}"]
    _, lines, _ = module.run_command(command, check_rc=True)
    module.exit_json(changed=False, requests=logged(lines.splitlines(), module.params["name"]))


if __name__ == "__main__":
    main()
