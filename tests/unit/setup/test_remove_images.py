"""remove-images with a stub of Docker: ours go, others stay, and none goes while an environment is left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "files/local_cloud/remove-images"
OURS = ["groundcrew/base:1a", "127.0.0.1:5077/groundcrew/base:1a"]
DOCKER = """#!/bin/sh
case $1 in
ps) echo "%s" ;;
images) printf '%%s\\n' %s ;;
rmi) echo "$@" >"$(dirname "$0")/removed" ;;
esac
"""


@pytest.mark.parametrize(
    ("container", "images", "said", "removed"),
    [
        ("", [*OURS, "debian:12", "notgroundcrew/x:1"], "removed", ["rmi", "--force", *OURS]),
        ("1a2b3c", OURS, "kept: another environment uses them", None),
        ("", ["debian:12"], "", None),
    ],
)
def test_images(
    tmp_path: Path, container: str, images: list[str], said: str, removed: list[str] | None
) -> None:
    docker = tmp_path / "usr/bin/docker"
    docker.parent.mkdir(parents=True)
    docker.write_text(DOCKER % (container, " ".join(images)))
    docker.chmod(0o755)
    done = subprocess.run(
        [str(PROGRAM)],
        env={"PATH": "/usr/bin:/bin", "LOCAL_CLOUD_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    note = docker.parent / "removed"
    assert done.stdout.strip() == said
    assert (note.read_text().split() if note.exists() else None) == removed
