"""Releases on one host: from service maps to running, ready containers, the last good one kept.

A container's name says where it is in a release, so nothing else has to be remembered and a run
that was killed anywhere is mended by the next one:

    <service>            was ready when it got this name
    <service>-next       a release on trial; found by a later run, an interrupted one left it
    <service>-previous   the release before, stopped, kept for rollback

A release is made ready as <service>-next while the old container, which keeps its name, is stopped.
Only then are they renamed. If it never becomes ready it is removed and the old one is started
again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from . import golden
from .container_engine import (
    Container,
    ContainerState,
    Engine,
    backend_arguments,
    create_arguments,
)
from .errors import GroundcrewError
from .service_map import (
    DEFAULTS,
    NEXT,
    PREVIOUS,
    Service,
    changed_keys,
    fingerprint,
    parse_service,
    public_map,
    release_id,
)

LOG_LINES = 40
_PROBE_SECONDS = 10.0
_LONGEST_PAUSE = 1.0
_PORT_FREE_SECONDS = 5.0
_LOCK_SECONDS = 120.0


class ReleaseError(GroundcrewError):
    """A release that did not become ready; `done` are the services that were finished before it."""

    def __init__(self, message: str, done: Sequence[Outcome] = ()) -> None:
        super().__init__(message)
        self.done = list(done)


@dataclass(frozen=True)
class Outcome:
    """What was done, or in check mode would be done, for one service.

    action: none; created; replaced; started, the same release, which was stopped; cleaned, only
    what an interrupted run left was removed; removed; absent, there was nothing to remove; rolled
    back, to the release before.
    """

    name: str
    release: str
    image: str
    action: str
    ready_ms: int | None = None
    changes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.action not in ("none", "absent")


class Host(Protocol):
    """What the release logic asks of the machine it runs on, apart from the engine."""

    def check_files(self, service: Service) -> None:
        """Raise GroundcrewError when a file or directory that the service needs is missing."""

    def probe(self, service: Service, address: str, timeout: float) -> tuple[bool, str]:
        """Ask the service: whether it answers right within `timeout` seconds, and what it said."""

    def taken(self, address: str, port: int) -> str | None:
        """Why the port cannot be listened on, None when it can."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class LinuxHost:
    """Host for real."""

    def __init__(self, nvidia: Path = Path("/proc/driver/nvidia")) -> None:
        self._nvidia = nvidia

    def check_files(self, service: Service) -> None:
        for part in service.parts:
            for mount in part.mounts:
                if not Path(mount.source).exists():
                    raise GroundcrewError(
                        f"service {service.name}: {mount.source}, mounted at {mount.target}, does "
                        f"not exist on this host."
                    )
            if part.gpus is not None and not self._nvidia.exists():
                raise GroundcrewError(
                    f"service {service.name}: resources.gpus is {part.gpus}, and this host has no "
                    f"GPU ({self._nvidia} is missing). Give it a fleet of hosts that have one, or "
                    f"remove gpus."
                )
        if service.ready.golden is not None:
            golden.load(service.ready.golden)

    def probe(self, service: Service, address: str, timeout: float) -> tuple[bool, str]:
        shown = f"[{address}]" if ":" in address else address
        url = f"http://{shown}:{service.listening_port}{service.ready.path}"
        if service.ready.golden is not None:
            result = golden.check(url, golden.load(service.ready.golden), timeout=timeout)
            return result.ok, result.detail
        # Proxies from the environment are for the Internet.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=timeout) as answer:
                return answer.status == 200, f"{url} answered {answer.status}"
        except urllib.error.HTTPError as error:
            said = error.read(200).decode("utf-8", "replace").strip()
            return False, f"{url} answered {error.code}: {said}"
        except Exception as error:  # refused, too late, or a peer that does not speak HTTP
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            return False, f"{url} did not answer: {reason}"

    def taken(self, address: str, port: int) -> str | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                # Two sockets with SO_REUSEADDR may be bound to a port, only one may listen.
                probe.listen(1)
            except OSError as error:
                return f"{error.strerror}{_listener(port)}"
        return None

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass
class _Plan:
    service: Service
    release: str
    parts: dict[str, str]
    own: Container | None
    action: str
    changes: list[str]


