"""What a root may hold besides what is expected: leftovers of killed programs, things of people, odd permissions."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from conda_host import LIB, ONE, OTHER, TWO, Host
from groundcrew.conda import drift, environments
from groundcrew.conda.environments import Settings
from groundcrew.conda.layout import environment_of, read_json, write_json
from groundcrew.errors import GroundcrewError


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_only_builds_have_a_builds_name() -> None:
    assert environment_of("a-0123456789ab") == environment_of("a-0123456789ab-2") == "a"
    assert environment_of("a-b_c-0123456789ab") == "a-b_c"
    for other in ("a", "a-0123456789a", "mine", "/opt/conda", "a-0123456789ab-x", ""):
        assert environment_of(other) is None


def test_what_a_killed_program_leaves_disturbs_nobody_and_is_pruned(host: Host) -> None:
    build = host.ensure("a", ONE).build
    left = host.layout.environments / ".a.4711"
    left.symlink_to(build)
    for folder, name in (
        ("records", f".{build}.json.x1"),
        ("states", ".a.json.x1"),
        ("locks", ".a.lock.x1"),
    ):
        (host.layout.root / folder).mkdir(exist_ok=True)
        (host.layout.root / folder / name).write_text("{")
    assert host.layout.names() == ["a"]
    assert environments.prune(host.layout) == []
    assert not list(host.layout.root.glob("*/.*.*"))


def test_environments_of_people_beside_ours_are_left_alone(host: Host, tmp_path: Path) -> None:
    host.ensure("a", ONE)
    mine = host.layout.environments / "mine"  # what `conda create -n mine` makes
    (mine / "bin").mkdir(parents=True)
    elsewhere = host.layout.environments / "elsewhere"
    elsewhere.symlink_to(tmp_path)
    assert environments.prune(host.layout) == [] and (mine / "bin").is_dir()
    assert host.layout.names() == ["a"]
    with pytest.raises(GroundcrewError, match="Move it away"):
        host.ensure("mine", ONE)
    assert (mine / "bin").is_dir() and not list(host.layout.environments.glob("mine-*"))


def test_the_linked_build_stays_until_the_new_one_is_there_although_its_record_is_lost(
    host: Host,
) -> None:
    first = host.ensure("a", ONE).build
    second = host.ensure("a", TWO).build
    host.layout.record_path(second).unlink()
    assert "never finished" in drift.scan(host.layout, "a")["notes"][0]
    environments.files.remove_tree(host.layout.archives)
    nowhere = Settings({"local": "file:///nowhere"})
    with pytest.raises(GroundcrewError, match=f"stays at {second}"):
        environments.ensure(host.layout, "a", host.lock("a", TWO), nowhere)
    assert host.file("a", f"{LIB}/one.py").exists()
    assert host.ensure("a", TWO).build == f"{second}-2"
    # What has no record is nothing to go back to.
    assert host.layout.previous("a") == first
    assert environments.prune(host.layout) == [second]


def test_a_heal_that_is_killed_before_the_switch_leaves_a_complete_build_linked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = host.ensure("a", ONE).build

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.symlink", killed)
    with pytest.raises(KeyboardInterrupt):
        host.ensure("a", ONE, heal=True)
    assert host.layout.current("a") == build and host.layout.is_complete(build)


def test_everybody_can_read_what_is_made_under_a_strict_umask(host: Host) -> None:
    before = os.umask(0o077)
    try:
        host.ensure("a", ONE)
        environments.prune(host.layout)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    for folder, folders, names in os.walk(host.layout.root):
        for name in [*folders, *names]:
            mode = os.lstat(os.path.join(folder, name)).st_mode
            assert mode & 0o044 == 0o044 or name.endswith(".lock"), (folder, name, oct(mode))


def test_prune_does_not_take_a_build_from_under_a_scan(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = host.ensure("a", ONE).build
    scanning, go_on = threading.Event(), threading.Event()
    walk = environments.files.walk

    def slow(prefix: Path):  # type: ignore[no-untyped-def]
        if prefix.name == old:
            scanning.set()
            assert go_on.wait(30)
        return walk(prefix)

    monkeypatch.setattr(drift.files, "walk", slow)
    reports = []
    scan = threading.Thread(target=lambda: reports.append(drift.scan(host.layout, "a")))
    scan.start()
    assert scanning.wait(30)
    host.ensure("a", TWO)
    host.ensure("a", OTHER)
    assert environments.prune(host.layout) == []
    go_on.set()
    scan.join(30)
    assert reports[0]["build"] == old and not reports[0]["files"]
    assert environments.prune(host.layout) == [old]


def test_a_damaged_record_is_named(host: Host) -> None:
    build = host.ensure("a", ONE).build
    host.layout.record_path(build).write_text("{")
    with pytest.raises(GroundcrewError, match=r"\.json is damaged .*Remove it, then deploy"):
        drift.scan(host.layout, "a")


def test_a_file_is_written_with_its_mode_from_the_start(tmp_path: Path) -> None:
    write_json(tmp_path / "x/secret.json", {"a": 1}, mode=0o600)
    assert (tmp_path / "x/secret.json").stat().st_mode & 0o777 == 0o600
    assert read_json(tmp_path / "x/secret.json") == {"a": 1}
    assert read_json(tmp_path / "x/none.json") is None


def test_a_switch_that_fails_says_so_and_the_next_run_does_only_that(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = host.ensure("a", ONE).build
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("os.symlink", full)
        with pytest.raises(
            GroundcrewError, match=rf"could not be switched.*No space left.*stays at {old}"
        ):
            host.ensure("a", TWO)
    assert host.layout.current("a") == old
    assert host.ensure("a", TWO).action == "switched"


def test_a_lock_that_is_held_is_waited_for_and_then_named(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ensure("a", ONE)
    monkeypatch.setattr("groundcrew.conda.layout.LOCK_WAIT_SECONDS", 0.1)
    command = ["flock", str(host.layout.root / ".lock"), "sh", "-c", "echo held; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(GroundcrewError, match="Another program has been changing .*fuser"):
            host.ensure("a", TWO)
        holder.communicate(b"\n")
