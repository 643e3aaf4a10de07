"""Bytecode that is compiled when a build is made: it is run without a look at its source, so it must be what was compiled."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from channel import Package, locked
from conda_host import Host
from groundcrew.conda import drift, environments
from groundcrew.conda.layout import Layout
from groundcrew.conda.lock import Lock, PlatformLock, render
from real_python import REAL_PYTHON, SITE

MODULE = Package(
    "module",
    files={
        f"{SITE}/module.py": "print('right')\n",
        f"{SITE}/broken.py": "this is no Python\n",
        f"{SITE}/module-1.0.dist-info/METADATA": "Name: module\n",
    },
)


class PythonHost(Host):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, (REAL_PYTHON, MODULE))
        lock = PlatformLock(tuple(locked(self.channel, p) for p in (REAL_PYTHON, MODULE)))
        self.text = render(Lock("a", "0" * 64, {self.settings.platform: lock}))

    def build(self, name: str, heal: bool = False) -> None:
        environments.ensure(self.layout, name, self.text, self.settings, heal=heal)

    def bytecode(self, name: str) -> Path:
        (path,) = self.file(name, f"{SITE}/__pycache__").glob("module.*.pyc")
        return path

    def runs(self, name: str) -> str:
        command = [str(self.file(name, "bin/python")), "-c", "import module"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def host(tmp_path: Path) -> PythonHost:
    return PythonHost(tmp_path)


def spoil(path: Path) -> None:
    """Another program in place of the compiled one, in place."""
    content = path.read_bytes()
    assert b"right" in content
    path.chmod(0o644)
    path.write_bytes(content.replace(b"right", b"wrong"))


def test_bytecode_is_compiled_once_and_shared(host: PythonHost) -> None:
    host.build("a")
    host.build("b")
    assert host.runs("a") == host.runs("b") == "right\n"
    assert host.bytecode("a").stat().st_ino == host.bytecode("b").stat().st_ino
    assert [r["ok"] for r in drift.scan_all(host.layout, ["a", "b"])] == [True, True]


def test_changed_bytecode_is_drift_and_heals(host: PythonHost) -> None:
    host.build("a")
    spoil(host.bytecode("a"))
    assert host.runs("a") == "wrong\n"
    (found,) = drift.scan(host.layout, "a")["files"]
    assert found["change"] == "changed" and found["path"].endswith(".pyc")
    host.build("a", heal=True)
    assert host.runs("a") == "right\n" and drift.scan(host.layout, "a")["ok"]


def test_changed_bytecode_does_not_get_into_the_next_environment(host: PythonHost) -> None:
    host.build("a")
    spoil(host.bytecode("a"))
    host.build("b")
    assert host.runs("b") == "right\n"


def test_a_damaged_list_of_bytecode_is_made_anew(host: PythonHost) -> None:
    host.build("a")
    for path in host.layout.bytecode.glob("*/digests.json"):
        path.write_text("{")
    host.build("b")
    assert host.runs("b") == "right\n" and drift.scan(host.layout, "b")["ok"]


def test_where_it_was_compiled_is_no_difference_between_hosts(
    host: PythonHost, tmp_path: Path
) -> None:
    host.build("a")
    other = Layout(tmp_path / "another root")
    environments.ensure(other, "a", host.text, host.settings)
    fingerprints = {drift.scan(layout, "a")["fingerprint"] for layout in (host.layout, other)}
    assert len(fingerprints) == 1
    # What Python itself writes at a first import of something else is no drift.
    host.file("a", f"{SITE}/__pycache__").chmod(0o755)
    (host.bytecode("a").with_name("new.cpython-311.pyc")).write_bytes(b"")
    assert drift.scan(host.layout, "a")["ok"]
