#!/usr/bin/python
"""What this gateway's access log says of the last minutes: of the versions of a model, or of the requests of a load test."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_log
short_description: What this gateway's access log says of the last minutes
description: Runs on a host of the gateway and changes nothing.
options:
  seconds: {description: How far back., type: int, required: true}
  model: {description: "Count what clients saw of each version of this model, where they named none.", type: str}
  load_test: {description: "List the requests whose ids begin so, as module load_test names them.", type: str}
attributes:
  check_mode: {support: full, description: It only reads.}
author: [Groundcrew]
"""

RETURN = r"""
versions: {description: "Version -> requests, errors, times (whole ms -> how often).", type: dict, returned: with model}
requests: {description: "Request id -> Tw, Tc, Tr, Ta in ms.", type: dict, returned: with load_test}
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import access_log, canary, load
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "seconds": {"type": "int", "required": True},
            "model": {"type": "str"},
            "load_test": {"type": "str"},
        },
        required_one_of=[("model", "load_test")],
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        lines = access_log.since((time.time() - wanted["seconds"]) * 1000)
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    found = {}
    if wanted["model"]:
        found["versions"] = canary.as_data(canary.seen(lines, wanted["model"]))
    if wanted["load_test"]:
        found["requests"] = load.logged(lines, wanted["load_test"])
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
