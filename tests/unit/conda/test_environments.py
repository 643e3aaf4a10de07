"""Building, switching, healing, rolling back: over tiny channels, as a host does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from channel import locked
from conda_host import LIB, ONE, OTHER, TWO, Host
from groundcrew.conda import drift, environments
from groundcrew.conda.environments import Settings
from groundcrew.conda.layout import Layout
from groundcrew.errors import GroundcrewError


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_an_environment_is_built_once_and_then_left_alone(host: Host) -> None:
    first = host.ensure("a", ONE)
    assert (first.action, first.before) == ("built", None)
    assert first.build.startswith("a-") and os.readlink(host.layout.link("a")) == first.build
    assert host.file("a", f"{LIB}/one.py").read_text() == "VERSION = '1.0'\n"
    assert host.file("a", "bin/one").read_text().startswith(f"#!{host.layout.build(first.build)}/")
    again = host.ensure("a", ONE)
    assert (again.action, again.build, again.changed) == ("same", first.build, False)
    assert drift.scan(host.layout, "a")["ok"]


def test_two_environments_share_the_cache_and_nothing_else(host: Host) -> None:
    assert host.ensure("a", ONE).downloaded == 2
    assert host.ensure("b", ONE, OTHER).downloaded == 1
    host.ensure("a", TWO)
    assert host.file("b", f"{LIB}/one.py").read_text() == "VERSION = '1.0'\n"


def test_upgrade_switches_in_one_step_and_rollback_goes_back(host: Host) -> None:
    old = host.ensure("a", ONE)
    new = host.ensure("a", TWO)
    assert (new.action, new.before) == ("built", old.build)
    assert host.layout.previous("a") == old.build
    back = environments.rollback(host.layout, "a")
    assert back.build == old.build
    assert host.file("a", f"{LIB}/one.py").read_text() == "VERSION = '1.0'\n"
    report = drift.scan(host.layout, "a")
    assert not report["ok"] and "the lock of this host is" in report["notes"][0]
    # The lock restored from git: nothing to build any more, and nothing to complain about.
    assert host.ensure("a", ONE).action == "noted"
    assert host.ensure("a", ONE).action == "same"
    assert drift.scan(host.layout, "a")["ok"]
    assert host.ensure("a", TWO).action == "switched"


def test_rollback_without_a_build_to_go_back_to_says_so(host: Host) -> None:
    host.ensure("a", ONE)
    with pytest.raises(GroundcrewError, match=r"no build before a-.*Restore files/conda/a\.lock"):
        environments.rollback(host.layout, "a")


def test_prune_keeps_what_is_used_linked_or_kept_for_a_rollback(host: Host) -> None:
    builds = [host.ensure("a", p).build for p in (ONE, TWO, OTHER)]
    in_use = host.layout.build(builds[0]) / "conda-meta/history"
    holder = subprocess.Popen(
        ["flock", "-s", str(in_use), "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert environments.prune(host.layout) == []
    holder.communicate("")
    assert environments.prune(host.layout) == [builds[0]]
    left = {"".join(p.name.split("-")[:2]) for p in host.layout.packages.iterdir()}
    assert {"one2.0", "other1.0"} <= left and "one1.0" not in left
    assert len(list(host.layout.archives.iterdir())) == 3


def test_half_built_is_never_switched_to_and_is_built_again(host: Host) -> None:
    old = host.ensure("a", ONE)
    new = host.ensure("a", TWO)
    environments.rollback(host.layout, "a")
    # As a kill before the record leaves it.
    host.layout.record_path(new.build).unlink()
    host.layout.build(new.build).chmod(0o755)
    assert host.layout.current("a") == old.build
    again = host.ensure("a", TWO)
    assert (again.action, again.build) == ("built", new.build)
    assert drift.scan(host.layout, "a")["ok"]


def test_edit_of_a_linked_file_reaches_both_and_both_heal(host: Host) -> None:
    for name in ("a", "b"):
        host.ensure(name, ONE)
    if host.file("a", f"{LIB}/one.py").stat().st_nlink == 1:
        pytest.skip("this file system has no hard links")
    host.overwrite("a", f"{LIB}/one.py", "VERSION = 'x.x'\n")
    fresh = host.layout.root.parent / "fresh"
    for name in ("a", "b"):
        report = drift.scan(host.layout, name)
        assert [f["path"] for f in report["files"]] == [f"{LIB}/one.py"]
        assert report["files"][0]["change"] == "changed" and report["files"][0]["package"] == "one"
        assert len(report["cache"]) == 1
    for name in ("a", "b"):
        healed = host.ensure(name, ONE, heal=True)
        assert healed.action == "healed" and healed.build.endswith("-2")
    expected = environments.ensure(Layout(fresh), "a", host.lock("a", ONE), host.settings)
    for name in ("a", "b"):
        report = drift.scan(host.layout, name)
        assert report["ok"], report
    assert (
        drift.scan(host.layout, "a")["fingerprint"] == drift.scan(Layout(fresh), "a")["fingerprint"]
    )
    assert expected.build in environments.prune(host.layout)


def test_what_a_stray_pip_install_did_is_named(host: Host) -> None:
    host.ensure("a", ONE, OTHER)
    folder = host.file("a", LIB)
    for path in (folder, folder / "one-1.0.dist-info"):
        path.chmod(0o755)
    # What `pip install one==3.0 stray` does: the old metadata goes, the new comes.
    for path in (folder / "one-1.0.dist-info").iterdir():
        path.unlink()
    (folder / "one-1.0.dist-info").rmdir()
    for name, version in (("one", "3.0"), ("stray", "0.1")):
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\n")
        (info / "INSTALLER").write_text("pip\n")
    report = drift.scan(host.layout, "a")
    assert report["packages"] == [
        {"name": "one", "change": "changed", "expected": "1.0", "found": "3.0", "by": "pip"},
        {"name": "stray", "change": "added", "expected": None, "found": "0.1", "by": "pip"},
    ]
    text = "\n".join(drift.lines(report))
    assert "package changed: one 1.0 -> 3.0 by pip" in text
    owner = report["files"][0]["owner"] or report["files"][-1]["owner"]
    assert owner and f", {owner} at 20" in text


def test_removed_and_foreign_files_are_named_and_bytecode_is_not(host: Host) -> None:
    host.ensure("a", ONE)
    folder = host.file("a", LIB)
    folder.chmod(0o755)
    (folder / "one.py").unlink()
    (folder / "left.txt").write_text("x")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/one.cpython-311.pyc").write_bytes(b"")
    changes = {f["path"]: f["change"] for f in drift.scan(host.layout, "a")["files"]}
    assert changes == {f"{LIB}/one.py": "removed", f"{LIB}/left.txt": "foreign"}


def test_wrong_sha256_is_refused_with_both_values_and_nothing_changes(host: Host) -> None:
    old = host.ensure("a", ONE)
    text = host.lock("a", TWO)
    right = locked(host.channel, TWO).sha256
    with pytest.raises(GroundcrewError) as caught:
        environments.ensure(host.layout, "a", text.replace(right, "1" * 64), host.settings)
    message = str(caught.value)
    assert right in message and "1" * 64 in message and f"stays at {old.build}" in message
    assert host.layout.current("a") == old.build
    assert [p.name for p in host.layout.environments.iterdir() if p.is_dir()].count(old.build) == 1
    assert not list(host.layout.archives.rglob("*.part"))


def test_damaged_archive_in_the_cache_is_fetched_anew(host: Host) -> None:
    host.ensure("a", ONE)
    (archive,) = host.layout.archives.glob("*/one-1.0-*")
    archive.write_bytes(b"garbage")
    assert host.ensure("a", ONE, heal=True).downloaded == 1
    assert drift.scan(host.layout, "a")["ok"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///nowhere", r"has no linux-64/\S+: .*does not exist"),
        ("http://127.0.0.1:9/channel", r"does not answer at http://127\.0\.0\.1:9/"),
    ],
)
def test_unreachable_channel(
    host: Host, address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    settings = Settings({"local": address})
    with pytest.raises(GroundcrewError, match=words) as caught:
        environments.ensure(host.layout, "a", host.lock("a", ONE), settings)
    assert "conda_channels" in str(caught.value) and "0 of 2 packages are here" in str(caught.value)
    assert not host.layout.link("a").is_symlink()


def test_unmapped_channel(host: Host) -> None:
    with pytest.raises(GroundcrewError, match=r"Channel 'local' has no address"):
        environments.ensure(host.layout, "a", host.lock("a", ONE), Settings())


def test_environment_that_is_not_declared_any_more_goes(host: Host) -> None:
    build = host.ensure("a", ONE).build
    host.ensure("b", OTHER)
    environments.remove(host.layout, "a")
    assert environments.prune(host.layout) == [build]
    assert host.layout.names() == ["b"] and drift.scan(host.layout, "b")["ok"]


def program(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(environments.__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-m", "groundcrew.conda", "--root", str(host.layout.root), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_program_reports_heals_and_writes_metrics(host: Host, tmp_path: Path) -> None:
    host.ensure("a", ONE)
    assert program(host, "drift").returncode == 0
    host.overwrite("a", f"{LIB}/one.py", "oops\n")
    metrics = tmp_path / "conda.prom"
    found = program(host, "drift", "--json", "--metrics", str(metrics))
    assert found.returncode == 1
    assert json.loads(found.stdout)[0]["files"][0]["path"] == f"{LIB}/one.py"
    assert 'groundcrew_conda_drift{conda_environment="a"} 1\n' in metrics.read_text()
    healed = program(host, "heal", "a")
    assert healed.returncode == 0, healed.stderr
    assert program(host, "drift").stdout.startswith("a: as its lock says")
    nothing = program(host, "rollback", "a")
    assert nothing.returncode == 2 and "nothing to go back to" in nothing.stderr
