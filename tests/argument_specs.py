#!/usr/bin/env python3
"""Check that every role's defaults, argument spec and README tell the same story.

Usage: tests/argument_specs.py [ROLES_DIRECTORY]
Exit status 1 when a role fails; the last line says how many passed and failed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
MARKER = "<!-- variables -->"
TYPES = {
    "str",
    "int",
    "float",
    "bool",
    "list",
    "dict",
    "path",
    "raw",
    "jsonarg",
    "json",
    "bytes",
    "bits",
}


def read_yaml(path: Path) -> Any:
    """The data of a YAML file; an empty dictionary when there is no such file or nothing in it."""
    return (yaml.safe_load(path.read_text()) if path.is_file() else None) or {}


def option_faults(name: str, option: dict[str, Any]) -> Iterator[str]:
    """What is missing in one option of a spec and in those nested in it."""
    if option.get("type") not in TYPES:
        yield f"'{name}' has the type '{option.get('type')}'; use one of {', '.join(sorted(TYPES))}"
    if not option.get("description"):
        yield f"'{name}' has no description"
    if option.get("type") == "list" and "elements" not in option:
        yield f"'{name}' is a list and does not say what its elements are (elements:)"
    for key, nested in (option.get("options") or {}).items():
        yield from option_faults(f"{name}.{key}", nested)


def faults(role: Path) -> list[str]:
    """What is wrong with a role, one line each, with the file to edit."""
    found = []
    spec_file = role / "meta" / "argument_specs.yml"
    defaults = read_yaml(role / "defaults" / "main.yml")
    spec = read_yaml(spec_file)
    if not spec_file.is_file():
        found.append("meta/argument_specs.yml is missing")
    options = ((spec.get("argument_specs") or {}).get("main") or {}).get("options") or {}
    for name in sorted(defaults.keys() - options.keys()):
        found.append(
            f"'{name}' is in defaults/main.yml and not in meta/argument_specs.yml; describe it there"
        )
    # A required option must not have a default: nobody would notice that it was not given.
    required = {name for name, option in options.items() if option.get("required")}
    for name in sorted(options.keys() - defaults.keys() - required):
        found.append(
            f"'{name}' is in meta/argument_specs.yml and not in defaults/main.yml; a spec's default sets "
            "nothing, so set it there or mark it required"
        )
    for name in sorted(required & defaults.keys()):
        found.append(
            f"'{name}' is required in meta/argument_specs.yml and has a default in defaults/main.yml; keep one"
        )
    prefix = f"{role.name}_"
    for name in sorted(defaults.keys() | options.keys()):
        if not name.startswith(prefix):
            found.append(f"'{name}' does not start with '{prefix}'; rename it")
    for name, option in options.items():
        found += [f"meta/argument_specs.yml: {fault}" for fault in option_faults(name, option)]
    for name in read_yaml(role / "vars" / "main.yml"):
        if not name.startswith(f"__{prefix}"):
            found.append(f"'{name}' in vars/main.yml does not start with '__{prefix}'; rename it")
    readme = role / "README.md"
    if not readme.is_file():
        found.append(f"README.md is missing; one paragraph and the line {MARKER}")
    elif MARKER not in readme.read_text().splitlines():
        found.append(
            f"README.md lacks the line {MARKER}, below which `make readmes` writes the variables"
        )
    return found


def main() -> int:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "roles"
    roles = sorted(path for path in directory.iterdir() if (path / "tasks").is_dir())
    failed = 0
    for role in roles:
        found = faults(role)
        failed += bool(found)
        for fault in found:
            print(f"{role.name}: {fault}.")
    print(f"{len(roles) - failed} passed, {failed} failed")
    # A check that looked at nothing has shown nothing.
    return 1 if failed or not roles else 0


if __name__ == "__main__":
    sys.exit(main())
