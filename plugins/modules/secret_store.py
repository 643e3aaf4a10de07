#!/usr/bin/python
"""Make the secrets of an environment that are missing and return all of them; thin over groundcrew.secret_store."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_store
short_description: Ensure that secrets exist in AWS Secrets Manager and return them
description:
  - One call for all secrets of an environment. Runs on the controller. Use C(no_log), the result holds secrets.
  - Region, endpoint and credentials come from boto3's default chain, that is from the play's C(environment).
options:
  prefix: {description: What every name starts with., type: str, required: true}
  update: {description: "Name to fields that are set in its value.", type: dict, default: {}}
  secrets: {description: "Name to {kind, names, issuer, title}; see groundcrew.secret_store.", type: dict, required: true}
"""

RETURN = r"""
secrets: {description: Name to value., type: dict, returned: always}
made: {description: The names that were made now., type: list, elements: str, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.errors import GroundcrewError
from ansible.module_utils.groundcrew.secret_store import SecretStore


def main():
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "str", "required": True},
            # The names and kinds are no secrets; censoring them would blank these words everywhere in the output.
            "secrets": {"type": "dict", "required": True, "no_log": False},
            "update": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    import boto3
    import botocore.exceptions

    try:
        store = SecretStore(boto3.client("secretsmanager"), module.params["prefix"])
        values, made = store.ensure(module.params["secrets"], dry_run=module.check_mode)
        for name, fields in module.params["update"].items():
            if any(values[name].get(key) != value for key, value in fields.items()):
                values[name] = {**values[name], **fields}
                made.append(name)
                if not module.check_mode:
                    store.write(name, values[name])
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        module.fail_json(
            msg=f"The secret store gave no secrets: {error}. Check the region, the credentials and the network."
        )
    module.exit_json(changed=bool(made), made=made, secrets=values)


if __name__ == "__main__":
    main()
