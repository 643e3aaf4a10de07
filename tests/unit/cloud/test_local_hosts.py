from __future__ import annotations

import io
import socket
import tarfile
import threading
from typing import Any, ClassVar

import pytest
from docker.errors import APIError, NotFound
from groundcrew.errors import GroundcrewError
from groundcrew.local_hosts import (
    HOST_CONFIG,
    Instance,
    LocalHosts,
    plan,
    read_instances,
    seed_archive,
    wait_for_sshd,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "c", "d"])
STATES = st.sampled_from(
    ["pending", "running", "stopping", "stopped", "shutting-down", "terminated"]
)
ALIVE = ("pending", "running", "stopping", "stopped")
INSTANCES = st.lists(
    st.builds(Instance, st.sampled_from(["i-1", "i-2"]), NAMES, st.just("10.0.0.1"), STATES),
    # The cloud refuses two living instances at one address; role ec2_fleet refuses two of one name.
    unique_by=lambda i: (i.name, i.state in ALIVE or i.id),
)
CONTAINERS = st.dictionaries(NAMES, st.tuples(st.sampled_from(["i-1", "i-2"]), st.booleans()))


def after(todo: Any, instances: list[Instance], containers: dict[str, tuple[str, bool]]) -> Any:
    """The containers when the plan has been carried out."""
    result = {name: value for name, value in containers.items() if name not in todo.remove}
    result |= {name: (result[name][0], True) for name in todo.start}
    result |= {name: (result[name][0], False) for name in todo.stop}
    ids = {i.name: i.id for i in instances if i.state in ALIVE}
    return result | {name: (ids[name], True) for name in todo.create}


@given(st.lists(NAMES, unique=True), INSTANCES, CONTAINERS)
def test_containers_follow_the_cloud(
    declared: list[str], instances: list[Instance], containers: dict[str, tuple[str, bool]]
) -> None:
    if containers and not instances:
        with pytest.raises(GroundcrewError, match="Nothing was deleted"):
            plan(declared, instances, containers)
        return
    todo = plan(declared, instances, containers)
    have = after(todo, instances, containers)
    alive = {i.name: i for i in instances if i.state in ALIVE}
    for name, (instance_id, running) in have.items():
        assert alive[name].id == instance_id
        assert running == (alive[name].state in ("pending", "running"))
    for name, instance in alive.items():
        if name in declared and instance.state in ("pending", "running"):
            assert name in have
    assert not set(todo.create) - set(declared)
    assert not plan(declared, instances, have).changed


def test_an_empty_cloud_beside_hosts_stops_the_run() -> None:
    with pytest.raises(GroundcrewError, match=r"knows no instance, but the hosts a, b are there"):
        plan(["a", "b"], [], {"b": ("i-1", True), "a": ("i-2", False)})


def test_first_run() -> None:
    instances = [Instance("i-1", "a", "10.0.0.1", "pending")]
    assert plan(["a"], instances, {}).create == ["a"]
    assert not plan([], [], {}).changed


def test_a_replaced_instance_gets_a_fresh_container() -> None:
    instances = [
        Instance("i-1", "a", "10.0.0.1", "terminated"),
        Instance("i-2", "a", "10.0.0.1", "running"),
    ]
    todo = plan(["a"], instances, {"a": ("i-1", True)})
    assert (todo.remove, todo.create, todo.start, todo.stop) == (["a"], ["a"], [], [])


def test_no_host_is_privileged() -> None:
    assert "Privileged" not in HOST_CONFIG


def test_seed_is_readable_by_root_alone_and_counts_bytes() -> None:
    archive = seed_archive(Instance("i-1", "a", "10.0.0.1", "running"), "#cloud-config\n# é\n")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {m.name: m for m in tar.getmembers()}
        user_data = tar.extractfile("var/lib/cloud/seed/nocloud/user-data")
        meta_data = tar.extractfile("var/lib/cloud/seed/nocloud/meta-data")
        assert user_data is not None and user_data.read().decode() == "#cloud-config\n# é\n"
        assert meta_data is not None and b"instance-id: i-1\n" in meta_data.read()
    assert {m.mode for m in members.values()} == {0o600}


class Pages:
    """An EC2 client with two pages of instances."""

    def get_paginator(self, _name: str) -> Pages:
        return self

    def paginate(self, **arguments: Any) -> list[Any]:
        assert arguments["Filters"] == [{"Name": "tag:Environment", "Values": ["test"]}]
        tags = [{"Key": "Name", "Value": "a"}]
        page = [{"InstanceId": "i-1", "Tags": tags, "State": {"Name": "running"}}]
        return [{"Reservations": [{"Instances": page}]}, {"Reservations": []}]


def test_instances_of_every_page_are_read() -> None:
    assert read_instances(Pages(), "test") == [Instance("i-1", "a", "", "running")]


class FailingContainer:
    removed = False

    def put_archive(self, _path: str, _data: bytes) -> None: ...

    def start(self) -> None:
        raise RuntimeError("port is taken")

    def remove(self, **_arguments: Any) -> None:
        self.removed = True


class Engine:
    """A Docker Engine whose one container does not start."""

    def __init__(self) -> None:
        self.container = FailingContainer()
        self.config: dict[str, Any] = {}
        self.api = self.containers = self

    def create_container_from_config(self, config: dict[str, Any], name: str) -> dict[str, str]:
        self.config = config
        return {"Id": name}

    def get(self, _id: str) -> FailingContainer:
        return self.container


def test_a_container_that_does_not_start_is_removed_again() -> None:
    engine = Engine()
    host = {"name": "a", "image": "x", "memory": "1g", "publish": []}
    with pytest.raises(RuntimeError, match="port is taken"):
        LocalHosts(engine, "test", "net").create(
            host, Instance("i-1", "a", "10.0.0.1", "running"), ""
        )
    assert engine.container.removed
    assert engine.config["HostConfig"]["Memory"] == 2**30


