"""Builds that are killed, run twice at once, meet a full disk, belong to an ordinary user, or have a pip section."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rattler
from channel import File, Link, Package, locked
from conda_host import LIB, ONE, OTHER, PYTHON, TWO, Host
from groundcrew.conda import drift, environments
from groundcrew.conda.environments import Settings
from groundcrew.conda.layout import Layout
from groundcrew.conda.lock import Lock, PipPackage, PlatformLock, render
from groundcrew.errors import GroundcrewError
from interpreters import CPYTHON, PYPY
from package_index import Wheel, make_index, sha256
from rattler.index import index_fs
from real_python import REAL_PYTHON, SITE

MODULE_UTILS = Path(environments.__file__).parents[2]
NOBODY = 65534
MANY = Package("many", files={f"share/many/{n // 40}/{n}": f"{n}\n".encode() for n in range(400)})
BIG = Package("big", files={"share/big": os.urandom(2_000_000), "share/small": b"x"})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def check(layout: Layout) -> None:
    """What must be true at any moment: a link names a complete build."""
    for name in layout.names():
        build = layout.current(name)
        assert build is not None and layout.is_complete(build), (name, build)


# Forks before anything runs, so that each try costs the build alone and not the imports. Reads seconds to live, says what happened.
KILLER = """
import os, signal, sys, time
from pathlib import Path
import rattler, rattler.config, rattler.package_cache
from groundcrew.conda import environments
from groundcrew.conda.layout import Layout
root, address = sys.argv[1:]
print("ready", flush=True)
for line in sys.stdin:
    seconds, name, lock, heal = line.split()
    child = os.fork()
    if child == 0:
        environments.ensure(
            Layout(Path(root)), name, Path(lock).read_text(), environments.Settings({"local": address}), heal=heal == "heal"
        )
        os._exit(0)
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_builds_that_are_killed_at_any_moment_leave_nothing_that_the_next_run_trips_over(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path, (PYTHON, ONE, TWO, OTHER, MANY))
    locks = {}
    for number, packages in enumerate([(ONE, MANY), (TWO, MANY), (ONE, OTHER, MANY)]):
        locks[number] = tmp_path / f"{number}.lock"
        locks[number].write_text(host.lock("a", *packages))
    with subprocess.Popen(
        [sys.executable, "-c", KILLER, str(host.layout.root), host.channel.as_uri()],
        env={**os.environ, "PYTHONPATH": str(MODULE_UTILS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as killer:
        assert killer.stdin is not None and killer.stdout is not None
        assert killer.stdout.readline() == "ready\n"

        def ensure(seconds: float, lock: int, heal: str) -> int:
            killer.stdin.write(f"{seconds} a {locks[lock]} {heal}\n")  # type: ignore[union-attr]
            killer.stdin.flush()  # type: ignore[union-attr]
            status = int(killer.stdout.readline())  # type: ignore[union-attr]
            check(host.layout)
            return status

        started = time.monotonic()
        chance = random.Random(3)
        assert ensure(60, 0, "-") == 0
        whole = time.monotonic() - started
        killed = 0
        # A kill that came too late killed nothing: then again.
        for number in range(60):
            if killed >= 5 and number >= 15:
                break
            before = host.layout.current("a")
            status = ensure(
                chance.uniform(0, 0.7 * whole), (number + 1) % 3, chance.choice(["-", "heal"])
            )
            assert status in (0, -signal.SIGKILL)
            killed += status != 0
            if number % 5 == 4:
                environments.prune(host.layout)
            assert before is None or host.layout.build(before).is_dir()
        killer.stdin.close()
    assert killed >= 3
    for lock in locks.values():
        environments.ensure(host.layout, "a", lock.read_text(), host.settings)
        assert drift.scan(host.layout, "a")["ok"]
    environments.prune(host.layout)
    kept = {host.layout.current("a"), host.layout.previous("a"), "a"}
    assert {p.name for p in host.layout.environments.iterdir()} == kept
    assert {p.stem for p in (host.layout.root / "records").iterdir()} == kept - {"a"}
    cached = {p.name.rsplit("-", 1)[0] for p in host.layout.packages.iterdir() if p.is_dir()}
    assert cached <= {f"{p.name}-{p.version}-0" for p in (PYTHON, ONE, TWO, OTHER, MANY)}
    assert not list(host.layout.archives.rglob("*.part"))


PROGRAM = """
import sys
from pathlib import Path
from groundcrew.conda import environments
from groundcrew.conda.layout import Layout
root, lock, address = sys.argv[1:]
done = environments.ensure(Layout(Path(root)), "a", lock, environments.Settings({"local": address}))
print(done.action, done.build)
"""


def test_two_programs_at_once_build_once(host: Host) -> None:
    text = host.lock("a", ONE, OTHER)
    command = [sys.executable, "-c", PROGRAM, str(host.layout.root), text, host.channel.as_uri()]
    environment = {**os.environ, "PYTHONPATH": str(MODULE_UTILS)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate()[0].split() for process in running)
    assert [process.returncode for process in running] == [0, 0]
    build = host.layout.current("a")
    assert said == [["built", build], ["same", build]]
    assert drift.scan(host.layout, "a")["ok"]


# A full disk


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nobody but root may mount a small disk, and not everywhere")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("size", ["1m", "3m"])
def test_a_disk_that_is_full_while_fetching_or_extracting(tmp_path: Path, size: str) -> None:
    host = Host(tmp_path, (PYTHON, ONE, BIG))
    with small_disk(tmp_path / "disk", size):
        layout = Layout(tmp_path / "disk/root")
        old = environments.ensure(layout, "a", host.lock("a", ONE), host.settings).build
        with pytest.raises(GroundcrewError, match=rf"No space is left .*'a' stays at {old}\."):
            environments.ensure(layout, "a", host.lock("a", ONE, BIG), host.settings)
        assert layout.current("a") == old and drift.scan(layout, "a")["ok"]
        assert {p.name for p in layout.environments.iterdir()} == {"a", old}
        # Room again, and the same command does it.
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path / "disk")], check=True)
        environments.ensure(layout, "a", host.lock("a", ONE, BIG), host.settings)
        assert drift.scan(layout, "a")["ok"]


