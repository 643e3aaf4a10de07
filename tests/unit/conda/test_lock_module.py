"""The Ansible module conda_lock as a program of its own: what it writes and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from channel import Package, make_channel

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
# Ansible packs a module with its module_utils; here they are beside Ansible's own. An Ansible process each would take ten times as long.
AS_ANSIBLE = f"""
import runpy
import ansible.module_utils
ansible.module_utils.__path__.append({str(PLUGINS / "module_utils")!r})
runpy.run_path({str(PLUGINS / "modules/conda_lock.py")!r}, run_name="__main__")
"""


class Module:
    def __init__(self, folder: Path) -> None:
        self.folder, self.specs = folder, folder / "specs"
        self.specs.mkdir()
        self.channels = {
            "local": make_channel(folder / "channel", Package("a", "1.0", noarch="generic"))
        }

    def spec(self, name: str, dependency: str) -> None:
        text = f"channels: [local]\ndependencies: ['{dependency}']\n"
        (self.specs / f"{name}.yml").write_text(text)

    def run(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        given = {
            "directory": str(self.specs),
            "channels": self.channels,
            "platforms": ["linux-64", "linux-aarch64"],
            **arguments,
        }
        done = subprocess.run(
            [sys.executable, "-c", AS_ANSIBLE],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {**given, "_ansible_check_mode": check}}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.specs.iterdir()}


@pytest.fixture
def module(tmp_path: Path) -> Module:
    return Module(tmp_path)


def test_check_mode_tells_the_difference_and_a_second_run_changes_nothing(module: Module) -> None:
    module.spec("one", "a=1")
    module.spec("two", "a")
    checked = module.run(check=True)
    assert checked["changed"] and module.files == {"one.yml", "two.yml"}
    first = module.run()
    assert first["changed"] and first["difference"] == checked["difference"]
    assert "one, linux-64: 1 added, 0 removed, 0 changed" in first["difference"]
    assert [Path(path).name for path in first["paths"]] == ["one.lock", "two.lock"]
    assert "a has no version" in str(first["warnings"])
    second = module.run()
    assert not second["changed"] and second["difference"] == []


def test_one_spec_that_fails_leaves_every_lock(module: Module) -> None:
    module.spec("good", "a=1")
    module.spec("bad", "nope=1")
    failed = module.run()
    assert failed["failed"] and failed["msg"].startswith("No lock was changed.")
    assert "Environment 'bad' has no solution" in failed["msg"]
    assert module.files == {"good.yml", "bad.yml"}
    assert module.run(names=["good"])["changed"]
    assert module.files == {"good.yml", "good.lock", "bad.yml"}


def test_an_export_needs_a_lock_and_lies_where_it_is_asked_for(module: Module) -> None:
    module.spec("one", "a=1")
    target = module.folder / "out"
    wanted = {"state": "exported", "export_directory": str(target)}
    assert "Run: make lock conda=one" in module.run(**wanted)["msg"]
    module.run()
    exported = module.run(**wanted)
    assert exported["changed"] and not module.run(**wanted)["changed"]
    assert {path.name for path in target.iterdir()} == {
        "one-linux-64.explicit.txt",
        "one-linux-aarch64.explicit.txt",
    }
    assert (
        f"{module.channels['local']}/noarch/a-1.0-0.conda#"
        in (target / "one-linux-64.explicit.txt").read_text()
    )


def test_a_folder_without_specs_is_said(module: Module) -> None:
    assert "There is no spec in" in module.run()["msg"]
