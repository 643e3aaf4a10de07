"""setup.sh on machines that lack something: one clear message, a status other than zero, nothing half-done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = (
    "bash",
    "sh",
    "cat",
    "sha256sum",
    "cut",
    "id",
    "df",
    "awk",
    "dirname",
    "rm",
    "env",
    "uname",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup.sh needs of the repository, readable by anybody, and a PATH with little on it."""
    for name in ("setup.sh", "requirements"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    (tools / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tools / "python3").chmod(0o755)
    (tools / "ssh").symlink_to("/bin/true")
    for folder in [tmp_path, *tmp_path.parents]:
        if folder != Path("/") and folder.owner() == "root" and os.getuid() == 0:
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


def run(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "setup.sh")],
        env={"PATH": str(checkout / "bin"), "HOME": str(checkout), "LC_ALL": "C", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def fake(checkout: Path, name: str, body: str) -> None:
    path = checkout / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_no_root_no_sudo_and_no_docker(checkout: Path) -> None:
    fake(checkout, "id", 'if [ "$1" = -un ]; then echo ada; else echo 1000; fi')
    done = run(checkout)
    assert done.returncode != 0
    assert "you are 'ada', there is no sudo, and no Docker Engine answers" in done.stderr
    assert not (checkout / ".venv").exists()


def test_too_little_disk(checkout: Path) -> None:
    fake(checkout, "df", "echo header; echo '/dev/x 100 50 4194304 50% /'")
    done = run(checkout)
    assert done.returncode != 0
    assert "4 GB are free" in done.stderr and "10 GB are needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python(checkout: Path) -> None:
    fake(checkout, "python3", "exit 1")
    done = run(checkout)
    assert done.returncode != 0
    assert "no Python 3.11 or newer" in done.stderr and "apt-get install python3" in done.stderr


def test_registry_does_not_answer(checkout: Path) -> None:
    # A closed port on loopback; no configuration of this machine may offer another way.
    done = run(
        checkout,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_CACHE_DIR="1",
        PIP_TIMEOUT="2",
    )
    assert done.returncode != 0
    assert "the Python package registry does not answer" in done.stderr
    assert "Nothing but .venv was touched" in done.stderr
    assert not (checkout / ".venv/.groundcrew-requirements").exists()
