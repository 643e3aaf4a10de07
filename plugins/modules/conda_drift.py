#!/usr/bin/python
"""Compare the Conda environments of a host with their locks; thin over groundcrew.conda.drift."""

from __future__ import annotations

DOCUMENTATION = r"""
module: conda_drift
short_description: Say what differs between a host's Conda environments and their locks
description: [Reads every file of every environment; changes nothing.]
options:
  root: {description: Where the environments are., type: path, required: true}
"""

RETURN = r"""
reports: {description: "One for each environment, as groundcrew.conda.drift.scan has it.", type: list, elements: dict, returned: always}
lines: {description: The reports for people., type: list, elements: str, returned: always}
ok: {description: Whether nothing differs., type: bool, returned: always}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.conda import drift
from ansible.module_utils.groundcrew.conda.layout import Layout
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main():
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "required": True}}, supports_check_mode=True
    )
    layout = Layout(Path(module.params["root"]))
    try:
        reports = drift.scan_all(layout, layout.declared())
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        reports=reports,
        lines=[line for report in reports for line in drift.lines(report)],
        ok=all(report["ok"] for report in reports),
    )


if __name__ == "__main__":
    main()
