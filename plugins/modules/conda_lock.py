#!/usr/bin/python
"""Lock Conda environments, or render their locks for other programs; thin over groundcrew.conda."""

from __future__ import annotations

DOCUMENTATION = r"""
module: conda_lock
short_description: Lock Conda environments, or render their locks for conda, mamba and pip
description:
  - "locked: solves <directory>/<name>.yml for every platform and writes <directory>/<name>.lock. All specs are solved before anything
    is written: when one fails, no lock changes."
  - "exported: renders locks into <export_directory>/<name>-<platform>.explicit.txt (@EXPLICIT) and .requirements.txt (the pip section)."
  - Runs on the controller. In check mode it reports the difference and writes nothing.
options:
  state: {description: What is wanted., type: str, choices: [locked, exported], default: locked}
  directory: {description: Where specs and locks are., type: path, required: true}
  names: {description: The environments; empty for every spec of the directory., type: list, elements: str, default: []}
  upgrade: {description: "Packages to bring up to date; every other one keeps its locked file where possible.", type: list, elements: str, default: []}
  channels: {description: Channel name to address., type: dict, required: true}
  platforms: {description: "linux-64, linux-aarch64.", type: list, elements: str, default: []}
  virtual_packages: {description: What hosts are known to have; keys of platforms and environments hold mappings of their own., type: dict, default: {}}
  export_directory: {description: Where exported files go., type: path}
"""

RETURN = r"""
difference: {description: "What changed since the last locks, a line a package.", type: list, elements: str, returned: locked}
paths: {description: The locks or exported files., type: list, elements: str, returned: always}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.conda.export import export, requirements
from ansible.module_utils.groundcrew.conda.solve import lock_file, read_lock, specs, write_text
from ansible.module_utils.groundcrew.errors import GroundcrewError


def lock(parameters, names):
    """Text by path, differences and warnings; every failing spec is reported."""
    directory = Path(parameters["directory"])
    texts, difference, warnings, errors = {}, [], [], []
    for name in names:
        try:
            solution = lock_file(
                directory,
                name,
                parameters["channels"],
                parameters["platforms"],
                parameters["virtual_packages"],
                parameters["upgrade"],
            )
        except GroundcrewError as error:
            errors.append(str(error))
            continue
        texts[directory / f"{name}.lock"] = solution.text
        difference += solution.difference
        warnings += solution.warnings
    if errors:
        # One channel that is in the way is said once.
        raise GroundcrewError("\n\n".join(["No lock was changed.", *dict.fromkeys(errors)]))
    return texts, difference, warnings


def exported(parameters, names):
    texts = {}
    for name in names:
        found, wrong = read_lock(Path(parameters["directory"]), name)
        if found is None:
            raise GroundcrewError(
                wrong or f"Environment '{name}' has no lock yet. Run: make lock conda={name}"
            )
        for platform in sorted(found.platforms):
            stem = Path(parameters["export_directory"]) / f"{name}-{platform}"
            texts[stem.with_name(stem.name + ".explicit.txt")] = export(
                found, platform, parameters["channels"]
            )
            pip = requirements(found, platform)
            if pip:
                texts[stem.with_name(stem.name + ".requirements.txt")] = pip
    return texts


def is_changed(path, text):
    return not path.exists() or path.read_bytes() != text.encode()


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["locked", "exported"], "default": "locked"},
            "directory": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "upgrade": {"type": "list", "elements": "str", "default": []},
            "channels": {"type": "dict", "required": True},
            "platforms": {"type": "list", "elements": "str", "default": []},
            "virtual_packages": {"type": "dict", "default": {}},
            "export_directory": {"type": "path"},
        },
        required_if=[
            ("state", "locked", ["platforms"]),
            ("state", "exported", ["export_directory"]),
        ],
        supports_check_mode=True,
    )
    parameters, difference, warnings = module.params, [], []
    directory = Path(parameters["directory"])
    names = parameters["names"] or specs(directory)
    if not names:
        module.fail_json(msg=f"There is no spec in {directory}. Write one: {directory}/<name>.yml")
    try:
        if parameters["state"] == "locked":
            texts, difference, warnings = lock(parameters, names)
        else:
            texts = exported(parameters, names)
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    for warning in warnings:
        module.warn(warning)
    changed = [path for path, text in texts.items() if is_changed(path, text)]
    if not module.check_mode:
        for path in changed:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, texts[path])
    module.exit_json(
        changed=bool(changed),
        difference=difference,
        paths=[str(path) for path in texts],
    )


if __name__ == "__main__":
    main()
