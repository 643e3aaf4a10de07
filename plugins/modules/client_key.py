#!/usr/bin/python
"""Issue, rotate or revoke the key of a client of the gateway."""

from __future__ import annotations

DOCUMENTATION = r"""
module: client_key
short_description: Issue, rotate or revoke the key of a client of the gateway
description:
  - Runs on the controller and changes the secret store alone; role gateway then tells the gateways.
  - The key of a client that is not ours is written to a file that only its owner may read. It is nowhere else.
options:
  prefix: {description: Beginning of the names of the environment's secrets., type: str, required: true}
  clients: {description: The clients as the inventory declares them., type: list, elements: dict, required: true}
  client: {description: Name of one of them., type: str, required: true}
  action: {description: What to do., type: str, required: true, choices: [issue, rotate, revoke, revoke_all]}
  key_file: {description: Where a new key of an external client is written., type: path, required: true}
attributes:
  check_mode: {support: full, description: Says whether it could be done.}
author: [Groundcrew]
"""

RETURN = r"""
key_file: {description: "Where the new key is, empty when none was written.", type: str, returned: always}
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import client_keys
from ansible.module_utils.groundcrew.errors import GroundcrewError
from ansible.module_utils.groundcrew.secret_store import SecretStore


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "str", "required": True},
            # Names and limits: no keys are in it.
            "clients": {"type": "list", "elements": "dict", "required": True, "no_log": False},
            "client": {"type": "str", "required": True},
            "action": {
                "type": "str",
                "required": True,
                "choices": ["issue", "rotate", "revoke", "revoke_all"],
            },
            "key_file": {"type": "path", "required": True, "no_log": False},
        },
        supports_check_mode=True,
    )
    import boto3
    import botocore.exceptions

    parameters, check = module.params, bool(module.check_mode)
    path = parameters["key_file"]
    try:
        if os.path.exists(path) and parameters["action"] in ("issue", "rotate"):
            raise GroundcrewError(
                f"{path} holds a key that was issued before. Hand it over, remove the file, and run this again."
            )
        store = SecretStore(boto3.client("secretsmanager"), parameters["prefix"])
        client = client_keys.find(parameters["clients"], parameters["client"])
        if not check:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        key = client_keys.change(store, client, parameters["action"], dry_run=check)
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    except botocore.exceptions.BotoCoreError as error:
        module.fail_json(
            msg=f"The secret store does not answer: {error}. Check the region, the credentials and the network."
        )
    if key and not check:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key + "\n")
    module.exit_json(changed=True, key_file=path if key and not check else "")


if __name__ == "__main__":
    main()
