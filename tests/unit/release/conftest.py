from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from fakes import DIGEST, FakeEngine, FakeHost
from groundcrew.release import Outcome, Releaser
from groundcrew.service_map import parse_services


class World:
    """One host with a fake engine; deploy() is one run of the module."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.engine = FakeEngine()
        self.host = FakeHost(self.engine)

    def deploy(self, *services: dict[str, Any], **options: Any) -> list[Outcome]:
        self.engine.revive()
        return self.resume(*services, **options)

    def resume(self, *services: dict[str, Any], **options: Any) -> list[Outcome]:
        check = options.pop("check", False)
        remove = options.pop("remove", [])
        keep = options.pop("keep", False)
        releaser = self.releaser(**{"family": "prediction", **options})
        services_ = parse_services(list(services))
        return releaser.run(services_, remove, check=check, keep=keep).outcomes

    def releaser(self, **options: Any) -> Releaser:
        return Releaser(
            self.engine,
            self.host,
            state_directory=str(self.state),
            bind_address="10.0.0.1",
            **options,
        )

    def rollback(self, name: str, check: bool = False) -> Outcome:
        self.engine.revive()
        return self.releaser().rollback(name, check=check).outcomes[0]

    def status(self) -> dict[str, str]:
        return {name: box.status for name, box in sorted(self.engine.boxes.items())}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def a_service() -> Callable[..., dict[str, Any]]:
    def make(behaviour: str = "good", **keys: Any) -> dict[str, Any]:
        env = {"BEHAVIOUR": behaviour, **keys.pop("env", {})}
        return {
            "name": "digits-1",
            "image": DIGEST,
            "port": 8080,
            "host_port": 18080,
            "ready": {"path": "/healthz"},
            "user": f"{os.getuid()}:{os.getgid()}",
            "env": env,
            **keys,
        }

    return make
