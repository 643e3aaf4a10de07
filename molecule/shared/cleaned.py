#!/usr/bin/env python3
"""Whether cleaning removed an environment whole, and nothing of another one.

Usage: cleaned.py before|after ENVIRONMENT BUILD_DIRECTORY [KEPT_VOLUME...]
Before, a neighbour is made, whose names begin with those of the environment, and what there is is noted beside the build directory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import docker
import psutil

LABEL = "groundcrew.environment"


def things(engine: docker.DockerClient, environment: str) -> dict[str, str]:
    """Id to kind and name of every container, network and volume of an environment."""
    mine = {"label": f"{LABEL}={environment}"}
    found = {
        network.id: f"network {network.name}" for network in engine.networks.list(filters=mine)
    }
    for container in engine.containers.list(all=True, filters=mine):
        found[container.id] = f"container {container.name}"
        # The volumes of the hosts' own engines have no name and no label.
        for mount in container.attrs["Mounts"]:
            if mount["Type"] == "volume":
                found[mount["Name"]] = f"volume {mount['Name']} of {container.name}"
    for volume in engine.volumes.list(filters={"name": f"groundcrew-{environment}-registry"}):
        found[volume.name] = f"volume {volume.name}"
    return found


def everything(engine: docker.DockerClient) -> set[str]:
    return {
        *(container.id for container in engine.containers.list(all=True)),
        *(network.id for network in engine.networks.list()),
        *(volume.name for volume in engine.volumes.list()),
    }


def environments(engine: docker.DockerClient) -> set[str]:
    containers = engine.containers.list(all=True, filters={"label": LABEL})
    return {container.labels[LABEL] for container in containers}


def make_neighbour(engine: docker.DockerClient, name: str, image: str) -> None:
    labels = {LABEL: name, "groundcrew.kind": "host", "groundcrew.host": f"{name}-1"}
    network = engine.networks.create(f"groundcrew-{name}", labels=labels)
    volumes = [f"groundcrew-{name}-registry:/var/lib/registry"]
    engine.containers.create(
        image, "true", name=f"{name}-1", labels=labels, network=network.name, volumes=volumes
    )


def remove_neighbour(engine: docker.DockerClient, name: str) -> None:
    for container in engine.containers.list(all=True, filters={"label": f"{LABEL}={name}"}):
        container.remove(force=True, v=True)
    for network in engine.networks.list(filters={"label": f"{LABEL}={name}"}):
        network.remove()
    for volume in engine.volumes.list(filters={"name": f"groundcrew-{name}-registry"}):
        volume.remove()


def before(engine: docker.DockerClient, environment: str) -> dict[str, dict[str, str]]:
    hosts = engine.containers.list(filters={"label": f"{LABEL}={environment}"})
    if not hosts:
        return {}
    remove_neighbour(engine, f"{environment}-neighbour")
    make_neighbour(engine, f"{environment}-neighbour", hosts[0].image.id)
    return {name: things(engine, name) for name in environments(engine)}


def after(
    engine: docker.DockerClient,
    environment: str,
    build: Path,
    kept: set[str],
    noted: dict[str, dict[str, str]],
) -> list[str]:
    """What is wrong, one line each."""
    there = everything(engine)
    ours = {**noted.pop(environment), **things(engine, environment)}
    others = {key: name for found in noted.values() for key, name in found.items()}
    stand_ins = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(build / "cloud") in (process.info["cmdline"] or [])
    ]
    return [
        *(f"{name} is left" for key, name in ours.items() if key in there and key not in kept),
        *(f"{name} is gone, which was to stay" for key, name in ours.items() if key in kept - there),
        *(f"{name} is gone, and belongs to another" for key, name in others.items() if key not in there),
        *(f"the AWS API stand-in still runs, process {pid}" for pid in stand_ins),
        *([f"{build} is left"] if build.exists() else []),
    ]  # fmt: skip


def main() -> None:
    when, environment, build, *kept = sys.argv[1:]
    note = Path(f"{build}.cleaned.json")
    try:
        engine = docker.from_env(timeout=120)
    except docker.errors.DockerException:
        return  # a bare machine, or one whose engine ended and left its socket: nothing runs
    if when == "before":
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(before(engine, environment)))
        return
    noted = json.loads(note.read_text()) if note.exists() else {}
    note.unlink(missing_ok=True)
    if not noted:
        return
    problems = after(engine, environment, Path(build), set(kept), noted)
    remove_neighbour(engine, f"{environment}-neighbour")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