def test_sshd_is_waited_for_until_it_greets() -> None:
    greetings = [b"", b"SSH-2.0-x\r\n"]  # a port that is open alone is no sshd

    def serve(server: socket.socket) -> None:
        while greetings:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greetings.pop(0))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        wait_for_sshd("127.0.0.1", server.getsockname()[1], seconds=10)
    assert not greetings


def test_sshd_that_never_greets_is_named() -> None:
    with pytest.raises(GroundcrewError, match="waited 0.1 s for sshd on 127.0.0.1, port 9"):
        wait_for_sshd("127.0.0.1", 9, seconds=0.1)


class Volume:
    def __init__(self, engine: BakingEngine, name: str) -> None:
        self.engine, self.name = engine, name

    def remove(self) -> None:
        del self.engine.kept[self.name]


class BakedImage:
    def __init__(self, tag: str, used: bool) -> None:
        self.id = self.tag = tag
        self.tags, self.used = [f"groundcrew/machine:{tag}"], used


class BakingEngine:
    """A Docker Engine with images, volumes and one host; it notes what is copied into which volume."""

    def __init__(self, *baked: BakedImage) -> None:
        self.baked = {image.tag: image for image in baked}
        self.kept = {f"groundcrew-machine-{tag}": "content" for tag in self.baked}
        self.config: dict[str, Any] = {}
        engine = self

        class Images:
            def list(self, name: str = "", filters: Any = None) -> list[BakedImage]:
                tag = name.rpartition(":")[2]
                return [i for i in engine.baked.values() if filters or i.tag == tag]

            def remove(self, image: str, force: bool) -> None:
                if engine.baked[image].used:
                    answer = type("Answer", (), {"status_code": 409})()
                    raise APIError("is used", response=answer)
                del engine.baked[image]

        class Volumes:
            def create(self, name: str, labels: Any) -> Volume:
                assert labels["groundcrew.environment"] == "test"
                engine.kept.setdefault(name, "")
                return Volume(engine, name)

            def get(self, name: str) -> Volume:
                if name not in engine.kept:
                    raise NotFound(f"get {name}: no such volume")
                return Volume(engine, name)

            def list(self, filters: Any) -> list[Volume]:
                assert filters == {"label": "groundcrew.environment=test"}
                return [Volume(engine, name) for name in list(engine.kept)]

        class Containers:
            attrs: ClassVar = {"Mounts": [{"Name": "anonymous", "Destination": "/var/lib/docker"}]}

            def run(self, _image: str, _words: Any, volumes: Any, **_more: Any) -> None:
                source, target = volumes
                engine.kept[target] = f"{engine.kept.get(source, source)}, copied"

            def create_container_from_config(self, config: Any, name: str) -> dict[str, str]:
                engine.config = config
                return {"Id": name}

            def get(self, _id: str) -> Any:
                return self

            def put_archive(self, *_arguments: Any) -> None: ...

            def start(self) -> None: ...

            def commit(self, repository: str, tag: str, changes: str) -> None:
                assert repository == "groundcrew/machine" and "groundcrew.baked=web" in changes
                engine.baked[tag] = BakedImage(tag, used=False)

            def remove(self, **_arguments: Any) -> None: ...

        self.images, self.volumes = Images(), Volumes()
        self.api = self.containers = Containers()


HOST = {"name": "a", "image": "plain"}


def test_an_instance_of_a_baked_image_starts_with_what_was_baked() -> None:
    engine = BakingEngine(BakedImage("ami-1", used=False))
    local = LocalHosts(engine, "test", "net")
    local.create(HOST, Instance("i-1", "a", "10.0.0.1", "running", "ami-1"), "")
    assert engine.config["Image"] == "groundcrew/machine:ami-1" and "Volumes" not in engine.config
    assert "groundcrew-engine-i-1:/var/lib/docker" in engine.config["HostConfig"]["Binds"]
    assert engine.kept["groundcrew-engine-i-1"] == "content, copied"
    engine.containers.attrs = {
        "Mounts": [{"Name": "groundcrew-engine-i-1", "Destination": "/var/lib/docker"}]
    }
    local.remove(engine.containers)
    assert "groundcrew-engine-i-1" not in engine.kept
    local.create(HOST, Instance("i-2", "a", "10.0.0.1", "running", "ami-2"), "")
    assert engine.config["Image"] == "plain" and engine.config["Volumes"] == {"/var/lib/docker": {}}


def test_baking_replaces_older_images_but_those_that_hosts_run() -> None:
    engine = BakingEngine(BakedImage("ami-1", used=True), BakedImage("ami-2", used=False))
    LocalHosts(engine, "test", "net").bake(engine.containers, "ami-3", "web")
    assert set(engine.baked) == {"ami-1", "ami-3"}
    assert set(engine.kept) == {"groundcrew-machine-ami-1", "groundcrew-machine-ami-3"}
    assert engine.kept["groundcrew-machine-ami-3"] == "anonymous, copied"


def test_an_image_without_its_volume_hinders_nobody() -> None:
    engine = BakingEngine(BakedImage("ami-1", used=False))
    engine.kept.clear()
    LocalHosts(engine, "test", "net").bake(engine.containers, "ami-2", "web")
    assert set(engine.baked) == {"ami-2"} and set(engine.kept) == {"groundcrew-machine-ami-2"}


def test_machine_images_go_with_their_environment() -> None:
    engine = BakingEngine(BakedImage("ami-1", used=False))
    engine.kept["groundcrew-test-a-data"] = "rows"
    LocalHosts(engine, "test", "net").remove_kept()
    assert not engine.baked and not engine.kept
