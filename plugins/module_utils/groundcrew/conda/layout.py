"""Where environments, caches and records lie on a host, and the locks that keep two programs apart.

Under one root (``/opt/groundcrew/conda``; for a person without root rights a folder of theirs)::

    envs/<env>                       link to the build in use; `in-env <env>` and `conda activate <env>` go through it
    envs/<env>-<lock digest>[-n]     a build; n counts rebuilds of the same lock
    records/<build>.json             what the build consists of; written last: no record, half-built
    states/<env>.json                which build was in use before
    locks/<env>.lock                 the lock that the environment should be of
    cache/archives, packages, pip    package files as downloaded, extracted, and of pip
    cache/bytecode                   of modules whose packages bring none
    tools/                           py-rattler and uv, as unpacked wheels
    program/                         this package, for cron and for people
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GroundcrewError
from .lock import DIGEST_CHARACTERS, Lock, check_name, parse

LOCK_WAIT_SECONDS = 900.0
_BUILD = re.compile(rf"([a-z0-9][a-z0-9_-]*)-[0-9a-f]{{{DIGEST_CHARACTERS}}}(?:-[0-9]+)?\Z")


@dataclass(frozen=True)
class Layout:
    """The folders of one root."""

    root: Path

    @property
    def environments(self) -> Path:
        return self.root / "envs"

    @property
    def settings(self) -> Path:
        """Channels, pip index and linking, as the last deploy had them."""
        return self.root / "settings.json"

    @property
    def archives(self) -> Path:
        return self.root / "cache/archives"

    @property
    def packages(self) -> Path:
        return self.root / "cache/packages"

    @property
    def bytecode(self) -> Path:
        return self.root / "cache/bytecode"

    @property
    def pip(self) -> Path:
        return self.root / "cache/pip"

    @property
    def tools(self) -> Path:
        return self.root / "tools"

    def link(self, name: str) -> Path:
        return self.environments / check_name(name)

    def build(self, build: str) -> Path:
        return self.environments / build

    def record_path(self, build: str) -> Path:
        return self.root / "records" / f"{build}.json"

    def lock_path(self, name: str) -> Path:
        return self.root / "locks" / f"{check_name(name)}.lock"

    def state_path(self, name: str) -> Path:
        return self.root / "states" / f"{check_name(name)}.json"

    # What is there

    def names(self) -> list[str]:
        """The environments of this host: links to builds of theirs. What else people put there is theirs, and left alone."""
        if not self.environments.is_dir():
            return []
        links = [entry.name for entry in os.scandir(self.environments) if entry.is_symlink()]
        return sorted(n for n in links if environment_of(os.readlink(self.environments / n)) == n)

    def declared(self) -> list[str]:
        """The environments that this host has or, by the locks that were brought to it, should have."""
        locks = {path.stem for path in self.root.glob("locks/[!.]*.lock")}
        return sorted({*self.names(), *locks})

    def current(self, name: str) -> str | None:
        """The build that an environment's link names."""
        try:
            return os.readlink(self.link(name))
        except OSError:
            return None

    def previous(self, name: str) -> str | None:
        """The build that was in use before, for a rollback."""
        state = read_json(self.state_path(name)) or {}
        build = state.get("previous")
        return build if build and self.is_complete(build) else None

    def lock(self, name: str) -> Lock | None:
        """The lock that the environment should be of, as it was brought to this host."""
        try:
            text = self.lock_path(name).read_text()
        except FileNotFoundError:
            return None
        return parse(name, text, str(self.lock_path(name)))

    def is_complete(self, build: str) -> bool:
        return self.build(build).is_dir() and self.record_path(build).exists()

    def record(self, build: str) -> dict[str, Any]:
        """What a build consists of.

        Raises GroundcrewError: it has no record.
        """
        record = read_json(self.record_path(build))
        if record is None:
            raise GroundcrewError(
                f"{self.record_path(build)} is missing: {build} was never finished. Run the deploy again, it is built anew."
            )
        return record

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """One program at a time changes this root, and everybody can read what it makes, whatever the umask of a hardened host.

        Raises GroundcrewError: another one did not finish within LOCK_WAIT_SECONDS.
        """
        umask = os.umask(0o022)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._locked():
                yield
        finally:
            os.umask(umask)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / ".lock").open("a") as file:
            deadline = time.monotonic() + LOCK_WAIT_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise GroundcrewError(
                            f"Another program has been changing {self.root} for {LOCK_WAIT_SECONDS:.0f} s."
                            f" See who: fuser -v {self.root}/.lock"
                        ) from None
                    time.sleep(0.2)
            yield

    # Who works in a build holds a shared lock on its history: programs that `in-env` started, and the drift scan.

    def in_use(self, build: str) -> bool:
        """Whether somebody works in a build."""
        with self.alone(build) as alone:
            return not alone

    @contextlib.contextmanager
    def alone(self, build: str) -> Iterator[bool]:
        """Whether nobody works in a build; who comes meanwhile waits."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self._history(build).open())
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except FileNotFoundError:
                alone = True
            except OSError:  # somebody holds it, or the file system (NFS) cannot say
                alone = False
            yield alone

    @contextlib.contextmanager
    def using(self, build: str) -> Iterator[None]:
        """Keeps a build from being removed meanwhile; it may have been just before, so look after this is entered."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                file = stack.enter_context(self._history(build).open())
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def _history(self, build: str) -> Path:
        return self.build(build) / "conda-meta/history"


def environment_of(build: str) -> str | None:
    """The environment that a build is one of, by its name; None: it is no build's name."""
    found = _BUILD.match(build)
    return found.group(1) if found else None


def machine_platform() -> str:
    """Conda's name for this machine's platform, such as linux-64.

    Raises GroundcrewError: it is none that environments are locked for.
    """
    names = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}
    if platform.system() != "Linux" or platform.machine() not in names:
        raise GroundcrewError(
            f"This machine is {platform.system()} on {platform.machine()}; environments are locked for Linux on x86_64 and aarch64."
        )
    return names[platform.machine()]


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None when there is no file.

    Raises GroundcrewError: the file is damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise GroundcrewError(
            f"{path} is damaged ({error}). Remove it, then deploy: what it belongs to is built anew."
        ) from None


def write_json(path: Path, document: dict[str, Any], mode: int = 0o644) -> None:
    """Replace a file in one step, on disk before it counts."""
    write_text(path, json.dumps(document, separators=(",", ":"), sort_keys=True), mode)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step, on disk before it counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
