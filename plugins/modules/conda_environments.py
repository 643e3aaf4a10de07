#!/usr/bin/python
"""Bring the Conda environments of a host to what their locks say; thin over groundcrew.conda."""

from __future__ import annotations

DOCUMENTATION = r"""
module: conda_environments
short_description: Build, switch, heal and remove the Conda environments of a host
description:
  - All environments of the host in one call. Nothing is solved; an environment that is as its lock says costs milliseconds.
  - A build is made beside the one in use and switched to by one link. When something fails, what was in use stays in use.
  - In check mode it says what would be done, and which tools are missing.
options:
  root: {description: "Where environments, caches and tools are.", type: path, required: true}
  environments:
    description: The environments that there should be; others under O(root) are removed.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the environment., type: str, required: true}
      lock: {description: Text of its lock., type: str, required: true}
  channels: {description: Channel name to address., type: dict, default: {}}
  pip_index: {description: Address of the Python package index; empty is uv's own configuration., type: str, default: ""}
  hard_links: {description: Whether files may be hard links into the cache where reflinks are not possible., type: bool, default: true}
  tools: {description: "Tools as name==version.", type: list, elements: str, default: []}
  wheels: {description: Folder on the host that holds the wheels of missing tools., type: path}
  heal: {description: Build environments that differ from their locks anew from a verified cache., type: bool, default: false}
"""

RETURN = r"""
environments:
  description: "For each environment name, action (same, switched, built, healed, removed), build, before, downloaded, seconds."
  type: list
  elements: dict
  returned: always
platform: {description: "Conda's name for the platform of the host.", type: str, returned: always}
tools_missing: {description: Tools that are not there., type: list, elements: str, returned: always}
settings_differ: {description: Whether the host has kept other channels, pip index or linking than these., type: bool, returned: always}
pruned: {description: Builds that were removed., type: list, elements: str, returned: always}
machine: {description: "What the machine image brings: system, driver, CUDA, a Conda or PyTorch of its own.", type: dict, returned: always}
"""

import shutil
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import fingerprint
from ansible.module_utils.groundcrew.conda import drift, environments, tools
from ansible.module_utils.groundcrew.conda.layout import (
    Layout,
    machine_platform,
    read_json,
    write_json,
)
from ansible.module_utils.groundcrew.errors import GroundcrewError


def wanted_settings(parameters):
    return {key: parameters[key] for key in ("channels", "pip_index", "hard_links")}


def kept_settings(layout):
    try:
        return read_json(layout.settings)
    except GroundcrewError:
        # A damaged file is written anew.
        return None


def ensure(layout, parameters):
    """Bring all of them there; the outcomes so far are in the error when one fails."""
    settings = wanted_settings(parameters)
    # For `groundcrew-conda heal`; a channel's address may hold a password.
    write_json(layout.settings, settings, mode=0o600)
    outcomes = []
    for wanted in parameters["environments"]:
        name = wanted["name"]
        differs = parameters["heal"] and not drift.scan(layout, name)["ok"]
        heal = differs and layout.current(name) is not None
        outcomes.append(
            environments.ensure(
                layout, name, wanted["lock"], environments.Settings(**settings), heal
            )
        )
    for name in left_over(layout, parameters):
        outcomes.append(environments.remove(layout, name))
    return outcomes


def left_over(layout, parameters):
    return sorted(set(layout.names()) - {wanted["name"] for wanted in parameters["environments"]})


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "environments": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "lock": {"type": "str", "required": True},
                },
            },
            "channels": {"type": "dict", "default": {}},
            "pip_index": {"type": "str", "default": ""},
            "hard_links": {"type": "bool", "default": True},
            "tools": {"type": "list", "elements": "str", "default": []},
            "wheels": {"type": "path"},
            "heal": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    layout = Layout(Path(parameters["root"]))
    result = {
        "machine": fingerprint.machine(),
        "pruned": [],
        "tools_missing": [],
        "settings_differ": False,
    }
    try:
        platform = result["platform"] = machine_platform()
        result["tools_missing"] = tools.missing(layout, parameters["tools"])
        result["settings_differ"] = kept_settings(layout) != wanted_settings(parameters)
        if module.check_mode:
            outcomes = [
                environments.plan(layout, wanted["name"], wanted["lock"], platform)
                for wanted in parameters["environments"]
            ]
            outcomes += [
                environments.Outcome(name, "removed", "", layout.current(name))
                for name in left_over(layout, parameters)
            ]
        else:
            for requirement in result["tools_missing"]:
                tools.unpack(layout, requirement, Path(parameters["wheels"] or "/nonexistent"))
            if parameters["wheels"]:
                shutil.rmtree(parameters["wheels"], ignore_errors=True)
            outcomes = ensure(layout, parameters)
            result["pruned"] = environments.prune(layout)
    except GroundcrewError as error:
        module.fail_json(msg=str(error), **result)
    changed = [outcome for outcome in outcomes if outcome.changed]
    module.exit_json(
        changed=bool(
            changed or result["tools_missing"] or result["pruned"] or result["settings_differ"]
        ),
        environments=[asdict(outcome) for outcome in outcomes],
        diff={
            "before": "".join(f"{o.name} {o.before or 'absent'}\n" for o in changed),
            "after": "".join(f"{o.name} {o.build or 'absent'}\n" for o in changed),
        },
        **result,
    )


if __name__ == "__main__":
    main()
