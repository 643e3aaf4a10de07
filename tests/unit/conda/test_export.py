"""A lock for conda, mamba and micromamba, and for pip."""

from __future__ import annotations

import pytest
from groundcrew.conda.export import export, requirements
from groundcrew.conda.lock import CondaPackage, Lock, PipPackage, PlatformLock
from groundcrew.errors import GroundcrewError
from packaging.requirements import Requirement
from rattler.explicit_environment import ExplicitEnvironmentSpec

SHA = "0123456789abcdef" * 4
LOCK = Lock(
    "digits",
    SHA,
    {
        "linux-64": PlatformLock(
            (
                CondaPackage("conda-forge", "linux-64", "numpy-2.4.6-py311_0.conda", SHA),
                CondaPackage("conda-forge", "linux-64", "python-3.11.9-0.conda", SHA),
                CondaPackage("team", "noarch", "six-1.17.0-py_0.tar.bz2", SHA),
            ),
            (PipPackage("tool", "1.0", (SHA, SHA[::-1])),),
        ),
        "linux-aarch64": PlatformLock(),
    },
)
CHANNELS = {"conda-forge": "https://mirror.example.org/conda-forge/", "team": "/srv/team"}


def test_explicit_lines_are_absolute_and_end_in_the_sha256() -> None:
    lines = export(LOCK, "linux-64", CHANNELS).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "@EXPLICIT",
        f"https://mirror.example.org/conda-forge/linux-64/python-3.11.9-0.conda#{SHA}",
        f"https://mirror.example.org/conda-forge/linux-64/numpy-2.4.6-py311_0.conda#{SHA}",
        f"file:///srv/team/noarch/six-1.17.0-py_0.tar.bz2#{SHA}",
    ]
    assert "# pip tool==1.0" in lines and "# platform: linux-64" in lines


def test_rattler_reads_what_is_exported() -> None:
    read = ExplicitEnvironmentSpec.from_str(export(LOCK, "linux-64", CHANNELS))
    assert str(read.platform) == "linux-64" and len(read.packages) == 3


def test_requirements_carry_every_hash() -> None:
    text = requirements(LOCK, "linux-64")
    assert text == f"tool==1.0 \\\n    --hash=sha256:{SHA} \\\n    --hash=sha256:{SHA[::-1]}\n"
    assert str(Requirement(text.split()[0])) == "tool==1.0"
    assert requirements(LOCK, "linux-aarch64") == ""


def test_an_unmapped_channel_and_a_missing_platform_are_named() -> None:
    with pytest.raises(GroundcrewError, match="Channel 'team' has no address"):
        export(LOCK, "linux-64", {"conda-forge": "https://example.org"})
    with pytest.raises(GroundcrewError, match="no packages for osx-64"):
        export(LOCK, "osx-64", CHANNELS)
