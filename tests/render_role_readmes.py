#!/usr/bin/env python3
"""Write the table of variables into each role's README, from its argument spec and its defaults.

Usage: tests/render_role_readmes.py [--check] [ROLES_DIRECTORY]
Everything below the marker line is replaced. With --check nothing is written, and a stale README fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
MARKER = "<!-- variables -->"


def cell(text: str) -> str:
    """Text for one cell of a Markdown table."""
    # <name> would be taken for HTML.
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def code(value: Any) -> str:
    """A value as code in one cell."""
    text = value if isinstance(value, str) and value else json.dumps(value)
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"


def describe(option: dict[str, Any]) -> str:
    description = option["description"]
    text = cell(" ".join(description) if isinstance(description, list) else description)
    if option.get("choices"):
        text += " One of " + ", ".join(code(choice) for choice in option["choices"]) + "."
    return text


def rows(options: dict[str, Any], defaults: dict[str, Any], path: str = "") -> Iterator[str]:
    """A row for each option, those nested in it right after it."""
    for name, option in options.items():
        kind = option["type"]
        if "elements" in option:
            kind += f" of {option['elements']}"
        if path == "" and name in defaults:
            default = code(defaults[name])
        elif option.get("required"):
            default = "required"
        else:
            default = code(option["default"]) if "default" in option else ""
        yield f"| `{path}{name}` | {kind} | {default} | {describe(option)} |"
        deeper = f"{path}{name}{'[]' if option['type'] == 'list' else ''}."
        yield from rows(option.get("options") or {}, {}, deeper)


def render(role: Path) -> str:
    """The whole README as it should be."""
    readme = (role / "README.md").read_text()
    head, found, _ = readme.partition(MARKER + "\n")
    if not found:
        raise SystemExit(
            f"roles/{role.name}/README.md lacks the line {MARKER}; add it as its last line."
        )
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    defaults_file = role / "defaults" / "main.yml"
    defaults = (
        yaml.safe_load(defaults_file.read_text()) if defaults_file.is_file() else None
    ) or {}
    lines = ["| variable | type | default | what it is |", "|---|---|---|---|"]
    lines += rows(spec["argument_specs"]["main"].get("options") or {}, defaults)
    note = "Written by `make readmes` from meta/argument_specs.yml and defaults/main.yml."
    return head + MARKER + "\n\n" + "\n".join(lines) + f"\n\n{note}\n"


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    check = "--check" in sys.argv[1:]
    directory = Path(arguments[0]) if arguments else REPOSITORY / "roles"
    stale = []
    for role in sorted(path for path in directory.iterdir() if (path / "tasks").is_dir()):
        wanted = render(role)
        if wanted == (role / "README.md").read_text():
            continue
        stale.append(role.name)
        if not check:
            (role / "README.md").write_text(wanted)
    for name in stale:
        print(f"roles/{name}/README.md {'is stale; run: make readmes' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
