#!/usr/bin/python
"""Take the lock that lets one deploy of an environment run at a time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy_lock
short_description: Take the lock that lets one deploy of an environment run at a time
description:
  - Runs on the controller. The callback plugin deploy_lock lets it go when the run ends, however it ends; after a kill the next run on
    the same machine takes it over, and everybody may after its time.
options:
  bucket: {description: The store of the environment., type: str, required: true}
  run: {description: "The run, as the callback plugin names it.", type: str, required: true}
  what: {description: "What the run does, for whoever has to wait.", type: str, required: true}
  steal: {description: A reason to take it from whoever has it., type: str, default: ""}
  note_file: {description: Where the callback plugin finds what to let go., type: path, required: true}
attributes:
  check_mode: {support: none, description: A check changes nothing and needs no lock.}
author: [Groundcrew]
"""

RETURN = r"""
lock: {description: "Holder, purpose, since, until, and taken_from.", type: dict, returned: success}
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import deploy_lock
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bucket": {"type": "str", "required": True},
            "run": {"type": "str", "required": True},
            "what": {"type": "str", "required": True},
            "steal": {"type": "str", "default": ""},
            "note_file": {"type": "path", "required": True},
        }
    )
    import boto3
    import botocore.exceptions

    parameters = module.params
    if not parameters["run"]:
        module.fail_json(
            msg="this run has no name: add deploy_lock to callbacks_enabled (ansible.cfg has it; ANSIBLE_CALLBACKS_ENABLED replaces that)."
        )
    try:
        lock = deploy_lock.acquire(
            boto3.client("s3"),
            parameters["bucket"],
            run=parameters["run"],
            what=parameters["what"],
            steal=parameters["steal"],
        )
        deploy_lock.remember(Path(parameters["note_file"]), parameters["bucket"], parameters["run"])
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    except botocore.exceptions.BotoCoreError as error:
        module.fail_json(
            msg=f"The store does not answer: {error}. Check the region, the credentials and the network."
        )
    if lock.taken_from:
        module.warn(f"the deploy lock was taken from {lock.taken_from}")
    module.exit_json(changed=False, lock=asdict(lock))


if __name__ == "__main__":
    main()
