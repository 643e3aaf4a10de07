#!/usr/bin/python
"""Tell which models and versions there are and what serves where; thin over groundcrew.models_report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: models_report
short_description: Tell which models and versions there are and what serves where
description:
  - Runs on the controller and changes nothing. Region, endpoint and credentials come from the play's C(environment).
  - A version whose manifest cannot be read is listed as such.
options:
  environment_name: {description: Name of the environment., type: str, required: true}
  bucket: {description: Name of the store., type: str, required: true}
  variants: {description: The variants of all declared models., type: list, elements: dict, required: true}
  fleets: {description: Fleet to the names of its hosts., type: dict, required: true}
  rollbacks:
    description: >-
      Host to the results of a loop over models of module container_release with O(ignore:rollback), in check mode. Hosts that were not
      asked are left out.
    type: dict
    default: {}
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none}
requirements: [boto3]
author: [Groundcrew]
"""

EXAMPLES = r"""
- name: Ask the store
  models_report:
    environment_name: prod
    bucket: groundcrew-prod-store
    variants: "{{ model_variants }}"
    fleets: {prediction: [prod-prediction-1]}
  delegate_to: localhost
  environment: "{{ controller_environment }}"
"""

RETURN = r"""
report: {description: ok, checks, environment, created and models., returned: success, type: dict}
lines: {description: The report as a table., returned: success, type: list, elements: str}
page: {description: The report as an HTML page., returned: success, type: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import models_report, objects
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main():
    module = AnsibleModule(
        argument_spec={
            "environment_name": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "variants": {"type": "list", "elements": "dict", "required": True},
            "fleets": {"type": "dict", "required": True},
            "rollbacks": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    serving = {variant["fleet"] for variant in wanted["variants"]}
    hosts = sorted({host for fleet in serving for host in wanted["fleets"].get(fleet, [])})
    try:
        with objects.readable_errors(wanted["bucket"]):
            store = models_report.read(objects.open_client(), wanted["bucket"], hosts)
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    report = models_report.report(
        wanted["environment_name"],
        store,
        wanted["variants"],
        wanted["fleets"],
        wanted["rollbacks"],
    )
    module.exit_json(
        changed=False,
        report=report,
        lines=models_report.lines(report),
        page=models_report.page(report),
    )


if __name__ == "__main__":
    main()
