"""What HAProxy does, changed while it runs, by its runtime API: which servers it sends to, and its maps.

A release takes effect here: the server of the slot that has it is enabled, and once HAProxy's own
check has passed the server of the other slot is drained and disabled. Every process is told, those
too that a reload has left to finish their connections. What was changed is saved, so that a reload
or a restart starts with it.

Commands and columns: management guide of HAProxy 2.6, section 9.3; the master's CLI: section 9.4.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import GroundcrewError

_ANSWER_SECONDS = 10.0
_CONNECT_SECONDS = 5.0
_PAUSE = 0.1
# The master reads 16 kB of commands at a time, and says nothing when more come.
_COMMANDS_A_TIME = 50

# Bits of srv_admin_state: maintenance by the runtime API, and drain by it.
_MAINTENANCE, _DRAIN = 0x01, 0x08
_CHECK_PASSED = 3


@dataclass(frozen=True)
class Server:
    """One server of one backend, as `show servers state` lists it."""

    backend: str
    name: str
    address: str
    port: int
    admin_state: int
    check_result: int

    @property
    def enabled(self) -> bool:
        return not self.admin_state & (_MAINTENANCE | _DRAIN)

    @property
    def disabled(self) -> bool:
        return bool(self.admin_state & _MAINTENANCE)

    def __str__(self) -> str:
        return f"{self.backend}/{self.name}"


@dataclass
class Change:
    """What was done, or in check mode would be: servers by backend/name.

    unknown: address:port that should be sent to and that no server has. cut: how many requests were
    still open when their server was disabled.
    """

    enabled: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    cut: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.enabled or self.disabled)


class MasterSocket:
    """HAProxy's processes by the socket of their master."""

    def __init__(self, path: str) -> None:
        self._path = path

    def workers(self) -> list[str]:
        """Process ids, the one that accepts connections first.

        Raises GroundcrewError when HAProxy does not answer.
        """
        found = re.findall(r"^(\d+)\s+worker\s", self._ask("show proc"), re.MULTILINE)
        if not found:
            raise GroundcrewError("HAProxy runs no process. Run: systemctl restart haproxy")
        return [str(pid) for pid in found]

    def command(self, worker: str, commands: Sequence[str]) -> str:
        return self._ask("\n".join(f"@!{worker} {command}" for command in commands))

    def _ask(self, text: str) -> str:
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.connect(self._path)
                connection.sendall(text.encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
                while block := connection.recv(65536):
                    answer += block
        except OSError as error:
            raise GroundcrewError(
                f"HAProxy does not answer at {self._path}: {error}. Run: systemctl start haproxy"
            ) from error
        return answer.decode("utf-8", "replace")


class Gateway:
    """HAProxy on this host.

    save: writes the state of the servers where HAProxy reads it at start; raises GroundcrewError.
    connects: whether this host can connect to an address and a port.
    """

    def __init__(
        self,
        control: MasterSocket,
        save: Callable[[], None],
        *,
        connects: Callable[[str, int], bool],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._control = control
        self._save = save
        self._connects = connects
        self._monotonic, self._sleep = monotonic, sleep

    def servers(self) -> list[Server]:
        worker = self._control.workers()[0]
        return parse_servers(self._control.command(worker, ["show servers state"]))

    def send_to(
        self,
        serving: Mapping[str, Iterable[int]],
        *,
        drain_seconds: float,
        up_seconds: float = 15.0,
        check: bool = False,
    ) -> Change:
        """Send to these ports of these addresses, and to no other port of them.

        A server that is to be sent to has to pass HAProxy's own check within `up_seconds`;
        otherwise everything is left, or put back, as it was, and GroundcrewError says which. Open
        requests of the others have `drain_seconds` to end. Servers at other addresses are not
        touched.
        """
        ports = {address: {int(port) for port in listed} for address, listed in serving.items()}
        servers = [server for server in self.servers() if server.address in ports]
        wanted = [server for server in servers if server.port in ports[server.address]]
        others = [server for server in servers if server.port not in ports[server.address]]
        enable = [server for server in wanted if not server.enabled]
        disable = [server for server in others if not server.disabled]
        known = {(server.address, server.port) for server in servers}
        change = Change(
            enabled=[str(server) for server in enable],
            disabled=[str(server) for server in disable],
            unknown=[
                f"{address}:{port}"
                for address in sorted(ports)
                for port in sorted(ports[address])
                if (address, port) not in known
            ],
        )
        if check or not change.changed:
            return change
        # HAProxy shows the result of a slot's last check, which may be from its last release.
        down = sorted(str(s) for s in enable if not self._connects(s.address, s.port))
        if not down:
            self._set(enable, "ready")
            down = self._wait_until_up(enable, up_seconds)
            if down:
                self._set(enable, "maint")
                self._save()
        if down:
            raise GroundcrewError(
                f"the gateway's check of {', '.join(down)} does not pass, so nothing is sent there. "
                f"Does the gateway reach that port (security group, firewall)?"
            )
        self._set(disable, "drain")
        change.cut = self._wait_until_drained(disable, drain_seconds)
        self._set(disable, "maint")
        self._save()
        return change

    def _set(self, servers: Sequence[Server], state: str) -> None:
        commands = [f"set server {server} state {state}" for server in servers]
        if not commands:
            return
        current, *older = self._control.workers()
        said = self._control.command(current, commands).strip()
        if said:
            raise GroundcrewError(f"HAProxy refuses to set servers to {state}: {said}")
        for worker in older:
            # One that a reload left may not know a server, or be gone by now.
            try:
                self._control.command(worker, commands)
            except GroundcrewError:
                continue

    def _wait_until_up(self, servers: Sequence[Server], seconds: float) -> list[str]:
        """Names of those whose check has not passed in time."""
        names = {str(server) for server in servers}
        deadline = self._monotonic() + seconds
        while True:
            down = sorted(
                str(server)
                for server in self.servers()
                if str(server) in names and server.check_result < _CHECK_PASSED
            )
            if not down or self._monotonic() >= deadline:
                return down
            self._sleep(_PAUSE)

    def _wait_until_drained(self, servers: Sequence[Server], seconds: float) -> int:
        """How many requests were still open after the wait, in all processes."""
        names = {str(server) for server in servers}
        if not names:
            return 0
        deadline = self._monotonic() + seconds
        while True:
            used = 0
            for number, worker in enumerate(self._control.workers()):
                try:
                    said = self._control.command(worker, ["show servers conn"])
                except GroundcrewError:
                    if number == 0:
                        raise
                    continue
                used += sum(parse_used(said).get(name, 0) for name in names)
            if not used or self._monotonic() >= deadline:
                return used
            self._sleep(_PAUSE)


class Maps:
    """The maps that HAProxy looks things up in (keys, limits, shares), changed while it runs."""

    def __init__(self, control: MasterSocket) -> None:
        self._control = control

    def follow(self, wanted: Mapping[str, Mapping[str, str]], *, check: bool = False) -> list[str]:
        """Bring the map of each path to these entries; returns what changed, `path: verb key` each.

        What is new comes first and what goes goes last, so that a key and its successor overlap.
        Every process is brought there, those too that a reload has left to finish.
        """
        current, *older = self._control.workers()
        changes = self._follow(current, wanted, check)
        for worker in older:
            # One that a reload left may be gone by now, or may not know the map.
            with contextlib.suppress(GroundcrewError):
                changes += self._follow(worker, wanted, check)
        return sorted(set(changes))

    def _follow(
        self, worker: str, wanted: Mapping[str, Mapping[str, str]], check: bool
    ) -> list[str]:
        changes, first, last = [], [], []
        for path, entries in wanted.items():
            have = self.entries(worker, path)
            for key, value in entries.items():
                if have.get(key) != value:
                    verb = "set" if key in have else "add"
                    first.append(f"{verb} map {path} {key} {value}")
                    changes.append(f"{path}: {verb} {key}")
            for key in have.keys() - entries.keys():
                last.append(f"del map {path} {key}")
                changes.append(f"{path}: del {key}")
        commands = [] if check else first + last
        for start in range(0, len(commands), _COMMANDS_A_TIME):
            said = self._control.command(worker, commands[start : start + _COMMANDS_A_TIME]).strip()
            if said:
                raise GroundcrewError(f"HAProxy refuses a change of its maps: {said}")
        return changes

    def entries(self, worker: str, path: str) -> dict[str, str]:
        said = self._control.command(worker, [f"show map {path}"])
        lines = said.strip().splitlines()
        if lines and not lines[0].startswith("0x"):
            raise GroundcrewError(
                f"HAProxy does not know the map {path}: {lines[0]} Run: systemctl reload haproxy"
            )
        return parse_map("\n".join(line.partition(" ")[2] for line in lines))


def parse_map(text: str) -> dict[str, str]:
    """Key -> value of a map file: a line each, `#` begins a comment."""
    pairs = (line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("#"))
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def parse_servers(text: str) -> list[Server]:
    """The lines of `show servers state`, version 1."""
    lines = text.strip().splitlines()
    if not lines or lines[0].strip() != "1":
        raise GroundcrewError(f"HAProxy says {text[:80]!r} instead of the state of its servers.")
    found = []
    for line in lines[1:]:
        columns = line.split()
        if line.startswith("#") or len(columns) < 19:
            continue
        found.append(
            Server(
                backend=columns[1],
                name=columns[3],
                address=columns[4],
                port=int(columns[18]),
                admin_state=int(columns[6]),
                check_result=int(columns[11]),
            )
        )
    return found


def parse_used(text: str) -> dict[str, int]:
    """backend/name -> connections in use, from `show servers conn`."""
    used = {}
    for line in text.splitlines():
        columns = line.split()
        if len(columns) > 6 and "/" in columns[0] and columns[6].isdigit():
            used[columns[0]] = int(columns[6])
    return used


def connects(address: str, port: int) -> bool:
    """Whether this host can connect there."""
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


def saver(program: str) -> Callable[[], None]:
    """Saves by a program of the role gateway."""

    def save() -> None:
        done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise GroundcrewError(f"{program}: {(done.stderr or done.stdout).strip()}")

    return save


def installed(program: str) -> bool:
    """Whether the role gateway has been here: before that there is nobody to tell."""
    return Path(program).exists()
