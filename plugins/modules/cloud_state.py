#!/usr/bin/python
"""What an environment has in the cloud; thin over groundcrew.cloud."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cloud_state
short_description: What an environment has in the cloud, read at once
description:
  - Runs on the controller. Region, endpoint and credentials come from the play's C(environment). Reads only.
  - One module instead of eight: each task costs a second, and the daily run asks all of it.
options:
  environment_name: {description: The value of the tag Environment., type: str, required: true}
  bucket: {description: Name of the store., type: str, required: true}
"""

RETURN = r"""
cloud: {description: What the methods of groundcrew.cloud.Cloud return, by their names., type: dict, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.cloud import Cloud
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main():
    module = AnsibleModule(
        argument_spec={
            "environment_name": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    wanted = module.params
    # One session: making clients of it from several threads at once is not safe, so they are made before.
    clients = {name: boto3.client(name) for name in ("ec2", "iam", "s3", "ecr")}
    try:
        state = Cloud(clients.__getitem__, wanted["environment_name"], wanted["bucket"]).state()
    except (GroundcrewError, BotoCoreError, ClientError) as error:
        module.fail_json(msg=f"The cloud could not be read: {error}")
    module.exit_json(changed=False, cloud=state)


if __name__ == "__main__":
    main()