class Releaser:
    """Brings the containers of one host to what a list of services says."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        *,
        state_directory: str,
        bind_address: str,
        family: str = "",
        log: Callable[[str], None] = lambda _message: None,
    ) -> None:
        """family: a word for "the services of this list"; containers of the same family that are
        not in the list are
        removed. Without one nothing is removed but what the list or `remove` names."""
        self._engine = engine
        self._host = host
        self._state = Path(state_directory)
        self._address = bind_address
        self._family = family
        self._log = log
        self._containers: dict[str, Container] = {}

    def run(
        self, services: Sequence[Service], remove: Sequence[str] = (), *, check: bool = False
    ) -> list[Outcome]:
        """Make it so; with `check` only say what would be done.

        Stops at the first service that fails, with ReleaseError. Raises GroundcrewError before
        anything is touched when a file is missing or a name belongs to a container that is not a
        release's.
        """
        self._refresh()
        plans = [self._plan(service, check) for service in services if not service.absent]
        wanted = {plan.service.name for plan in plans}
        unwanted = self._unwanted(
            wanted, [*remove, *(service.name for service in services if service.absent)]
        )
        ours = {*wanted, *unwanted}
        for plan in plans:
            self._before(plan, ours)  # refuses another family's port before anything is touched
        if check:
            return [
                *(self._outcome(plan) for plan in plans),
                *(self._outcome_of_removal(name) for name in unwanted),
            ]
        for plan in plans:
            if plan.action in ("created", "replaced"):
                self._host.check_files(plan.service)
        # Before a release may take over one of these: they are removed whichever way.
        removals = [self._outcome_of_removal(name) for name in unwanted]
        done: list[Outcome] = []
        try:
            for plan in plans:
                self._end_rollback(plan.service)
            for plan in plans:
                done.append(self._apply(plan, wanted, ours))
            for outcome in removals:
                self._remove_service(outcome.name)
                done.append(outcome)
        except GroundcrewError as error:
            self._sweep()
            raise ReleaseError(str(error), done) from error
        if any(outcome.changed for outcome in done):
            self._sweep()
        return done

    def rollback(self, name: str, *, check: bool = False) -> Outcome:
        """Go back to the release before the present one of service `name`, or `name-<version>`.

        What goes is kept in its place, so a second rollback goes forward again. Raises
        GroundcrewError when none is kept here, or several services are meant; ReleaseError when the
        old one did not become ready, and the present one serves again.
        """
        self._refresh()
        pattern = re.compile(re.escape(name) + r"(-[0-9]+)?")
        found = sorted(
            container.name
            for container in self._containers.values()
            if container.service
            and pattern.fullmatch(container.name)
            and container.name + PREVIOUS in self._containers
        )
        if len(found) != 1:
            known = ", ".join(found) or "none"
            raise GroundcrewError(
                f"{name}: services that have a release before the present one on this host: {known}. "
                + ("Name the one you mean." if found else "There is nothing to go back to.")
            )
        present = self._containers[found[0]]
        previous = self._containers[found[0] + PREVIOUS]
        stored = self._stored(previous).get("map")
        if not stored:
            raise GroundcrewError(
                f"{found[0]}: the record of release {previous.release} is lost, so it cannot be "
                f"told when it is ready. Deploy its version instead."
            )
        service = parse_service(stored)
        back = previous.service
        if back != present.name and back in self._containers:
            raise GroundcrewError(f"{found[0]}: {back}, to which it would go back, runs as well.")
        self._host.check_files(service)
        changes = [f"{present.name}, release {present.release}"]
        if check:
            return Outcome(back, previous.release, service.image, "rolled back", None, changes)
        begun = self._host.monotonic()
        try:
            self._engine.stop(present.name, service.stop_seconds)
            self._wait_for_port(service)
            begun = self._host.monotonic()
            self._engine.start(previous.name)
            self._wait(previous.name, service)
        except BaseException as error:
            tail = self._tail(previous.name) if isinstance(error, GroundcrewError) else ""
            with contextlib.suppress(GroundcrewError):
                self._engine.stop(previous.name, service.stop_seconds)
            self._containers[present.name] = present._replace(state="exited")
            said = self._restore(present.name, [present])
            if not isinstance(error, GroundcrewError):
                raise
            raise ReleaseError(
                f"{present.name}: release {previous.release} did not come back: "
                f"{str(error).rstrip('.')}. {said}{tail}"
            ) from error
        # By way of the name of a trial: a run that is killed here leaves what the next one mends.
        self._discard(back + NEXT)
        self._rename(present.name, back + NEXT)
        self._rename(previous.name, back)
        self._discard(back + PREVIOUS)
        self._rename(back + NEXT, back + PREVIOUS)
        return Outcome(
            back, previous.release, service.image, "rolled back", self._since(begun), changes
        )

    # -- deciding

    def _refresh(self) -> None:
        self._containers = {container.name: container for container in self._engine.containers()}

    def _plan(self, service: Service, check: bool) -> _Plan:
        for suffix in ("", NEXT, PREVIOUS):
            other = self._containers.get(service.name + suffix)
            if other is not None and not other.service:
                raise GroundcrewError(
                    f"service {service.name}: a container named {other.name} exists that is not a "
                    f"release. "
                    f"Rename or remove it (docker rename, docker rm) or give the service another "
                    f"name."
                )
        parts = fingerprint(service, self._address, _env_files(service, check))
        release = release_id(parts)
        own = self._containers.get(service.name)
        changes: list[str] = []
        if own is None:
            action = "created"
        elif own.release != release or own.state in ("dead", "removing"):
            action = "replaced"
            changes = changed_keys(self._stored(own).get("fingerprint", {}), parts)
        elif own.state != "running":
            action = "started"
        elif service.name + NEXT in self._containers:
            action = "cleaned"
        else:
            action = "none"
        return _Plan(service, release, parts, own, action, changes)

    def _unwanted(self, wanted: set[str], named: Sequence[str]) -> list[str]:
        names = [name for name in dict.fromkeys(named) if name not in wanted]
        if self._family:
            for container in self._containers.values():
                name = _base(container.name)
                if container.family == self._family and name not in wanted and name not in names:
                    names.append(name)
        return names

    def _before(self, plan: _Plan, ours: set[str]) -> list[Container]:
        """Containers that make way for a release: the service's own, and whichever of this run's
        holds its port.

        A new version of a model is a new service on the same port: the old one is its way back.
        """
        before = [plan.own] if plan.own is not None else []
        port = plan.service.listening_port
        if port is None or plan.action not in ("created", "replaced", "started"):
            return before
        holders = []
        for container in self._containers.values():
            if (
                container.port != port
                or _base(container.name) != container.name
                or container.name == plan.service.name
            ):
                continue
            if container.name in ours:
                # A stopped one counts too: an interrupted run may have stopped it, and it is the
                # way back.
                holders.append(container)
            elif container.state == "running":
                raise GroundcrewError(
                    f"service {plan.service.name}: port {port} is service {container.name}'s. "
                    f"Give one another port."
                )
        return before + sorted(
            holders, key=lambda container: (container.state != "running", container.name)
        )

    def _outcome(self, plan: _Plan, ready_ms: int | None = None) -> Outcome:
        return Outcome(
            plan.service.name, plan.release, plan.service.image, plan.action, ready_ms, plan.changes
        )

    def _outcome_of_removal(self, name: str) -> Outcome:
        found = [
            c
            for suffix in ("", NEXT, PREVIOUS)
            if (c := self._containers.get(name + suffix)) and c.service
        ]
        return Outcome(
            name, found[0].release if found else "", "", "removed" if found else "absent"
        )

    # -- doing

    def _apply(self, plan: _Plan, wanted: set[str], ours: set[str]) -> Outcome:
        if plan.action == "none":
            return self._outcome(plan)
        self._log(f"{plan.service.name}: {plan.action}, release {plan.release}")
        # What an interrupted run left may hold the port.
        self._discard(plan.service.name + NEXT)
        if plan.action == "started" and plan.own is not None:
            return self._outcome(plan, self._start_again(plan, plan.own, ours))
        if plan.action in ("created", "replaced"):
            return self._outcome(plan, self._release(plan, wanted, ours))
        return self._outcome(plan)

    def _end_rollback(self, service: Service) -> None:
        """Stop the release before, which only a rollback that was killed leaves running."""
        previous = self._containers.get(service.name + PREVIOUS)
        if previous is not None and previous.state == "running":
            self._engine.stop(previous.name, service.stop_seconds)
            self._containers[previous.name] = previous._replace(state="exited")

    def _start_again(self, plan: _Plan, own: Container, ours: set[str]) -> int:
        """Start a stopped container of the wanted release.

        It was ready once, so a failure leaves it there. Another service of this run may hold its
        port: one that took it over while this one failed to move to another.
        """
        name, state = own.name, own.state
        holders = [
            container
            for container in self._before(plan, ours)
            if container.name != name and container.state == "running"
        ]
        begun = self._host.monotonic()
        try:
            for container in holders:
                self._containers[container.name] = container._replace(state="exited")
                self._engine.stop(container.name, plan.service.stop_seconds)
            if state == "paused":
                self._engine.unpause(name)
            else:
                if state == "restarting":
                    # Its count of restarts starts at none again.
                    self._engine.stop(name, plan.service.stop_seconds)
                self._engine.start(name)
            self._wait(name, plan.service)
        except GroundcrewError as error:
            tail = self._tail(name)
            said = "Nothing was removed."
            if holders:
                with contextlib.suppress(GroundcrewError):
                    self._engine.stop(name, plan.service.stop_seconds)
                said = self._restore(name, holders)
            raise ReleaseError(
                f"{name}: release {plan.release} was {state} and did not come back: "
                f"{str(error).rstrip('.')}. {said}{tail}"
            ) from error
        return self._since(begun)

    def _release(self, plan: _Plan, wanted: set[str], ours: set[str]) -> int:
        service = plan.service
        trial = service.name + NEXT
        # Only now: a service before this one in the list may have given up its port or taken
        # another.
        before = self._before(plan, ours)
        try:
            # Everything that can fail without taking the port is done while the old container
            # serves.
            if not any(c.state == "running" and c.port == service.listening_port for c in before):
                self._wait_for_port(service)
            for part in service.parts:
                if not self._engine.has_image(part.image):
                    self._engine.pull(part.image)
            self._create(plan, trial)
            for container in before:
                self._containers[container.name] = container._replace(state="exited")
                self._engine.stop(container.name, service.stop_seconds)
            self._wait_for_port(service)
            begun = self._host.monotonic()
            self._engine.start(trial)
            self._wait(trial, service)
            ready_ms = self._since(begun)
        except GroundcrewError as error:
            tail = self._tail(trial) if trial in self._containers else ""
            with contextlib.suppress(GroundcrewError):
                self._discard(trial)
            raise ReleaseError(
                f"{service.name}: release {plan.release} of {service.image} was refused: "
                f"{str(error).rstrip('.')}. {self._restore(service.name, before)}{tail}"
            ) from error
        except BaseException:
            # Ctrl-C or a signal: what served has to serve again before this process goes.
            with contextlib.suppress(GroundcrewError):
                self._discard(trial)
            self._restore(service.name, before)
            raise
        self._promote(service.name, before, wanted)
        return ready_ms

    def _create(self, plan: _Plan, trial: str) -> None:
        files, backend_files = self._write(plan)
        common = {
            "release": plan.release,
            "family": self._family,
            "bind_address": self._address,
        }
        self._engine.create(
            trial,
            create_arguments(plan.service, files=files, **common),
            backend_arguments(plan.service, files=backend_files, **common),
        )
        self._containers[trial] = Container(
            name=trial,
            state="running",
            service=plan.service.name,
            release=plan.release,
            family=self._family,
            port=plan.service.listening_port,
        )

    def _promote(self, name: str, before: Sequence[Container], wanted: set[str]) -> None:
        """Give the container on trial the name; the one before it becomes the previous."""
        predecessor = next((c for c in before if c.name == name or c.name not in wanted), None)
        if predecessor is not None:
            self._discard(name + PREVIOUS)
            self._rename(predecessor.name, name + PREVIOUS)
        self._rename(name + NEXT, name)

    def _restore(self, name: str, before: Sequence[Container]) -> str:
        """Start again what served before; says what serves now. Never raises GroundcrewError."""
        previous = self._containers.get(name + PREVIOUS)
        if not before and previous is not None:
            # An interrupted run had already set the old one aside.
            try:
                self._rename(previous.name, name)
            except GroundcrewError as error:
                return f"The release before it could not be brought back: {error}"
            before = [self._containers[name]]
        if not before:
            return "There was no release before it, so nothing serves."
        said: list[str] = []
        for container in before:
            what = f"Release {container.release} ({container.name})"
            if self._containers[container.name].state == "running":
                said.append(f"{what} serves on.")
                continue
            if said and container.state != "running":
                continue  # it did not serve before either
            try:
                self._engine.start(container.name)
                stored = self._stored(container).get("map")
                if stored:
                    self._wait(container.name, parse_service(stored))
                self._containers[container.name] = container._replace(state="running")
                said.append(f"{what} was started again and serves.")
            except GroundcrewError as error:
                said.append(f"{what} was started again, but: {error}")
        return " ".join(said)

    def _remove_service(self, name: str) -> None:
        own = self._containers.get(name)
        if own is not None and own.service and own.state == "running":
            seconds = self._stored(own).get("map", {}).get("stop_seconds", DEFAULTS["stop_seconds"])
            self._engine.stop(name, int(seconds))
        for suffix in (NEXT, "", PREVIOUS):
            self._discard(name + suffix)

    def _discard(self, name: str) -> None:
        """Remove a container of a release if it is there."""
        container = self._containers.get(name)
        if container is not None and container.service:
            self._engine.remove(name)
            del self._containers[name]

    def _rename(self, name: str, new_name: str) -> None:
        self._engine.rename(name, new_name)
        self._containers[new_name] = self._containers.pop(name)._replace(name=new_name)

    # -- waiting

    def _since(self, begun: float) -> int:
        return round((self._host.monotonic() - begun) * 1000)

    def _wait_for_port(self, service: Service) -> None:
        if service.listening_port is None:
            return
        deadline = self._host.monotonic() + _PORT_FREE_SECONDS
        # Asked even with network: host, where a foreign listener's answer could be taken for ours.
        while (reason := self._host.taken(self._address, service.listening_port)) is not None:
            if self._host.monotonic() >= deadline:
                raise GroundcrewError(
                    f"{self._address}:{service.listening_port} cannot be listened on: {reason}."
                )
            self._host.sleep(0.2)

    def _wait(self, name: str, service: Service) -> None:
        """Return once the container is ready. Raises GroundcrewError when it stops, restarts or
        takes too long.
        """
        begun = self._host.monotonic()
        deadline = begun + service.ready_timeout_seconds
        pause = 0.1
        answer = "none, it was not asked"
        ready = False
        while True:
            fault = _fault(self._engine.state(name))
            if fault is not None:
                raise GroundcrewError(f"{fault} Last readiness answer: {answer}.")
            now = self._host.monotonic()
            if ready and now - begun >= service.ready.running_seconds:
                return
            if now >= deadline:
                raise GroundcrewError(
                    f"it was not ready within {service.ready_timeout_seconds} s. Last readiness "
                    f"answer: {answer}."
                )
            if ready or service.ready.path is None:
                ready = True
                pause = max(0.0, min(_LONGEST_PAUSE, begun + service.ready.running_seconds - now))
            else:
                timeout = max(0.1, min(_PROBE_SECONDS, deadline - now))
                ready, answer = self._host.probe(service, self._address, timeout)
                if ready:
                    # Ask the engine once more: the answer counts only if it came from a container
                    # that still runs.
                    continue
            self._host.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    def _tail(self, name: str) -> str:
        try:
            lines = self._engine.logs(name, LOG_LINES).splitlines()[-LOG_LINES:]
        except GroundcrewError as error:
            lines = [f"({error})"]
        return "\nLast log lines of the container:\n" + "\n".join(
            f"    {line}" for line in lines or ["(none)"]
        )

    # -- files

    def _stored(self, container: Container) -> dict[str, Any]:
        """What _write recorded of a release, {} when that is lost."""
        path = self._state / container.service / container.release / "release.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _write(self, plan: _Plan) -> tuple[dict[str, str], ...]:
        """Write a release's config and secrets into its directory; gives, for the container and for
        its backend, path in the container -> file on the host.
        """
        service = plan.service
        directory = self._state / service.name / plan.release
        partial = directory.with_name(f".{plan.release}.partial")
        files: tuple[dict[str, str], ...] = ({}, {})
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            partial.chmod(0o755)
            for part, prefix, own in zip(service.parts, ("", "backend-"), files, strict=False):
                for kind, contents in (("config", part.config), ("secrets", part.secrets)):
                    folder = partial / f"{prefix}{kind}"
                    folder.mkdir()
                    folder.chmod(0o700 if kind == "secrets" else 0o755)
                    for number, (target, content) in enumerate(sorted(contents.items())):
                        # Numbered: two targets may end in the same file name.
                        file = f"{number:02d}-{Path(target).name}"
                        if kind == "secrets":
                            _write_file(folder / file, content, 0o400, part.uid_gid)
                        else:
                            _write_file(folder / file, content, 0o444)
                        own[target] = str(directory / folder.name / file)
            record = {"fingerprint": plan.parts, "map": public_map(service)}
            _write_file(
                partial / "release.json", json.dumps(record, indent=1, sort_keys=True), 0o600
            )
            # A directory of that name has the same contents, or was damaged: the id is a hash of
            # them.
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        except OSError as error:
            raise GroundcrewError(
                f"service {service.name}: cannot write {error.filename}: {error.strerror}."
            ) from error
        return files

    def _sweep(self) -> None:
        """Remove directories of releases of which no container is left."""
        with contextlib.suppress(GroundcrewError, OSError):
            self._refresh()
            self._engine.prune()
            kept = {
                (container.service, container.release) for container in self._containers.values()
            }
            for directory in self._state.glob("*/*"):
                if (directory.parent.name, directory.name) not in kept:
                    shutil.rmtree(directory, ignore_errors=True)
            for directory in self._state.glob("*/"):
                with contextlib.suppress(OSError):
                    directory.rmdir()


@contextlib.contextmanager
def lock(state_directory: str, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the host's release lock; a killed holder's is gone with its process.

    Raises GroundcrewError that names the holder when it is not free within `seconds`.
    """
    directory = Path(state_directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    raise GroundcrewError(
                        f"another release has been running on this host for over {seconds:.0f} s "
                        f"(process {file.read().strip() or 'unknown'}). Wait for it, or end it, "
                        f"and run again."
                    ) from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def summary(outcome: Outcome, *, future: bool = False) -> str:
    """A few lines for a diff: what is done and which keys of the map differ, never a value."""
    lines = [
        (
            f"{outcome.name}: {'would be ' if future else ''}{outcome.action}, release "
            f"{outcome.release or 'unknown'}"
        )
    ]
    said = "from {}" if outcome.action == "rolled back" else "{} differs"
    lines += [f"  {said.format(change)}" for change in outcome.changes]
    return "\n".join(lines) + "\n"


def without_engine(
    services: Sequence[Service], remove: Sequence[str], bind_address: str
) -> list[Outcome]:
    """Outcomes in check mode on a host that has no engine yet: every service would be created."""
    outcomes = []
    for service in services:
        if service.absent:
            outcomes.append(Outcome(service.name, "", "", "absent"))
        else:
            release = release_id(
                fingerprint(service, bind_address, _env_files(service, check=True))
            )
            outcomes.append(Outcome(service.name, release, service.image, "created"))
    return [*outcomes, *(Outcome(name, "", "", "absent") for name in remove)]


def _base(name: str) -> str:
    """The service a container's name belongs to."""
    for suffix in (NEXT, PREVIOUS):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def _fault(state: ContainerState) -> str | None:
    if state.status == "running" and not state.restarts:
        return None
    if state.status == "running":
        return f"it ended and was started again by the engine ({state.restarts} times)."
    if state.status in ("restarting", "exited", "dead"):
        why = ", out of memory" if state.out_of_memory else ""
        said = f" ({state.error})" if state.error else ""
        return f"it exited with code {state.exit_code}{why}{said}."
    return f"it is {state.status}."


def _env_files(service: Service, check: bool) -> dict[str, str]:
    contents = {}
    for path in (path for part in service.parts for path in part.env_file):
        try:
            contents[path] = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            # In check mode on a fresh host the task that writes it has not run.
            if not check:
                raise GroundcrewError(
                    f"service {service.name}: cannot read env_file {path}: {error.strerror}."
                ) from error
            contents[path] = ""
    return contents


def _write_file(path: Path, content: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    # Made with mode 0600, so that it is never readable by others, not even while it is written.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)


def _listener(port: int) -> str:
    """Which process listens on a port, " (name, pid n)", or "" when that cannot be found out."""
    try:
        said = subprocess.run(
            ["ss", "-Hltnp", f"sport = :{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=10,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r'\(\("([^"]+)",pid=(\d+)', said)
    return f" ({found[1]}, pid {found[2]})" if found else ""
