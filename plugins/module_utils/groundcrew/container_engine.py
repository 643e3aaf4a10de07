"""What the release logic asks of a container engine, and Docker's answer by its command line.

The command line, not the Python SDK: hosts have the former wherever they have the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .errors import GroundcrewError
from .service_map import Service

# `docker pull` of an image of several GB over a slow line is the longest of these.
_PULL_SECONDS = 3600
_COMMAND_SECONDS = 300


class Container(NamedTuple):
    """One container as the engine lists it; service is "" when no release made it."""

    name: str
    state: str
    service: str
    release: str
    family: str
    port: int | None


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
    """

    def containers(self) -> list[Container]: ...

    def has_image(self, image: str) -> bool: ...

    def pull(self, image: str) -> None: ...

    def create(self, name: str, arguments: Sequence[str]) -> None: ...

    def start(self, name: str) -> None: ...

    def unpause(self, name: str) -> None: ...

    def stop(self, name: str, seconds: int) -> None: ...

    def rename(self, name: str, new_name: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def state(self, name: str) -> ContainerState: ...

    def logs(self, name: str, lines: int) -> str: ...


class DockerEngine:
    """Engine by the docker command line."""

    def __init__(self, command: str = "docker") -> None:
        self._command = command

    def containers(self) -> list[Container]:
        labels = ("service", "release", "family", "port")
        columns = [
            "{{.Names}}",
            "{{.State}}",
            *(f'{{{{.Label "groundcrew.{label}"}}}}' for label in labels),
        ]
        found = []
        for line in self._run(
            "ps", "--all", "--no-trunc", "--format", "\t".join(columns)
        ).splitlines():
            name, state, service, release, family, port = line.split("\t")
            found.append(
                Container(name, state, service, release, family, int(port) if port else None)
            )
        return found

    def has_image(self, image: str) -> bool:
        result = self._call("image", "inspect", "--format", "{{.Id}}", image)
        return result.returncode == 0

    def pull(self, image: str) -> None:
        self._run("pull", "--quiet", image, seconds=_PULL_SECONDS)

    def create(self, name: str, arguments: Sequence[str]) -> None:
        self._run("create", "--name", name, *arguments)

    def start(self, name: str) -> None:
        self._run("start", name)

    def unpause(self, name: str) -> None:
        self._run("unpause", name)

    def stop(self, name: str, seconds: int) -> None:
        self._run("stop", "--time", str(seconds), name, seconds=seconds + _COMMAND_SECONDS)

    def rename(self, name: str, new_name: str) -> None:
        self._run("rename", name, new_name)

    def remove(self, name: str) -> None:
        self._run("rm", "--force", "--volumes", name)

    def state(self, name: str) -> ContainerState:
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

    def logs(self, name: str, lines: int) -> str:
        result = self._call("logs", "--tail", str(lines), name)
        # The container's standard output and standard error come back as ours; order between the
        # two is lost.
        return (result.stdout + result.stderr).strip("\n")

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
    service: Service, *, release: str, family: str, bind_address: str, files: dict[str, str]
) -> list[str]:
    """The arguments of `docker create` for a release, without its name.

    files: path in the container -> file on the host, for config and secrets.
    """
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
        f"--network={service.network}",
        f"--stop-timeout={service.stop_seconds}",
        f"--label=groundcrew.service={service.name}",
        f"--label=groundcrew.release={release}",
        f"--label=groundcrew.family={family}",
    ]
    if service.listening_port is not None:
        arguments.append(f"--label=groundcrew.port={service.listening_port}")
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
    if service.host_port is not None:
        address = f"[{bind_address}]" if ":" in bind_address else bind_address
        arguments.append(f"--publish={address}:{service.host_port}:{service.port}/tcp")
    arguments += [f"--tmpfs={entry}" for entry in service.tmpfs]
    for mount in service.mounts:
        arguments.append(_bind(mount.source, mount.target, mount.read_only))
    arguments += [_bind(source, target, True) for target, source in sorted(files.items())]
    arguments += [f"--env-file={path}" for path in service.env_file]
    arguments += [f"--env={name}={value}" for name, value in sorted(service.env.items())]
    return [*arguments, service.image, *service.command]


def _bind(source: str, target: str, read_only: bool) -> str:
    # --mount, not --volume: it refuses a source that does not exist instead of making an empty dire
    return f"--mount=type=bind,source={source},target={target}" + (",readonly" if read_only else "")
