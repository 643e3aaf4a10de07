"""A container engine and a host in memory, with releases that misbehave and a process that can be
killed anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from groundcrew.container_engine import Container, ContainerState
from groundcrew.errors import GroundcrewError
from groundcrew.service_map import Service

DIGEST = "registry.example/stub@sha256:" + "a" * 64


class Killed(BaseException):
    """kill -9: nothing that the process would have done after it happens."""


def _port(box: Box) -> int | None:
    return int(port) if (port := box.labels.get("groundcrew.ports")) else None


@dataclass
class Box:
    """One container of the fake."""

    status: str
    labels: dict[str, str]
    behaviour: str
    restarts: int = 0
    seconds: float = 0.0  # that it has been waited for while it ran


class FakeEngine:
    """Takes BEHAVIOUR from a container's environment: good, exits, restarts, silent, wrong or dies (after
    five good seconds)."""

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.calls: list[str] = []
        self.images = {DIGEST}
        self.kill_at: int | None = None
        self.dead = False
        self.free = 100 * 2**30

    def _call(self, what: str) -> None:
        if self.dead:
            raise Killed
        if self.kill_at is not None and len(self.calls) >= self.kill_at:
            self.dead = True
            raise Killed
        self.calls.append(what)

    def revive(self) -> None:
        self.dead, self.kill_at, self.calls = False, None, []

    def _box(self, name: str) -> Box:
        if name not in self.boxes:
            raise GroundcrewError(f"No such container: {name}")
        return self.boxes[name]

    def containers(self) -> list[Container]:
        self._call("containers")
        return [
            Container(
                name,
                box.status,
                box.labels.get("groundcrew.service", ""),
                box.labels.get("groundcrew.release", ""),
                box.labels.get("groundcrew.family", ""),
                _port(box),
                () if _port(box) is None else (_port(box),),
            )
            for name, box in self.boxes.items()
        ]

    def has_image(self, image: str) -> bool:
        self._call("has_image")
        return image in self.images

    def pull(self, image: str) -> None:
        self._call(f"pull {image}")
        if image == DIGEST:
            self.images.add(image)
            return
        raise GroundcrewError("docker pull failed: manifest unknown")

    def remove_image(self, image: str) -> None:
        self._call(f"remove_image {image}")
        self.images.discard(image)

    def free_bytes(self) -> int:
        return self.free

    def prune(self) -> None:
        self._call("prune")

    def create(
        self, name: str, arguments: Sequence[str], backend: Sequence[str] | None = None
    ) -> None:
        self._call(f"create {name}")
        if name in self.boxes:
            raise GroundcrewError(f"the name {name} is taken")
        labels = dict(a[8:].split("=", 1) for a in arguments if a.startswith("--label="))
        env = dict(a[6:].split("=", 1) for a in arguments if a.startswith("--env="))
        for argument in arguments:
            if argument.startswith("--mount="):
                source = dict(part.partition("=")[::2] for part in argument[8:].split(","))[
                    "source"
                ]
                assert os.path.exists(source), source
        self.boxes[name] = Box("created", labels, env.get("BEHAVIOUR", "good"))

    def start(self, name: str) -> None:
        self._call(f"start {name}")
        box = self._box(name)
        port = box.labels.get("groundcrew.ports")
        for other_name, other in self.boxes.items():
            holds = other is not box and other.status == "running"
            if holds and port is not None and other.labels.get("groundcrew.ports") == port:
                raise GroundcrewError(f"port {port} is already allocated by {other_name}")
        box.status = "exited" if box.behaviour == "exits" else "running"
        box.restarts = 1 if box.behaviour == "restarts" else 0

    def unpause(self, name: str) -> None:
        self._call(f"unpause {name}")
        self._box(name).status = "running"

    def stop(self, name: str, seconds: int) -> None:
        self._call(f"stop {name}")
        self._box(name).status = "exited"

    def rename(self, name: str, new_name: str) -> None:
        self._call(f"rename {name} {new_name}")
        if new_name in self.boxes:
            raise GroundcrewError(f"the name {new_name} is taken")
        self.boxes[new_name] = self.boxes.pop(name)

    def remove(self, name: str) -> None:
        self._call(f"remove {name}")
        self._box(name)
        del self.boxes[name]

    def state(self, name: str) -> ContainerState:
        self._call(f"state {name}")
        box = self._box(name)
        return ContainerState(
            box.status, 3 if box.status == "exited" else 0, box.restarts, False, ""
        )

    def logs(self, name: str, lines: int) -> str:
        self._call(f"logs {name}")
        return f"last words of {name}"


class FakeHost:
    """Asks whichever container runs on the port; its clock moves when it is waited on."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.now = 0.0
        self.foreign_ports: set[int] = set()

    def check_files(self, service: Service) -> None:
        for mount in service.mounts:
            if mount.source.startswith("/missing"):
                raise GroundcrewError(f"service {service.name}: {mount.source} does not exist")

    def probe(self, service: Service, address: str, port: int, timeout: float) -> tuple[bool, str]:
        if self._engine.dead:
            raise Killed
        self.now += 0.01
        for box in self._engine.boxes.values():
            if box.status == "running" and box.labels.get("groundcrew.ports") == str(port):
                if box.behaviour == "silent":
                    self.now += timeout
                    return False, "timed out"
                return box.behaviour in ("good", "restarts", "dies"), f"a {box.behaviour} answer"
        return False, "refused"

    def taken(self, address: str, port: int) -> str | None:
        held = any(
            box.status == "running" and box.labels.get("groundcrew.ports") == str(port)
            for box in self._engine.boxes.values()
        )
        return "Address already in use" if held or port in self.foreign_ports else None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if self._engine.dead:
            raise Killed
        self.now += max(seconds, 0.01)
        for box in self._engine.boxes.values():
            if box.status == "running":
                box.seconds += seconds
                if box.behaviour == "dies" and box.seconds > 5:
                    box.status = "exited"
