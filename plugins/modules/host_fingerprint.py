#!/usr/bin/python
"""The fingerprint of a host, with its parts; thin over groundcrew.fingerprint."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_fingerprint
short_description: One digest over environments, containers, packages, kernel and driver of a host
description: [Reads only.]
options:
  conda_root: {description: Where the Conda environments are., type: path, required: true}
"""

RETURN = r"""
digest: {description: SHA-256 over the parts., type: str, returned: always}
parts: {description: "What it is made of, such as package/openssl: 3.0.17.", type: dict, returned: always}
environments: {description: Conda environment to the SHA-256 over its own parts., type: dict, returned: always}
releases: {description: "Running services and their releases; these are the host's own, so not in it.", type: dict, returned: always}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import fingerprint
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main():
    module = AnsibleModule(
        argument_spec={"conda_root": {"type": "path", "required": True}}, supports_check_mode=True
    )
    try:
        parts = fingerprint.parts(Path(module.params["conda_root"]))
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        digest=fingerprint.digest(parts),
        parts=parts,
        environments=fingerprint.environments(parts),
        releases=fingerprint.releases(),
    )


if __name__ == "__main__":
    main()
