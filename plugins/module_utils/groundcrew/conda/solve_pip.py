"""Resolves the pip section of a spec beside the packages that Conda provides. Controller only: it runs uv."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from ..errors import GroundcrewError
from .addresses import without_secrets
from .lock import PipPackage
from .spec import pip_name

# Conda names of Python packages that the package index knows under another one.
INDEX_NAMES = {
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "py-xgboost": "xgboost",
    "pytables": "tables",
    "python-flatbuffers": "flatbuffers",
    "python-graphviz": "graphviz",
    "python-tzdata": "tzdata",
    "pytorch": "torch",
}
_ARCHITECTURES = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}
_GLIBC = (17, 28, *range(31, 41))  # the platforms that uv knows: manylinux_2_<n>


def solve_pip(
    environment: str,
    requirements: Iterable[str],
    *,
    platform: str,
    python: str,
    glibc: str,
    provided: Mapping[str, str],
    old: Iterable[PipPackage] = (),
    upgrade: Collection[str] = (),
    only_binary: bool = True,
) -> tuple[PipPackage, ...]:
    """The releases that a pip section needs besides what Conda provides, with the SHA-256 of each of their files.

    ``provided`` maps names of Python packages to Conda's versions. Releases of ``old`` are kept where they fit, unless
    ``upgrade`` names them. The index is that of the environment: UV_INDEX_URL, UV_DEFAULT_INDEX or PIP_INDEX_URL.

    Raises GroundcrewError: a requirement conflicts with Conda's version, or uv finds no solution (with its explanation).
    """
    provided = {INDEX_NAMES.get(n, pip_name(n)): v for n, v in provided.items() if _is_version(v)}
    wanted = []
    for text in requirements:
        requirement = Requirement(text)
        version = provided.get(pip_name(requirement.name))
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            raise GroundcrewError(
                f"Environment '{environment}', {platform}: its pip section asks for {text}, Conda provides"
                f" {requirement.name} {version}. Remove it from the pip section and pin it under `dependencies`."
            )
        if version is None or requirement.extras:
            wanted.append(text)
    if not wanted:
        return ()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wanted.in").write_text("\n".join(wanted) + "\n")
        constraints = "".join(f"{n}=={v}\n" for n, v in sorted(provided.items()))
        (folder / "conda.txt").write_text(constraints)
        # uv keeps what its output file has.
        (folder / "out.txt").write_text("".join(f"{p.name}=={p.version}\n" for p in sorted(old)))
        command = [_uv(), "pip", "compile", "wanted.in", "--constraint", "conda.txt"]
        command += ["--output-file", "out.txt", "--quiet", "--color", "never", "--no-config"]
        command += ["--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--python", sys.executable]
        command += ["--python-version", python, "--python-platform", _target(platform, glibc)]
        command += ["--only-binary", ":all:"] if only_binary else []
        for package in sorted(upgrade):
            command += ["--upgrade-package", package]
        done = subprocess.run(
            command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            beside = ", ".join(f"{n} {v}" for n, v in sorted(provided.items()))
            raise GroundcrewError(
                f"Environment '{environment}', {platform}: its pip section does not resolve for Python {python}"
                f" beside Conda's {beside or 'packages'}. uv says:\n{without_secrets(done.stderr.strip())}"
            )
        return tuple(
            package
            for package in _releases((folder / "out.txt").read_text())
            if package.name not in provided
        )


def _releases(text: str) -> list[PipPackage]:
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if not words:
            continue
        name, equals, version = words[0].partition("==")
        hashes = sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
        if not equals or not hashes:
            raise GroundcrewError(
                f"uv gives '{without_secrets(line)}': no release with a SHA-256, so it cannot be locked."
            )
        found.append(PipPackage(pip_name(name), version, tuple(hashes)))
    return sorted(found)


def _target(platform: str, glibc: str) -> str:
    """uv's name of the platform; of a glibc that it does not know the next older one."""
    minor = int((re.match(r"2\.(\d+)", glibc) or ["", "17"])[1])
    best = max((known for known in _GLIBC if known <= minor), default=_GLIBC[0])
    return f"{_ARCHITECTURES[platform]}-manylinux_2_{best}"


def _environment() -> dict[str, str]:
    """Image builds and setup.sh honour pip's variable for the index; uv reads its own alone."""
    environment = dict(os.environ)
    index = environment.get("PIP_INDEX_URL")
    if index and not {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & set(environment):
        environment["UV_DEFAULT_INDEX"] = index
    return environment


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise GroundcrewError("uv is missing, which resolves pip sections. Run: make setup")
    return found


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
