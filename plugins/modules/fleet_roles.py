#!/usr/bin/python
"""The IAM roles and instance profiles of fleets; thin over groundcrew.identity."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_roles
short_description: The IAM roles and instance profiles of fleets, written in one go
description:
  - Runs on the controller. Region, endpoint and credentials come from the play's C(environment).
  - One module instead of two calls of amazon.aws for each role, which took a quarter of a minute of a first deploy.
options:
  roles:
    description: "What to write: name, description, digest, policy, trust."
    type: list
    elements: dict
    required: true
  tags: {description: Tags of all of them., type: dict, default: {}}
"""

RETURN = r"""
written: {description: Names of the roles., type: list, elements: str, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import identity


def main():
    module = AnsibleModule(
        argument_spec={
            "roles": {"type": "list", "elements": "dict", "required": True},
            "tags": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    roles = module.params["roles"]
    try:
        iam = boto3.client("iam")
        for role in [] if module.check_mode else roles:
            identity.write(iam, role, module.params["tags"])
    except (BotoCoreError, ClientError) as error:
        module.fail_json(msg=f"A role of a fleet could not be written: {error}")
    module.exit_json(changed=bool(roles), written=[role["name"] for role in roles])


if __name__ == "__main__":
    main()
