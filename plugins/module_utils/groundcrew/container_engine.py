"""What the release logic asks of a container engine, and Docker's answer by its command line.

The command line, not the Python SDK: hosts have the former wherever they have the engine.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from .errors import GroundcrewError
from .service_map import NEXT, Service

# Services with a backend share a network, where containers find each other by name; nothing of it is published.
NETWORK = "groundcrew"

# `docker pull` of an image of several GB over a slow line is the longest of these.
_PULL_SECONDS = 3600
_COMMAND_SECONDS = 300
# A container's name is a host name on the network, where '_' and '.' are none.
_HOST_NAME = str.maketrans("_.", "--")


class Container(NamedTuple):
    """One container as the engine lists it; service is "" when no release made it.

    One with a backend is listed once, with the state of whichever does not run; dead when a part is
    gone. port is the main one of ports, all that it takes on the host.
    """

    name: str
    state: str
    service: str
    release: str
    family: str
    port: int | None
    ports: tuple[int, ...] = ()


class ContainerState(NamedTuple):
    """status as in `docker inspect` (running, exited, restarting, ...), restarts by the engine
    since the last start.
    """

    status: str
    exit_code: int
    restarts: int
    out_of_memory: bool
    error: str


class Engine(Protocol):
    """A container engine. Every method raises GroundcrewError with the engine's own words when it
    fails.

    A container that was created with a backend is started, stopped, removed and judged with it.
    """

    def containers(self) -> list[Container]: ...

    def has_image(self, image: str) -> bool: ...

    def pull(self, image: str) -> None: ...

    def remove_image(self, image: str) -> None:
        """Remove an image if it is there and no container was made from it."""

    def free_bytes(self) -> int:
        """What is free where the engine keeps its images."""

    def create(
        self, name: str, arguments: Sequence[str], backend: Sequence[str] | None = None
    ) -> None: ...

    def prune(self) -> None:
        """Remove backends whose container is gone."""

    def start(self, name: str) -> None: ...

    def unpause(self, name: str) -> None: ...

    def stop(self, name: str, seconds: int) -> None: ...

    def rename(self, name: str, new_name: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def state(self, name: str) -> ContainerState: ...

    def logs(self, name: str, lines: int) -> str: ...


class DockerEngine:
    """Engine by the docker command line.

    A backend's container has a name of its own for life, <service>-<hex>, which is also its name on
    the network; its front's label groundcrew.backend says it.
    """

    def __init__(self, command: str = "docker") -> None:
        self._command = command
        self._backends: dict[str, str] = {}
        self._orphans: set[str] = set()

    def containers(self) -> list[Container]:
        # port: what releases had before a service had two of them.
        labels = ("service", "release", "family", "ports", "backend", "part", "port")
        columns = [
            "{{.Names}}",
            "{{.State}}",
            *(f'{{{{.Label "groundcrew.{label}"}}}}' for label in labels),
        ]
        found: list[tuple[Container, str]] = []
        backends: dict[str, str] = {}
        for line in self._run(
            "ps", "--all", "--no-trunc", "--format", "\t".join(columns)
        ).splitlines():
            name, state, service, release, family, ports, backend, part, port = line.split("\t")
            if part:
                backends[name] = state
                continue
            taken = tuple(int(port) for port in (ports or port).split(",") if port)
            container = Container(
                name, state, service, release, family, next(iter(taken), None), taken
            )
            found.append((container, backend))
        # One that somebody removed can be neither stopped nor removed again.
        self._backends = {
            container.name: backend for container, backend in found if backend in backends
        }
        self._orphans = {*backends} - {*self._backends.values()}
        return [
            container._replace(state=_worse(container.state, backends.get(backend, "dead")))
            if backend
            else container
            for container, backend in found
        ]

    def has_image(self, image: str) -> bool:
        result = self._call("image", "inspect", "--format", "{{.Id}}", image)
        return result.returncode == 0

    def pull(self, image: str) -> None:
        self._run("pull", "--quiet", image, seconds=_PULL_SECONDS)

    def remove_image(self, image: str) -> None:
        # Refused while a container uses it, which is as it should be.
        self._call("image", "rm", image)

    def free_bytes(self) -> int:
        root = self._run("info", "--format", "{{.DockerRootDir}}")
        return shutil.disk_usage(root).free

    def create(
        self, name: str, arguments: Sequence[str], backend: Sequence[str] | None = None
    ) -> None:
        if backend is not None:
            self._make_network()
            address = f"{name.removesuffix(NEXT).translate(_HOST_NAME)}-{secrets.token_hex(3)}"
            self._orphans.add(address)
            self._run("create", "--name", address, *backend)
            arguments = [
                f"--label=groundcrew.backend={address}",
                f"--env=BACKEND_HOST={address}",
                *arguments,
            ]
        self._run("create", "--name", name, *arguments)
        if backend is not None:
            self._backends[name] = address
            self._orphans.discard(address)

    def prune(self) -> None:
        if self._orphans:
            self._run("rm", "--force", "--volumes", *sorted(self._orphans))
            self._orphans.clear()

    def start(self, name: str) -> None:
        self._run("start", *reversed(self._parts(name)))

    def unpause(self, name: str) -> None:
        for part in self._parts(name):
            if self._state(part).status == "paused":
                self._run("unpause", part)

    def stop(self, name: str, seconds: int) -> None:
        # The front first: it finishes what it has been asked, for which it needs the other.
        for part in self._parts(name):
            self._run("stop", "--time", str(seconds), part, seconds=seconds + _COMMAND_SECONDS)

    def rename(self, name: str, new_name: str) -> None:
        self._run("rename", name, new_name)
        if name in self._backends:
            self._backends[new_name] = self._backends.pop(name)

    def remove(self, name: str) -> None:
        self._run("rm", "--force", "--volumes", *self._parts(name))
        self._backends.pop(name, None)

    def state(self, name: str) -> ContainerState:
        own = self._state(name)
        if name not in self._backends:
            return own
        backend = self._state(self._backends[name])
        good = backend.status == "running" and not backend.restarts
        return own if good else backend

    def logs(self, name: str, lines: int) -> str:
        texts = []
        # The last lines are what is shown, and a front's words tell less than its backend's.
        for part in self._parts(name):
            result = self._call("logs", "--tail", str(lines), part)
            # The container's standard output and standard error come back as ours; order between
            # the two is lost.
            texts.append((result.stdout + result.stderr).strip("\n"))
        return "\n".join(texts)

    def _parts(self, name: str) -> list[str]:
        """The container and, after it, its backend."""
        return [name, self._backends[name]] if name in self._backends else [name]

    def _make_network(self) -> None:
        if self._call("network", "inspect", NETWORK).returncode != 0:
            self._run("network", "create", NETWORK)

    def _state(self, name: str) -> ContainerState:
        state, restarts = self._run(
            "inspect", "--type", "container", "--format", "{{json .State}}\t{{.RestartCount}}", name
        ).split("\t")
        details = json.loads(state)
        return ContainerState(
            status=str(details.get("Status", "")),
            exit_code=int(details.get("ExitCode", 0)),
            restarts=int(restarts),
            out_of_memory=bool(details.get("OOMKilled", False)),
            error=str(details.get("Error", "")),
        )

    def _run(self, *arguments: str, seconds: int = _COMMAND_SECONDS) -> str:
        result = self._call(*arguments, seconds=seconds)
        if result.returncode != 0:
            said = (result.stderr or result.stdout).strip()
            raise GroundcrewError(
                f"docker {arguments[0]} failed: {said or f'exit status {result.returncode}'}"
            )
        return result.stdout.rstrip("\n")

    def _call(
        self, *arguments: str, seconds: int = _COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                timeout=seconds,
                check=False,
            )
        except FileNotFoundError as error:
            raise GroundcrewError(
                f"no container engine: {self._command} was not found. Run role container_runtime."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise GroundcrewError(
                f"docker {arguments[0]} did not end within {seconds} s."
            ) from error


def create_arguments(
    service: Service,
    *,
    release: str,
    family: str,
    bind_address: str,
    files: dict[str, str],
    slot: int = 0,
) -> list[str]:
    """The arguments of `docker create` for a release's published container, without its name.

    files: path in the container -> file on the host, for config and secrets. slot: 0, or 1 for the
    port above each that is declared.
    """
    labels = {"service": service.name, "release": release, "family": family}
    if service.listening_port is not None:
        labels["ports"] = ",".join(map(str, service.ports_of(slot)))
    network = service.network
    own_env: dict[str, str] = {}
    if service.beside and network == "host":
        own_env["PORT"] = str(service.ports_of(slot)[0])
    if service.backend is not None:
        network = NETWORK
        own_env["BACKEND_PORT"] = str(service.backend.port)
    ports = {} if service.host_port is None else {service.host_port: service.port}
    published = _published({**ports, **service.extra_ports}, slot)
    return _arguments(
        service, labels, service.stop_seconds, network, bind_address, files, own_env, published
    )


def backend_arguments(
    service: Service,
    *,
    release: str,
    family: str,
    bind_address: str,
    files: dict[str, str],
    slot: int = 0,
) -> list[str] | None:
    """The same for its backend, None when it has none."""
    if service.backend is None:
        return None
    labels = {"service": service.name, "release": release, "family": family, "part": "backend"}
    published = _published(service.backend.extra_ports, slot)
    return _arguments(
        service.backend, labels, service.stop_seconds, NETWORK, bind_address, files, {}, published
    )


def _published(ports: Mapping[int, int | None], slot: int) -> dict[int, int | None]:
    return {outer + slot: inner for outer, inner in ports.items()}


def _worse(front: str, backend: str) -> str:
    return backend if front == "running" else front


def _arguments(
    service: Service,
    labels: dict[str, str],
    stop_seconds: int,
    network: str,
    bind_address: str,
    files: dict[str, str],
    own_env: dict[str, str],
    published: Mapping[int, int | None],
) -> list[str]:
    arguments = [
        "--init",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--restart=unless-stopped",
        # Named, so that another default of the daemon does not refuse the options or keep logs from
        # us.
        "--log-driver=json-file",
        "--log-opt=max-size=10m",
        "--log-opt=max-file=3",
        f"--user={service.user}",
        f"--network={network}",
        f"--stop-timeout={stop_seconds}",
    ]
    arguments += [f"--label=groundcrew.{name}={value}" for name, value in labels.items()]
    arguments += [f"--label={name}={value}" for name, value in sorted(service.labels.items())]
    if service.read_only:
        arguments.append("--read-only")
    arguments += [f"--cap-add={capability}" for capability in service.cap_add]
    if service.cpus is not None:
        arguments.append(f"--cpus={service.cpus}")
    if service.memory is not None:
        # The same limit for memory and swap: a model server that swaps is slower than one that is
        # restarted.
        arguments += [f"--memory={service.memory}", f"--memory-swap={service.memory}"]
    if service.gpus is not None:
        arguments.append(f"--gpus={service.gpus}")
    address = f"[{bind_address}]" if ":" in bind_address else bind_address
    for outer, inner in published.items():
        arguments.append(f"--publish={address}:{outer}:{inner}/tcp")
    arguments += [f"--tmpfs={entry}" for entry in service.tmpfs]
    for mount in service.mounts:
        arguments.append(_bind(mount.source, mount.target, mount.read_only))
    arguments += [_bind(source, target, True) for target, source in sorted(files.items())]
    arguments += [f"--env-file={path}" for path in service.env_file]
    arguments += [
        f"--env={name}={value}" for name, value in sorted({**service.env, **own_env}.items())
    ]
    return [*arguments, service.image, *service.command]


def _bind(source: str, target: str, read_only: bool) -> str:
    # --mount, not --volume: it refuses a source that does not exist instead of making an empty dire
    return f"--mount=type=bind,source={source},target={target}" + (",readonly" if read_only else "")
