#!/usr/bin/python
"""Ask a new version of a model its own golden cases and those of the version that serves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: canary_answers
short_description: Ask a new version of a model its own golden cases and those of the version that serves
description: Runs on the controller and asks through the gateway. Never fails because of an answer; the caller judges.
options:
  url: {description: The predict address of the new version., type: str, required: true}
  headers: {description: Request headers., type: dict, default: {}}
  ca_file: {description: CA bundle for TLS., type: path}
  bucket: {description: The model store., type: str, required: true}
  model: {description: Name of the model., type: str, required: true}
  stable: {description: The version that serves., type: str, required: true}
  canary: {description: The new version., type: str, required: true}
attributes:
  check_mode: {support: full, description: It only asks.}
author: [Groundcrew]
"""

RETURN = r"""
answers: {description: "golden_ok, golden (a line), alike and cases.", type: dict, returned: success}
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import canary, golden, model_store, objects
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "headers": {"type": "dict", "default": {}, "no_log": True},
            "ca_file": {"type": "path"},
            "bucket": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "stable": {"type": "str", "required": True},
            "canary": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    cases = {}
    try:
        client = objects.open_client()
        for which in ("stable", "canary"):
            key = model_store.prefix(parameters["model"], parameters[which]) + "golden.json"
            with objects.readable_errors(parameters["bucket"]):
                found = objects.get(client, parameters["bucket"], key)
            if found is None:
                raise GroundcrewError(f"the store has no {key}; publish the model version again")
            cases[which] = golden.parse(found.data, key)
        said = canary.answers(
            parameters["url"],
            cases["canary"],
            cases["stable"],
            parameters["headers"],
            parameters["ca_file"],
        )
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, answers=asdict(said))


if __name__ == "__main__":
    main()
