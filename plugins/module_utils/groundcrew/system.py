"""What a host says about itself in its own files; standard library only, for hosts."""

from __future__ import annotations


def os_release(text: str) -> dict[str, str]:
    """Key to value of an os-release file."""
    pairs = (
        line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")
    )
    return {key: value.strip().strip("'\"") for key, value in pairs}


def installed_packages(text: str) -> dict[str, str]:
    """Package name to version of dpkg's status file; removed packages whose configuration stays do not count.

    A package that is there for two architectures has both versions, with a space between.
    """
    packages: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and line[0] not in " \t"
        )
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields.get("Version", "")
            packages[name] = " ".join(filter(None, (packages.get(name), version)))
    return packages