def test_a_disk_that_is_full_while_linking(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    old = host.ensure("a", ONE).build

    async def install(records: Any, prefix: Path, **_: Any) -> None:
        (prefix / "lib").mkdir(parents=True)
        (prefix / "lib/half").write_text("half")
        raise RuntimeError("failed to link 'lib/x': No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(rattler, "install", install)
        with pytest.raises(
            GroundcrewError, match=r"No space is left .* MB are free .*prune.*stays"
        ):
            host.ensure("a", TWO)
    assert host.layout.current("a") == old
    assert {p.name for p in host.layout.environments.iterdir()} == {"a", old}
    assert host.ensure("a", TWO).action == "built"


def test_a_disk_that_is_full_when_the_record_is_written(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = host.ensure("a", ONE).build
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("groundcrew.conda.layout.os.fsync", full)
        with pytest.raises(GroundcrewError, match=r"No space is left .*stays at"):
            environments.ensure(
                host.layout, "a", host.lock("a", ONE, OTHER), Settings(host.settings.channels)
            )
    assert host.layout.current("a") == old
    assert {p.name for p in host.layout.environments.iterdir()} == {"a", old}
    assert {p.name for p in (host.layout.root / "records").iterdir()} == {f"{old}.json"}


# An ordinary user

ORDINARY = """
# All that is imported later: an ordinary user may not read root's own Python.
import asyncio, concurrent.futures.thread, csv, email.utils, encodings.idna, json, mimetypes, os, pwd, sys
from pathlib import Path
import rattler, rattler.config, rattler.package_cache
from groundcrew.conda import drift, environments
from groundcrew.conda.layout import Layout
root, address, user, library, *locks = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
layout, settings = Layout(Path(root)), environments.Settings({"local": address})
for name, lock in zip("ab", locks):
    environments.ensure(layout, name, lock, settings)
folder = layout.link("a") / library
for path in (folder / "one.py", folder / "new.py", layout.link("a") / "bin/new"):
    try:
        path.open("a")
    except PermissionError:
        continue
    raise SystemExit(f"{path} can be written")
(folder / "one.py").chmod(0o644)
(folder / "one.py").write_text("edited")
assert [r["ok"] for r in drift.scan_all(layout, ["a", "b"])] == [False, False]
for name, lock in zip("ab", locks):
    environments.ensure(layout, name, lock, settings, heal=True)
assert [r["ok"] for r in drift.scan_all(layout, ["a", "b"])] == [True, True]
assert len(environments.prune(layout)) == 2
environments.remove(layout, "a")
environments.remove(layout, "b")
assert len(environments.prune(layout)) == 2
print("all right")
"""


def test_an_ordinary_user_has_environments_in_a_folder_of_their_own() -> None:
    # pytest's own folder is not open to another user.
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        host = Host(home)
        (home / "own").mkdir()
        if os.geteuid() == 0:
            os.chown(home / "own", NOBODY, NOBODY)
        locks = [host.lock("a", ONE), host.lock("b", ONE, OTHER)]
        arguments = [str(home / "own/conda"), host.channel.as_uri(), str(NOBODY), LIB]
        done = subprocess.run(
            [sys.executable, "-c", ORDINARY, *arguments, *locks],
            env={**os.environ, "PYTHONPATH": str(MODULE_UTILS), "HOME": str(home / "own")},
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "all right\n", done.stderr
        assert not list((home / "own/conda/envs").iterdir())


# Several interpreters


def test_several_pythons_side_by_side(tmp_path: Path) -> None:
    tool = Package(
        "tool",
        noarch="python",
        files={
            "site-packages/tool.py": b"x = 1\n",
            "site-packages/tool-1.0.dist-info/METADATA": b"Name: tool\n",
        },
        entry_points=("run-tool = tool:main",),
    )
    host = Host(tmp_path, (CPYTHON, PYPY, tool))
    sites = {"new": "lib/python3.11/site-packages", "old": "lib/pypy3.9/site-packages"}
    for name, python in (("new", CPYTHON), ("old", PYPY)):
        lock = PlatformLock(tuple(locked(host.channel, p) for p in (python, tool)))
        text = render(Lock(name, "0" * 64, {host.settings.platform: lock}))
        environments.ensure(host.layout, name, text, host.settings)
        assert host.file(name, f"{sites[name]}/tool.py").is_file()
        assert (host.file(name, sites[name]).parent / "EXTERNALLY-MANAGED").is_file()
        assert host.file(name, "bin/run-tool").is_file()
    host.file("new", sites["new"]).chmod(0o755)
    info = host.file("new", f"{sites['new']}/stray-1.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("")
    new, old = drift.scan_all(host.layout, ["new", "old"])
    assert [p["name"] for p in new["packages"]] == ["stray"]
    assert old["ok"], old


# Packages of other kinds


def without_hashes(channel: Path, package: Package) -> None:
    """The package file as an old conda-build wrote it: info/paths.json says no sha256."""
    path = channel / package.directory / package.file_name
    packed, content = io.BytesIO(bz2.decompress(path.read_bytes())), io.BytesIO()
    with (
        tarfile.open(fileobj=packed) as before,
        tarfile.TarFile(fileobj=content, mode="w") as after,
    ):
        for member in before.getmembers():
            data = before.extractfile(member)
            assert data is not None
            text = data.read()
            if member.name == "info/paths.json":
                document = json.loads(text)
                for entry in document["paths"]:
                    del entry["sha256"]
                text = json.dumps(document).encode()
                member.size = len(text)
            after.addfile(member, io.BytesIO(text))
    path.write_bytes(bz2.compress(content.getvalue()))
    asyncio.run(index_fs(channel, write_zst=False, write_shards=False, force=True))


def test_a_package_that_says_no_hashes_is_extracted_anew_for_a_heal(tmp_path: Path) -> None:
    old = Package("old", files={"share/old": b"right", "bin/old": b"x"}, suffix=".tar.bz2")
    host = Host(tmp_path, (PYTHON, old))
    without_hashes(host.channel, old)
    host.ensure("a", old)
    host.overwrite("a", "share/old", "wrong")
    assert not drift.scan(host.layout, "a")["ok"]
    host.ensure("a", old, heal=True)
    assert drift.scan(host.layout, "a")["ok"]
    assert host.file("a", "share/old").read_text() == "right"


def test_files_may_have_any_name_and_links_stay_links(tmp_path: Path) -> None:
    package = Package(
        "odd",
        files={
            "share/two words": b"x",
            "share/grün": b"x",
            "share/line\nbreak": b"x",
            "share/empty": b"",
            "share/folder/x": b"x",
            "share/to-folder": Link("folder"),
            "share/to-nowhere": Link("../../nowhere"),
            "bin/run": File("#!/bin/sh\n", executable=True),
        },
    )
    host = Host(tmp_path, (PYTHON, package))
    host.ensure("a", package)
    report = drift.scan(host.layout, "a")
    assert report["ok"], drift.lines(report)
    assert os.access(host.file("a", "bin/run"), os.X_OK)
    links = {n: os.readlink(host.file("a", f"share/{n}")) for n in ("to-folder", "to-nowhere")}
    assert links == {"to-folder": "folder", "to-nowhere": "../../nowhere"}
    host.file("a", "share").chmod(0o755)
    for name, target in (("to-folder", "/tmp"), ("to-nowhere", "folder")):
        host.file("a", f"share/{name}").unlink()
        host.file("a", f"share/{name}").symlink_to(target)
    found = {f["path"]: f["change"] for f in drift.scan(host.layout, "a")["files"]}
    assert found == {"share/to-folder": "changed", "share/to-nowhere": "changed"}
    host.ensure("a", package, heal=True)
    assert drift.scan(host.layout, "a")["ok"]


def test_copies_where_links_are_not_wanted(host: Host) -> None:
    settings = Settings(host.settings.channels, hard_links=False)
    environments.ensure(host.layout, "a", host.lock("a", ONE), settings)
    assert host.file("a", f"{LIB}/one.py").stat().st_nlink == 1
    host.overwrite("a", f"{LIB}/one.py", "edited")
    report = drift.scan(host.layout, "a")
    assert not report["ok"] and report["cache"] == []
    # The edit has not reached the cache: another environment is right.
    host.ensure("b", ONE)
    assert drift.scan(host.layout, "b")["ok"]


def test_a_file_that_was_edited_in_one_environment_does_not_get_into_the_next(host: Host) -> None:
    host.ensure("a", ONE)
    host.overwrite("a", f"{LIB}/one.py", "VERSION = 'x.x'\n")
    host.ensure("b", ONE)
    assert host.file("b", f"{LIB}/one.py").read_text() == "VERSION = '1.0'\n"


# The pip section


HELLO = Wheel("hello_there", "1.0")


class PipHost(Host):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, (REAL_PYTHON,))
        self.settings = Settings(
            self.settings.channels, pip_index=make_index(folder / "index", HELLO)
        )
        self.sha256 = sha256(folder / "index/hello-there" / HELLO.file_name)

    def pip_lock(self, digest: str = "") -> str:
        pip = (PipPackage("hello-there", "1.0", (digest or self.sha256,)),)
        lock = PlatformLock((locked(self.channel, REAL_PYTHON),), pip)
        return render(Lock("a", "0" * 64, {self.settings.platform: lock}))


@pytest.fixture
def pip_host(tmp_path: Path) -> PipHost:
    return PipHost(tmp_path)


def test_the_pip_section_is_installed_recorded_and_healed(
    pip_host: PipHost, tmp_path: Path
) -> None:
    host = pip_host
    environments.ensure(host.layout, "a", host.pip_lock(), host.settings)
    python = str(host.file("a", "bin/python"))
    command = [python, "-c", "import hello_there; print(hello_there.version)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1.0\n"
    record = host.layout.record(str(host.layout.current("a")))
    assert record["packages"]["hello-there"] == {"kind": "pip", "version": "1.0"}
    assert record["files"][f"{SITE}/hello_there.py"][3] == "hello-there"
    report = drift.scan(host.layout, "a")
    assert report["ok"], drift.lines(report)
    fresh = Layout(tmp_path / "somewhere else")
    environments.ensure(fresh, "a", host.pip_lock(), host.settings)
    assert drift.scan(fresh, "a")["fingerprint"] == report["fingerprint"]
    host.overwrite("a", f"{SITE}/hello_there.py", "edited")
    found = drift.scan(host.layout, "a")
    assert [f["package"] for f in found["files"]] == ["hello-there"] and not found["cache"]
    environments.ensure(host.layout, "a", host.pip_lock(), host.settings, heal=True)
    healed = drift.scan(host.layout, "a")
    assert healed["ok"] and healed["fingerprint"] == report["fingerprint"]


def test_a_pip_package_with_another_hash_is_refused(pip_host: PipHost) -> None:
    with pytest.raises(
        GroundcrewError, match=r"hello-there==1\.0\) could not be installed: (?s:.*)Hash"
    ):
        environments.ensure(pip_host.layout, "a", pip_host.pip_lock("1" * 64), pip_host.settings)
    assert not list(pip_host.layout.environments.iterdir())


def test_an_index_that_cannot_be_reached_is_named_without_its_password(
    pip_host: PipHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    settings = Settings(
        pip_host.settings.channels, pip_index="http://team:secret@127.0.0.1:9/simple"
    )
    with pytest.raises(GroundcrewError, match="could not be installed") as caught:
        environments.ensure(pip_host.layout, "a", pip_host.pip_lock(), settings)
    assert "secret" not in str(caught.value) and "127.0.0.1:9" in str(caught.value)


def test_a_projects_own_uv_settings_have_no_say(
    pip_host: PipHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "uv.toml").write_text("[pip]\nno-index = true\n")
    monkeypatch.chdir(project)
    environments.ensure(pip_host.layout, "a", pip_host.pip_lock(), pip_host.settings)
    assert drift.scan(pip_host.layout, "a")["ok"]
