"""A lock for other programs: `@EXPLICIT` for conda, mamba and micromamba, requirements for pip."""

from __future__ import annotations

from collections.abc import Mapping

from .addresses import address
from .lock import Lock


def export(lock: Lock, platform: str, channels: Mapping[str, str]) -> str:
    """The Conda packages as explicit addresses, python first: it links the packages that have no architecture.

    Raises GroundcrewError: the lock lacks the platform, or a channel is not mapped.
    """
    part = lock.platform(platform)
    packages = sorted(part.conda, key=lambda package: (package.name != "python", package))
    lines = [
        f"# Conda environment {lock.name} for {platform}, made from its lock by `make lock-export`.",
        f"# conda create --name {lock.name} --file <this file>; the same with mamba and micromamba.",
        f"# platform: {platform}",
        "@EXPLICIT",
    ]
    # The bare SHA-256 after # is the form that all three read: conda since 24.9 (conda/misc.py, url_pat; pull request 14048),
    # mamba and micromamba 2 (libmamba/src/specs/package_info.cpp, PackageInfo::from_url). Older ones read MD5 alone.
    lines += [
        f"{address(p.channel, channels)}/{p.subdir}/{p.file_name}#{p.sha256}" for p in packages
    ]
    if part.pip:
        lines.append("# Then, from the requirements beside this file: pip install --no-deps -r …")
        lines += [f"# pip {package.name}=={package.version}" for package in sorted(part.pip)]
    return "\n".join(lines) + "\n"


def requirements(lock: Lock, platform: str) -> str:
    """The packages of the pip section with their hashes, as `pip install --require-hashes` reads them; "" for none."""
    return "".join(
        " \\\n    ".join(
            [f"{package.name}=={package.version}", *(f"--hash=sha256:{h}" for h in package.sha256)]
        )
        + "\n"
        for package in sorted(lock.platform(platform).pip)
    )
