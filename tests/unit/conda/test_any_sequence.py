"""Whatever is done to the environments of a host, healing them gives what a fresh host has.

More examples than a test run has time for: CONDA_EXAMPLES=500 .venv/bin/python -m pytest tests/unit/conda/test_any_sequence.py
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from channel import PLACEHOLDER, Link, Package
from conda_host import LIB, ONE, OTHER, TWO, Host
from conda_host import PYTHON as BARE_PYTHON
from groundcrew.conda import drift, environments, files
from groundcrew.conda.layout import Layout
from groundcrew.errors import GroundcrewError
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

EXAMPLES = int(os.environ.get("CONDA_EXAMPLES", "40"))
STEPS = 15
NAMES = ("a", "b")
ODD = Package(
    "odd",
    files={
        "share/odd/data": b"data\n",
        "share/odd/link": Link("data"),
        "share/odd/folder": Link("../odd"),
        "share/odd/nothing": b"",
        "share/odd/where": f"{PLACEHOLDER}/share\n".encode(),
    },
)
LOCKS = ((ONE,), (TWO,), (ONE, OTHER), (OTHER, ODD))

names = st.sampled_from(NAMES)
locks = st.integers(0, len(LOCKS) - 1)
which = st.integers(0, 1000)


class KilledError(BaseException):
    """Where a process is killed; nothing is tidied up after it."""


@functools.cache
def shared() -> tuple[Path, Host, list[str]]:
    """One channel for all examples, and its locks."""
    folder = Path(tempfile.mkdtemp(prefix="groundcrew-sequence-"))
    host = Host(folder, (BARE_PYTHON, ONE, TWO, OTHER, ODD))
    return folder, host, [host.lock("a", *packages) for packages in LOCKS]


@functools.cache
def fresh_fingerprint(name: str, lock: int) -> str:
    """Of another root; the name counts, since the message that refuses pip has it."""
    folder, host, texts = shared()
    layout = Layout(folder / f"fresh/{lock}")
    environments.ensure(layout, name, texts[lock], host.settings)
    report = drift.scan(layout, name)
    assert report["ok"]
    return str(report["fingerprint"])


@contextlib.contextmanager
def killed_at(target: str) -> Iterator[None]:
    """Whoever calls this function of environments is killed there."""
    with (
        mock.patch.object(environments, target, side_effect=KilledError),
        mock.patch.object(files, "remove_tree"),
        pytest.raises(KilledError),
    ):
        yield


class Sequence(RuleBasedStateMachine):
    """Wanted is what was deployed last; what people and accidents do does not change it."""

    @initialize(first=locks, second=locks)
    def start(self, first: int, second: int) -> None:
        folder, host, self.texts = shared()
        self.settings = host.settings
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.layout = Layout(self.folder / "root")
        self.wanted: dict[str, int] = {}
        self.lost_records: set[str] = set()
        for name, lock in zip(NAMES, (first, second), strict=True):
            self.deploy(name, lock)

    # What operators do

    @rule(name=names, lock=locks)
    def deploy(self, name: str, lock: int) -> None:
        environments.ensure(self.layout, name, self.texts[lock], self.settings)
        self.wanted[name] = lock

    @rule(name=names, lock=locks)
    def deploy_with_a_wrong_hash(self, name: str, lock: int) -> None:
        before = self.layout.current(name)
        lines = self.texts[lock].splitlines()
        lines[-1] = lines[-1][:-64] + "0" * 64
        with pytest.raises(GroundcrewError, match="is not the file in the lock"):
            environments.ensure(self.layout, name, "\n".join(lines), self.settings)
        assert self.layout.current(name) == before

    @rule(name=names, lock=locks, where=st.sampled_from(["_listed", "_switch", "_install_pip"]))
    def deploy_that_is_killed(self, name: str, lock: int, where: str) -> None:
        before = self.layout.current(name)
        plan = environments.plan(self.layout, name, self.texts[lock], self.settings.platform)
        if plan.action in ("same", "noted") or (plan.action == "switched" and where != "_switch"):
            return
        with killed_at(where):
            environments.ensure(self.layout, name, self.texts[lock], self.settings)
        assert self.layout.current(name) == before
        if where == "_switch" and before is not None:
            # The new lock is on the host already: a heal goes to it.
            self.wanted[name] = lock

    @rule(name=names)
    def rollback(self, name: str) -> None:
        before = self.layout.current(name)
        try:
            environments.rollback(self.layout, name)
        except GroundcrewError:
            assert self.layout.current(name) == before

    @rule()
    def prune(self) -> None:
        environments.prune(self.layout)

    @rule(name=names)
    def remove(self, name: str) -> None:
        environments.remove(self.layout, name)
        self.wanted.pop(name, None)

    @rule()
    def heal(self) -> None:
        """As the module does it."""
        for name, lock in self.wanted.items():
            if not drift.scan(self.layout, name)["ok"]:
                environments.ensure(self.layout, name, self.texts[lock], self.settings, heal=True)
        for name, lock in self.wanted.items():
            report = drift.scan(self.layout, name)
            assert report["ok"], drift.lines(report)
            assert report["fingerprint"] == fresh_fingerprint(name, lock)

    # What happens to files

    def _pick(self, name: str, number: int, links: bool = False) -> Path | None:
        """One of the files of a build, its folder open for writing."""
        build = self.layout.current(name)
        if build is None:
            return None
        prefix = self.layout.build(build)
        found = sorted(e.path for e in files.walk(prefix) if (e.link is not None) == links)
        if not found:
            return None
        path = prefix / found[number % len(found)]
        path.parent.chmod(0o755)
        return path

    @rule(name=names, number=which)
    def edit_in_place(self, name: str, number: int) -> None:
        path = self._pick(name, number)
        if path is not None:
            path.chmod(0o644)
            path.write_text("edited\n")

    @rule(name=names, number=which)
    def edit_by_replacing(self, name: str, number: int) -> None:
        path = self._pick(name, number)
        if path is not None:
            path.unlink()
            path.write_text("replaced\n")

    @rule(name=names, number=which)
    def remove_file(self, name: str, number: int) -> None:
        path = self._pick(name, number)
        if path is not None:
            path.unlink()

    @rule(name=names, number=which)
    def replace_link(self, name: str, number: int) -> None:
        path = self._pick(name, number, links=True)
        if path is not None:
            path.unlink()
            path.symlink_to("elsewhere")

    @rule(name=names, number=which, kind=st.sampled_from(["file", "link", "pipe", "folder", "pyc"]))
    def add_foreign(self, name: str, number: int, kind: str) -> None:
        beside = self._pick(name, number)
        if beside is None:
            return
        path = beside.with_name("foreign")
        if os.path.lexists(path):
            return
        if kind == "file":
            path.write_text("foreign\n")
        elif kind == "link":
            path.symlink_to("/")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
            (path / "x").write_text("")
        else:
            path.mkdir()
            (path / "__pycache__").mkdir()
            (path / "__pycache__/x.cpython-311.pyc").write_bytes(b"")

    @rule(name=names, distribution=st.sampled_from(["one", "other", "stray"]))
    def pip_install(self, name: str, distribution: str) -> None:
        """The old metadata goes, the new comes, and the module with it."""
        library = self.layout.link(name) / LIB
        if not library.is_dir():
            return
        library.chmod(0o755)
        for old in library.glob(f"{distribution}-*.dist-info"):
            files.remove_tree(old)
        info = library / f"{distribution}-9.dist-info"
        info.mkdir(parents=True)
        for path, text in ((info / "METADATA", "Name: x\n"), (info / "INSTALLER", "pip\n")):
            path.write_text(text)
        (library / f"{distribution}.py").unlink(missing_ok=True)
        (library / f"{distribution}.py").write_text("VERSION = '9'\n")

    @rule(name=names)
    def conda_install(self, name: str) -> None:
        meta = self.layout.link(name) / "conda-meta"
        if meta.is_dir():
            meta.chmod(0o755)
            (meta / "foreign-1.0-0.json").unlink(missing_ok=True)
            (meta / "foreign-1.0-0.json").write_text("{}")

    @rule(number=which, whole=st.booleans())
    def damage_the_cache(self, number: int, whole: bool) -> None:
        if not self.layout.packages.is_dir():
            return
        found = sorted(
            e.path for e in files.walk(self.layout.packages) if e.link is None and "/" in e.path
        )
        found = [p for p in found if "/info/" not in p or p.endswith("/info/paths.json")]
        if found:
            path = self.layout.packages / found[number % len(found)]
            path.chmod(0o644)
            if whole:
                path.unlink()
            else:
                path.write_text("edited\n")

    @rule(number=which)
    def truncate_an_archive(self, number: int) -> None:
        found = sorted(self.layout.archives.glob("*/*.*"))
        if found:
            path = found[number % len(found)]
            os.truncate(path, path.stat().st_size // 2)

    @precondition(lambda self: self.layout.names())
    @rule(name=names)
    def lose_the_record(self, name: str) -> None:
        build = self.layout.current(name)
        if build is not None:
            self.layout.record_path(build).unlink(missing_ok=True)
            self.lost_records.add(build)

    @invariant()
    def links_name_complete_builds(self) -> None:
        for name in self.layout.names():
            build = self.layout.current(name)
            assert build is not None
            assert self.layout.is_complete(build) or build in self.lost_records, build
            assert self.layout.build(build).is_dir()
        assert set(self.wanted) <= set(self.layout.names())

    def teardown(self) -> None:
        if hasattr(self, "layout"):
            try:
                self.heal()
                environments.prune(self.layout)
                self.heal()
            finally:
                files.remove_tree(self.folder)


def test_after_any_sequence_a_heal_gives_what_a_fresh_host_has() -> None:
    try:
        run_state_machine_as_test(
            Sequence,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                # The same sequences each time: a change that is no cause of a failure must not meet one.
                derandomize="CONDA_EXAMPLES" not in os.environ,
                database=None,
                # To shrink a failure takes minutes: with CONDA_EXAMPLES, on purpose.
                phases=list(Phase) if "CONDA_EXAMPLES" in os.environ else [Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        folder, _, _ = shared()
        files.remove_tree(folder)
        shutil.rmtree(folder, ignore_errors=True)
        shared.cache_clear()
        fresh_fingerprint.cache_clear()
