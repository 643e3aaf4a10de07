"""Releases on one host: from service maps to running, ready containers, the last good one kept.

A container's name says where it is in a release, so a run that was killed anywhere is mended by the
next one:

    <service>            was ready when it got this name
    <service>-next       a release on trial; found by a later run, an interrupted one left it
    <service>-previous   the release before, stopped, kept for rollback

A service with strategy blue_green has two ports, its slots: the declared one and the one above. A
release starts as <service>-next on the slot that is free, beside the container that serves; when it
is ready the serving one is stopped, and they are renamed. Where gateways stand in front they have to
be told in between, so that is done in two runs: the first ends with the release *handed over*, which
a file in its directory says; from then on the gateways may send to it. The second (`settle`) stops
what it replaces, or removes the release again when a gateway would not have it.

With strategy replace the serving container is stopped first, and started again if the release never
becomes ready.
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
# An image is unpacked before it is complete, and a full disk stops more than a release.
_FREE_BYTES = 2 * 2**30

# What stands in the file that says that a release was handed over: where it comes from, or that it
# goes again, to be removed or to be kept where it was.
_HANDED_OVER = "handed-over"
_RELEASE, _ROLLBACK, _WITHDRAW, _KEPT = "release", "rollback", "withdraw", "keep"


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
    back, to the release before; settled, it took over from what served; withdrawn, it did not.
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


@dataclass(frozen=True)
class Report:
    """What a run did, and what is left to do with the gateways.

    handed_over: services of which a release waits beside the one that serves; `settle` ends that.
    again: those are an interrupted run's, and nothing else was done: settle, and run again.
    replacing: services that have to be drained first, since theirs is stopped before the new one
    starts (replacing_ports: the ports it has); nothing was done about them. unwanted: services that run and are not in the list.
    drain_seconds: how long requests may take until what serves now is stopped.
    """

    outcomes: list[Outcome]
    handed_over: list[str] = field(default_factory=list)
    again: bool = False
    replacing: list[str] = field(default_factory=list)
    replacing_ports: list[int] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)
    drain_seconds: int = 0


class Host(Protocol):
    """What the release logic asks of the machine it runs on, apart from the engine."""

    def check_files(self, service: Service) -> None:
        """Raise GroundcrewError when a file or directory that the service needs is missing."""

    def probe(self, service: Service, address: str, port: int, timeout: float) -> tuple[bool, str]:
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

    def probe(self, service: Service, address: str, port: int, timeout: float) -> tuple[bool, str]:
        shown = f"[{address}]" if ":" in address else address
        url = f"http://{shown}:{port}{service.ready.path}"
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
        self._begun: set[str] = set()

    def run(
        self,
        services: Sequence[Service],
        remove: Sequence[str] = (),
        *,
        check: bool = False,
        hold: bool = False,
        keep: bool = False,
    ) -> Report:
        """Make it so; with `check` only say what would be done.

        With `hold` gateways stand in front: what serves goes on serving, releases end handed over,
        and nothing that runs is removed. `keep` is the last of these alone. Stops at the first service that fails, with ReleaseError.
        Raises GroundcrewError before anything is touched when a file is missing or a name belongs
        to a container that is not a release's.
        """
        self._refresh()
        present = [service for service in services if not service.absent]
        plans = [self._plan(service, check) for service in present]
        if not check and self._unfinished(plans, hold):
            if hold:
                return self._report([], again=True)
            self.settle()
            plans = [self._plan(service, check) for service in present]
        wanted = {plan.service.name for plan in plans}
        unwanted = self._unwanted(
            wanted, [*remove, *(service.name for service in services if service.absent)]
        )
        ours = {*wanted, *unwanted}
        for plan in plans:
            self._before(plan, ours)  # refuses another family's port before anything is touched
        kept = [name for name in unwanted if (hold or keep) and self._runs(name)]
        replacing = [
            plan.service.name
            for plan in plans
            if hold
            and plan.action == "replaced"
            and not plan.service.beside
            and any(container.state == "running" for container in self._before(plan, ours))
        ]
        if check:
            return Report(
                [
                    *(self._outcome(plan) for plan in plans),
                    *(self._outcome_of_removal(name) for name in unwanted),
                ]
            )
        for plan in plans:
            if plan.action in ("created", "replaced"):
                self._host.check_files(plan.service)
        # Before a release may take over one of these: they are removed whichever way.
        removals = [self._outcome_of_removal(name) for name in unwanted if name not in kept]
        done: list[Outcome] = []
        try:
            for plan in plans:
                self._end_rollback(plan.service)
            for name in ours:
                # What an interrupted run left on trial may hold a port.
                if self._how(name + NEXT) is None and name not in wanted:
                    self._discard(name + NEXT)
            for plan in plans:
                if plan.service.name not in replacing:
                    done.append(self._apply(plan, wanted, ours, hold))
            for outcome in removals:
                self._remove_service(outcome.name)
                done.append(outcome)
        except GroundcrewError as error:
            if hold:
                # Nobody was told of these yet: all that is new on this host, or nothing.
                for name in self._begun:
                    self._discard(name)
            self._sweep()
            raise ReleaseError(str(error), done) from error
        if any(outcome.changed for outcome in done):
            self._sweep()
        return self._report(done, replacing=replacing, unwanted=kept)

    def withdraw(self) -> Report:
        """Take every hand-over of this family back: gateways are to be told, and then `settle`.

        One whose predecessor an interrupted `settle` has stopped is past that, and stays.
        """
        self._refresh()
        for container in self._handed_over():
            if not any(other.state == "running" for other in self._line(container)):
                continue
            kept = self._how(container.name) in (_ROLLBACK, _KEPT)
            self._mark(container, _KEPT if kept else _WITHDRAW)
        return self._report([])

    def settle(self) -> list[Outcome]:
        """End every hand-over of this family: stop what is replaced, or the release that is withdrawn."""
        self._refresh()
        done: list[Outcome] = []
        for container in self._handed_over():
            goes = self._how(container.name) in (_WITHDRAW, _KEPT)
            if not goes and container.state != "running":
                raise ReleaseError(
                    f"{container.service}: release {container.release} is {container.state} since the "
                    f"gateways were told of it, so what it replaces runs on. Run it again.",
                    done,
                )
            if goes:
                self._withdraw(container)
            else:
                before = self._line(container)
                for other in before:
                    self._stop(other)
                self._promote(container.service, before, set())
                self._mark(container, None)
            done.append(
                Outcome(
                    container.service,
                    container.release,
                    "",
                    "withdrawn" if goes else "settled",
                )
            )
        if done:
            self._sweep()
        return done

    def serving(self) -> list[int]:
        """Ports on this host to which gateways are to send, of all families."""
        self._refresh()
        handed_over = [
            c for c in self._handed_over(every=True) if self._how(c.name) in (_RELEASE, _ROLLBACK)
        ]
        replaced = {other.name for c in handed_over for other in self._line(c)}
        own = [
            c
            for c in self._containers.values()
            if c.service and _base(c.name) == c.name and c.name not in replaced
        ]
        return sorted({port for c in (*handed_over, *own) for port in c.ports})

    def rollback(self, name: str, *, check: bool = False, hold: bool = False) -> Report:
        """Go back to the release before the present one of service `name`, or `name-<version>`.

        What goes is kept in its place, so a second rollback goes forward again. Raises
        GroundcrewError when none is kept here, or several services are meant; ReleaseError when the
        old one did not become ready, and the present one serves on.
        """
        self._refresh()
        if not check and self._handed_over():
            if hold:
                return self._report([], again=True)
            self.settle()
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
        outcome = Outcome(back, previous.release, service.image, "rolled back", None, changes)
        if check:
            return Report([outcome])
        beside = service.beside and present.state == "running" and present.port != previous.port
        if hold and not beside and present.state == "running":
            return self._report([], replacing=[present.name])
        begun = self._host.monotonic()
        try:
            if not beside:
                self._engine.stop(present.name, service.stop_seconds)
            self._wait_for_port(previous.port)
            begun = self._host.monotonic()
            self._engine.start(previous.name)
            self._wait(previous.name, service, previous.port)
        except BaseException as error:
            tail = self._tail(previous.name) if isinstance(error, GroundcrewError) else ""
            with contextlib.suppress(GroundcrewError):
                self._engine.stop(previous.name, service.stop_seconds)
            if not beside:
                self._containers[present.name] = present._replace(state="exited")
            said = self._restore(present.name, [present])
            if not isinstance(error, GroundcrewError):
                raise
            raise ReleaseError(
                f"{present.name}: release {previous.release} did not come back: "
                f"{str(error).rstrip('.')}. {said}{tail}"
            ) from error
        ready_ms = self._since(begun)
        self._containers[previous.name] = previous._replace(state="running")
        outcome = Outcome(back, previous.release, service.image, "rolled back", ready_ms, changes)
        # Said before it has the name that counts: a run that is killed in between leaves a release
        # that is kept, not one on trial, which would be removed.
        self._mark(previous, _ROLLBACK)
        self._discard(back + NEXT)
        self._rename(previous.name, back + NEXT)
        if hold and beside:
            return self._report([outcome])
        self.settle()
        return self._report([outcome])

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
        elif self._how(service.name + NEXT) is not None:
            action = "none"  # an unfinished hand-over, which was seen to before this counts
        elif service.name + NEXT in self._containers:
            action = "cleaned"
        else:
            action = "none"
        return _Plan(service, release, parts, own, action, changes)

    def _runs(self, name: str) -> bool:
        return name in self._containers and self._containers[name].state == "running"

    def _how(self, name: str) -> str | None:
        """How a release on trial was handed over, None when it was not."""
        container = self._containers.get(name)
        if container is None or not container.service or not name.endswith(NEXT):
            return None
        try:
            return self._file(container).read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def _mark(self, container: Container, how: str | None) -> None:
        """Say that a container is handed over, and how; None takes it back."""
        file = self._file(container)
        try:
            if how is None:
                file.unlink(missing_ok=True)
            else:
                # Whole or not at all.
                file.with_suffix(".partial").write_text(how, encoding="utf-8")
                file.with_suffix(".partial").replace(file)
        except OSError as error:
            raise GroundcrewError(
                f"service {container.service}: cannot write {error.filename}: {error.strerror}."
            ) from error

    def _file(self, container: Container) -> Path:
        return self._state / container.service / container.release / _HANDED_OVER

    def _handed_over(self, *, every: bool = False) -> list[Container]:
        """Releases that were handed over and not settled, of this family or of every one."""
        return [
            container
            for name, container in sorted(self._containers.items())
            if self._how(name) is not None
            and (every or not self._family or container.family == self._family)
        ]

    def _line(self, container: Container) -> list[Container]:
        """What a release takes over from: its service's own, and the one that has its pair of ports."""
        found = [
            other
            for other in self._containers.values()
            if other.service
            and _base(other.name) == other.name
            and (
                other.name == container.service
                or (
                    other.port is not None
                    and container.port is not None
                    and other.port // 2 == container.port // 2
                )
            )
        ]
        return sorted(
            found, key=lambda c: (c.state != "running", c.name != container.service, c.name)
        )

    def _unfinished(self, plans: Sequence[_Plan], hold: bool) -> bool:
        """Whether something was handed over that is not, or no longer, what is wanted and ready."""
        wanted = {plan.service.name: plan for plan in plans}
        unfinished = False
        for container in self._handed_over():
            plan = wanted.get(container.service)
            if container.state != "running":
                self._mark(container, _WITHDRAW)
            elif (
                hold
                and plan is not None
                and plan.release == container.release
                and self._how(container.name) == _RELEASE
            ):
                try:
                    self._wait(container.name, plan.service, container.port)
                    continue
                except GroundcrewError:
                    self._mark(container, _WITHDRAW)
            unfinished = True
        return unfinished

    def _report(
        self,
        outcomes: list[Outcome],
        *,
        again: bool = False,
        replacing: Sequence[str] = (),
        unwanted: Sequence[str] = (),
    ) -> Report:
        waiting = self._handed_over()
        replaced = [other for c in waiting for other in self._line(c)]
        replaced += [self._containers[name] for name in replacing]
        seconds = [self._seconds(container, "drain_seconds") for container in replaced]
        return Report(
            outcomes,
            handed_over=[container.service for container in waiting],
            again=again,
            replacing=list(replacing),
            replacing_ports=sorted(
                {port for name in replacing for port in self._containers[name].ports}
            ),
            unwanted=list(unwanted),
            drain_seconds=max(seconds, default=0),
        )

    def _seconds(self, container: Container, key: str) -> int:
        return int(self._stored(container).get("map", {}).get(key, DEFAULTS[key]))

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
        ports = {port, port + 1} if plan.service.beside else {port}
        if plan.action == "started" and plan.own is not None:
            ports = {plan.own.port or port}
        holders = []
        for container in self._containers.values():
            if (
                container.port not in ports
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

    def _apply(self, plan: _Plan, wanted: set[str], ours: set[str], hold: bool) -> Outcome:
        if plan.action == "none" or self._how(plan.service.name + NEXT) is not None:
            return self._outcome(plan)
        self._log(f"{plan.service.name}: {plan.action}, release {plan.release}")
        # What an interrupted run left may hold the port.
        self._discard(plan.service.name + NEXT)
        if plan.action == "started" and plan.own is not None:
            return self._outcome(plan, self._start_again(plan, plan.own, ours))
        if plan.action in ("created", "replaced"):
            return self._outcome(plan, self._release(plan, wanted, ours, hold))
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
            self._wait(name, plan.service, own.port)
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

    def _release(self, plan: _Plan, wanted: set[str], ours: set[str], hold: bool) -> int:
        service = plan.service
        trial = service.name + NEXT
        # Only now: a service before this one in the list may have given up its port or taken
        # another.
        before = self._before(plan, ours)
        held = {c.port for c in before if c.state == "running"}
        slot, beside, port = 0, False, service.listening_port
        if port is not None and service.beside:
            free = [number for number in (0, 1) if port + number not in held]
            slot, beside = (free[0], True) if free else (0, False)
            port += slot
        # Another that is wanted too goes on: its own release moves it.
        serving = [c for c in before if c.name == service.name or c.name not in wanted]
        try:
            # Everything that can fail without taking the port is done while the old container
            # serves.
            if port not in held:
                self._wait_for_port(port)
            for part in service.parts:
                self._pull(part.image)
            self._create(plan, trial, slot)
            if not beside:
                for container in before:
                    self._containers[container.name] = container._replace(state="exited")
                    self._engine.stop(container.name, service.stop_seconds)
                self._wait_for_port(port)
            begun = self._host.monotonic()
            self._engine.start(trial)
            # What serves can go on, so there is time to see whether the new one stays up.
            steady = beside and any(container.state == "running" for container in serving)
            self._wait(trial, service, port, service.ready.steady_seconds if steady else 0.0)
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
        if hold and beside and any(container.state == "running" for container in serving):
            self._mark(self._containers[trial], _RELEASE)
            self._begun.add(trial)
            return ready_ms
        for container in serving:
            self._stop(self._containers[container.name])
        self._promote(service.name, before, wanted)
        return ready_ms

    def pull(self, images: Sequence[str], *, check: bool = False) -> list[str]:
        """Fetch the images that this host lacks; returns those. Raises GroundcrewError, with less
        than 2 GiB free before anything is fetched.
        """
        missing = [image for image in images if not self._engine.has_image(image)]
        for image in [] if check else missing:
            self._pull(image)
        return missing

    def _pull(self, image: str) -> None:
        if self._engine.has_image(image):
            return
        free = self._engine.free_bytes()
        if free < _FREE_BYTES:
            raise GroundcrewError(
                f"{free / 2**30:.1f} GiB are free where the engine keeps its images, and "
                f"{image} is not pulled into less than {_FREE_BYTES / 2**30:.0f}. Make room "
                f"(docker system df says what takes it) or give the host a larger disk."
            )
        self._engine.pull(image)

    def _stop(self, container: Container) -> None:
        if container.state == "running":
            self._engine.stop(container.name, self._seconds(container, "stop_seconds"))
            self._containers[container.name] = container._replace(state="exited")

    def _withdraw(self, container: Container) -> None:
        """Remove what was handed over; a rollback's goes back to where it was, if that is free."""
        present = next(iter(self._line(container)), None)
        kept = self._how(container.name) == _KEPT
        if kept and present is not None and present.name + PREVIOUS not in self._containers:
            self._stop(container)
            self._mark(container, None)
            self._rename(container.name, present.name + PREVIOUS)
        else:
            self._discard(container.name)

    def _create(self, plan: _Plan, trial: str, slot: int) -> None:
        files, backend_files = self._write(plan)
        common: dict[str, Any] = {
            "release": plan.release,
            "family": self._family,
            "bind_address": self._address,
            "slot": slot,
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
            port=next(iter(plan.service.ports_of(slot)), None),
            ports=plan.service.ports_of(slot),
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
                    self._wait(container.name, parse_service(stored), container.port)
                self._containers[container.name] = container._replace(state="running")
                said.append(f"{what} was started again and serves.")
            except GroundcrewError as error:
                said.append(f"{what} was started again, but: {error}")
        return " ".join(said)

    def _remove_service(self, name: str) -> None:
        own = self._containers.get(name)
        if own is not None and own.service:
            self._stop(own)
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

    def _wait_for_port(self, port: int | None) -> None:
        if port is None:
            return
        deadline = self._host.monotonic() + _PORT_FREE_SECONDS
        # Asked even with network: host, where a foreign listener's answer could be taken for ours.
        while (reason := self._host.taken(self._address, port)) is not None:
            if self._host.monotonic() >= deadline:
                raise GroundcrewError(f"{self._address}:{port} cannot be listened on: {reason}.")
            self._host.sleep(0.2)

    def _wait(
        self, name: str, service: Service, port: int | None, steady_seconds: float = 0.0
    ) -> None:
        """Return once the container is ready and has stayed up for long enough. Raises
        GroundcrewError when it stops, restarts or takes too long.
        """
        running_seconds = max(service.ready.running_seconds, steady_seconds)
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
            if ready and now - begun >= running_seconds:
                return
            if now >= deadline:
                raise GroundcrewError(
                    f"it was not ready within {service.ready_timeout_seconds} s. Last readiness "
                    f"answer: {answer}."
                )
            if ready or service.ready.path is None or port is None:
                ready = True
                pause = max(0.0, min(_LONGEST_PAUSE, begun + running_seconds - now))
            else:
                timeout = max(0.1, min(_PROBE_SECONDS, deadline - now))
                ready, answer = self._host.probe(service, self._address, port, timeout)
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
            images: set[str] = set()
            kept_images: set[str] = set()
            for directory in self._state.glob("*/*"):
                known = (directory.parent.name, directory.name) in kept
                (kept_images if known else images).update(_images_of(directory))
                if not known:
                    shutil.rmtree(directory, ignore_errors=True)
            for image in sorted(images - kept_images):
                self._engine.remove_image(image)
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


def _images_of(directory: Path) -> set[str]:
    """The images of the release that is recorded in a directory."""
    try:
        stored = json.loads((directory / "release.json").read_text(encoding="utf-8"))["map"]
        parts = (stored, stored.get("backend") or {})
        return {str(part["image"]) for part in parts if "image" in part}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


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
