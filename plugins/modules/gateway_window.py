#!/usr/bin/python
"""What clients saw of each version of a model in the last minutes, from this gateway's access log."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_window
short_description: What clients saw of each version of a model in the last minutes
description: Reads the gateway's access log. Runs on a host of the gateway and changes nothing.
options:
  model: {description: Name of the model., type: str, required: true}
  seconds: {description: How far back., type: int, required: true}
attributes:
  check_mode: {support: full, description: It only reads.}
author: [Groundcrew]
"""

RETURN = r"""
versions:
  description: "Version -> requests, errors, times (whole milliseconds -> how often)."
  type: dict
  returned: always
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.canary import as_data, seen


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            "seconds": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    since = f"@{time.time() - module.params['seconds']:.0f}"
    command = ["journalctl", "--unit=haproxy", "--output=cat", "--no-pager", f"--since={since}"]
    _, lines, _ = module.run_command(command, check_rc=True)
    found = seen(lines.splitlines(), module.params["model"])
    module.exit_json(changed=False, versions=as_data(found))


if __name__ == "__main__":
    main()
