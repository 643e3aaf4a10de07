#!/usr/bin/python
"""Ask the store for the last run of each batch job."""

from __future__ import annotations

DOCUMENTATION = r"""
module: batch_runs
short_description: The runs of batch jobs that LATEST names
description:
  - Reads LATEST and the manifest that it names, of each job. Writes nothing.
  - Credentials come from boto3's default chain, such as the task's C(environment).
options:
  bucket: {description: Name of the bucket of the environment., type: str, required: true}
  jobs:
    description: Specifications of jobs, as the filter groundcrew_batch_jobs gives them.
    type: list
    elements: dict
    required: true
attributes:
  check_mode: {support: full, description: It changes nothing.}
  diff_mode: {support: none}
author: The Groundcrew contributors
"""

EXAMPLES = r"""
- name: service | Ask the store for the last run of each job
  batch_runs:
    bucket: groundcrew-prod-store
    jobs: "{{ wanted }}"
  delegate_to: localhost
  register: runs
"""

RETURN = r"""
known:
  description: Job id to what is known of its last success; jobs without one are left out.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import batch_store, jobs, objects
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bucket": {"type": "str", "required": True},
            "jobs": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    bucket, known = module.params["bucket"], {}
    try:
        with objects.readable_errors(bucket):
            client = objects.open_client()
            for job in module.params["jobs"]:
                # A bucket that is not there ends the play; a run that cannot be read does not.
                if objects.get(client, bucket, batch_store.latest_key(job["name"])) is None:
                    continue
                try:
                    run = batch_store.read_latest(client, bucket, job["name"], max_parts=0)
                    if run is not None:
                        known[job["id"]] = jobs.known_success(job, run.manifest)
                except (GroundcrewError, KeyError, ValueError) as error:
                    # The job itself replaces what is broken.
                    module.warn(f"the last run of {job['name']} cannot be read: {error}")
    except GroundcrewError as error:
        if not module.check_mode:
            module.fail_json(msg=str(error))
        # In a check run on a fresh environment there is no store yet.
        module.warn(str(error))
    module.exit_json(changed=False, known=known)


if __name__ == "__main__":
    main()
