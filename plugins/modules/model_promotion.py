#!/usr/bin/python
"""Write a model's version into the inventory, once it is proven whole; thin over groundcrew.inventory_edit."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_promotion
short_description: Write a model's version into the inventory, once it is proven whole
description:
  - Runs on the controller. Region, endpoint and credentials come from the play's C(environment).
  - Changes one value in O(path); comments, quotes and every other byte stay. What cannot be edited so is refused.
  - Nothing is deployed.
options:
  bucket: {description: Name of the store., type: str, required: true}
  model: {description: Name of the model., type: str, required: true}
  version: {description: "A version, or latest for the highest one that is whole.", type: str, required: true}
  path: {description: "The file with models:.", type: path, required: true}
  shown_path: {description: How messages and the diff call that file; the path when left out., type: str}
  verify:
    description: V(full) reads every file of the version and compares its sha256; V(quick) compares sizes.
    type: str
    choices: [full, quick]
    default: full
attributes:
  check_mode: {support: full, description: Says what would be written.}
  diff_mode: {support: full}
requirements: [boto3, PyYAML]
author: [Groundcrew]
"""

EXAMPLES = r"""
- name: Serve version 4 from the next deploy on
  model_promotion:
    bucket: groundcrew-prod-store
    model: digits
    version: "4"
    path: /home/me/groundcrew/inventories/prod/group_vars/prod/models.yml
  delegate_to: localhost
  environment: "{{ controller_environment }}"
"""

RETURN = r"""
before: {description: The version that the file said., returned: success, type: str}
version: {description: The version that it says now., returned: success, type: str}
metrics: {description: Version to its metrics; of the one before null when the store lacks it., returned: success, type: dict}
lines: {description: Both with their metrics., returned: success, type: list, elements: str}
passed_over: {description: "With latest, why higher versions were not taken.", returned: success, type: list, elements: str}
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import inventory_edit, models_report, objects
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main():
    module = AnsibleModule(
        argument_spec={
            "bucket": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "shown_path": {"type": "str"},
            "verify": {"type": "str", "choices": ["full", "quick"], "default": "full"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    shown = wanted["shown_path"] or wanted["path"]
    try:
        # Byte for byte: no line end may be translated.
        with open(wanted["path"], encoding="utf-8", newline="") as stream:
            text = stream.read()
        with objects.readable_errors(wanted["bucket"]):
            of = (objects.open_client(), wanted["bucket"], wanted["model"])
            chosen = models_report.choose(*of, wanted["version"], wanted["verify"] == "full")
            edited, before = inventory_edit.set_version(
                text, wanted["model"], chosen.version, shown
            )
            metrics = models_report.metrics_of(*of, before)
        if edited != text and not module.check_mode:
            write(module, edited)
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"{shown} cannot be read or written: {error}")
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=edited != text,
        before=before,
        version=chosen.version,
        metrics={before: metrics, chosen.version: chosen.metrics},
        lines=models_report.compare_lines(before, metrics, chosen.version, chosen.metrics),
        passed_over=chosen.passed_over,
        diff={
            "before": text,
            "after": edited,
            "before_header": shown,
            "after_header": shown,
        },
    )


def write(module, text):
    """Replace the file at once, with its mode; a link stays a link."""
    path = os.path.realpath(module.params["path"])
    descriptor, partial = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".models-")
    module.add_cleanup_file(partial)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
    module.atomic_move(partial, path)


if __name__ == "__main__":
    main()
