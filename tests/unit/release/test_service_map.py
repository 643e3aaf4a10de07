"""Service maps: what is refused, with which words, and what a release id depends on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import DIGEST
from groundcrew.container_engine import create_arguments
from groundcrew.errors import GroundcrewError
from groundcrew.service_map import (
    DEFAULTS,
    changed_keys,
    fingerprint,
    parse_service,
    parse_services,
    public_map,
    release_id,
)
from hypothesis import given
from hypothesis import strategies as st

PLAIN: dict[str, Any] = {"name": "digits-1", "image": DIGEST, "port": 8080, "host_port": 18080}


def the_id(address: str = "10.0.0.1", **keys: Any) -> str:
    return release_id(fingerprint(parse_service({**PLAIN, **keys}), address, {}))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image": "registry/x:latest"}, "image is 'registry/x:latest'.*never tags"),
        ({"image": "registry/x@sha256:abc"}, "64 hex digits"),
        ({"name": "Digits"}, "service name 'Digits'"),
        ({"name": "digits-next"}, "not ending in '-next'"),
        ({"imgae": "x"}, "service digits-1: unknown key 'imgae'. Did you mean 'image'?"),
        ({"resources": {"cpu": 1}}, "resources: unknown key 'cpu'. Did you mean 'cpus'?"),
        ({"resources": {"memory": "2 GB"}}, "resources.memory is '2 GB'; expected a size such as"),
        ({"resources": {"cpus": 0}}, "resources.cpus is 0"),
        ({"resources": {"gpus": -1}}, "resources.gpus is -1"),
        ({"host_port": 18081}, "host_port is 18081; expected an even port"),
        ({"port": None}, "port is None"),
        ({"extra_ports": {28081: 8500}}, "extra_ports.28081 is 8500; expected an even port"),
        ({"backend": {"image": DIGEST}}, "backend is None; expected a port"),
        ({"backend": {"image": DIGEST, "port": 1, "host_port": 2}}, "backend: unknown key 'host_p"),
        ({"backend": {"image": "x:1", "port": 1}}, "image is 'x:1'.*That is its backend's"),
        ({"port": 70000}, "port is 70000; expected a port"),
        ({"network": "host"}, "no host_port with network: host"),
        ({"network": "none"}, "network is 'none'"),
        ({"user": "root"}, "user is 'root'; expected a numeric uid"),
        ({"mounts": [{"source": "relative", "target": "/x"}]}, "mounts.source is 'relative'"),
        ({"mounts": [{"source": "/a,readonly=false", "target": "/x"}]}, "commas"),
        ({"mounts": [{"source": "/a", "target": "/tmp"}]}, "two things are mounted at /tmp"),
        ({"mounts": "/a:/b"}, "mounts is '/a:/b'; expected a list"),
        ({"ready": {"golden": "/g.json"}}, "ready.path is None"),
        ({"ready": {"path": "healthz"}}, "ready.path is 'healthz'"),
        (
            {"ready": {"path": "/x", "running_seconds": 90}},
            "ready_timeout_seconds is 60; expected more",
        ),
        ({"host_port": None, "ready": {"path": "/x"}}, "a host_port"),
        ({"env": {"A B": 1}}, "env is 'A B'"),
        ({"env": {"A": [1]}}, "env.A is"),
        ({"labels": {"groundcrew.release": "x"}}, "labels is 'groundcrew.release'"),
        ({"cap_add": ["net admin"]}, "cap_add is 'net admin'"),
        ({"manifest_sha256": "abc"}, "manifest_sha256 is 'abc'"),
        ({"read_only": "yes"}, "read_only is 'yes'"),
        ({"stop_seconds": -1}, "stop_seconds is -1"),
        ({"ready_timeout_seconds": "nan"}, "ready_timeout_seconds is 'nan'; expected a number"),
        ({"config": {"etc/x": "y"}}, "config is 'etc/x'; expected an absolute path"),
    ],
)
def test_refusals_name_the_service_the_key_and_the_value(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(GroundcrewError, match=said):
        parse_service({**PLAIN, **keys})


def test_a_refused_secret_is_not_quoted() -> None:
    with pytest.raises(GroundcrewError, match="secrets./run/key is a int") as failure:
        parse_service({**PLAIN, "secrets": {"/run/key": 271828}})
    assert "271828" not in str(failure.value)
    assert "hush" not in repr(parse_service({**PLAIN, "secrets": {"/run/key": "hush"}}))


def test_names_and_ports_are_unique() -> None:
    with pytest.raises(GroundcrewError, match="digits-1: declared twice"):
        parse_services([PLAIN, PLAIN])
    with pytest.raises(GroundcrewError, match="b2: port 18080 on the host is already digits-1's"):
        parse_services([PLAIN, {**PLAIN, "name": "b2"}])
    with pytest.raises(GroundcrewError, match="b2: port 18080"):
        parse_services([PLAIN, {"name": "b2", "image": DIGEST, "network": "host", "port": 18080}])


def test_what_is_left_out_and_what_is_written_as_default_are_one_release() -> None:
    assert the_id() == the_id(**{k: v for k, v in DEFAULTS.items() if k not in PLAIN})
    assert the_id(user="10001") == the_id(user="10001:10001")
    assert the_id(ready_timeout_seconds=60.0) == the_id()
    assert the_id(env={"A": 1}) == the_id(env={"A": "1"})


@pytest.mark.parametrize(
    "keys",
    [
        {"image": DIGEST[:-1] + "b"},
        {"env": {"A": "1"}},
        {"manifest_sha256": "a" * 64},
        {"config": {"/etc/x": "1"}},
        {"secrets": {"/etc/x": "1"}},
        {"host_port": 18082},
        {"command": ["a"]},
        {"resources": {"memory": "1g"}},
        {"mounts": [{"source": "/a", "target": "/b", "read_only": False}]},
    ],
)
def test_every_other_difference_is_another_release(keys: dict[str, Any]) -> None:
    assert the_id(**keys) != the_id()
    before = fingerprint(parse_service(PLAIN), "10.0.0.1", {})
    after = fingerprint(parse_service({**PLAIN, **keys}), "10.0.0.1", {})
    assert {key.partition(".")[0] for key in changed_keys(before, after)} == set(keys)


def test_the_address_and_the_content_of_an_env_file_are_part_of_the_release() -> None:
    assert the_id("10.0.0.2") != the_id("10.0.0.1")
    service = parse_service({**PLAIN, "env_file": ["/etc/a.env"]})
    ids = {
        release_id(fingerprint(service, "10.0.0.1", {"/etc/a.env": content})) for content in "ab"
    }
    assert len(ids) == 2


TEXT = st.text(max_size=8)
MAPS = st.fixed_dictionaries(
    {},
    optional={
        "env": st.dictionaries(st.from_regex(r"[A-Z_]{1,5}", fullmatch=True), TEXT, max_size=3),
        "config": st.dictionaries(st.sampled_from(["/a", "/b/c"]), TEXT),
        "secrets": st.dictionaries(st.sampled_from(["/d", "/e/f"]), TEXT),
        "command": st.lists(TEXT, max_size=3),
        "ready": st.sampled_from([{}, {"path": "/x"}, {"path": "/x", "golden": "/g"}]),
        "resources": st.sampled_from([{}, {"cpus": 1.5}, {"memory": "1g", "gpus": "all"}]),
        "read_only": st.booleans(),
        "drain_seconds": st.integers(0, 100),
    },
)


@given(MAPS, MAPS)
def test_ids_are_equal_exactly_when_the_maps_are(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    same = parse_service({**PLAIN, **one}) == parse_service({**PLAIN, **other})
    assert (the_id(**one) == the_id(**other)) == same


@given(MAPS)
def test_the_stored_map_can_be_read_again(keys: dict[str, Any]) -> None:
    service = parse_service({**PLAIN, **keys})
    again = parse_service(json.loads(json.dumps(public_map(service))))
    assert (again.ready, again.listening_port, again.stop_seconds) == (
        service.ready,
        service.listening_port,
        service.stop_seconds,
    )
    assert not again.secrets and not again.config


def test_create_arguments() -> None:
    service = parse_service(
        {
            **PLAIN,
            "env": {"B": True, "A": 1},
            "env_file": ["/etc/a.env"],
            "mounts": [
                {"source": "/srv/m", "target": "/m"},
                {"source": "/w", "target": "/w", "read_only": False},
            ],
            "resources": {"cpus": 2, "memory": "2g", "gpus": 1},
            "cap_add": ["NET_BIND_SERVICE"],
            "command": ["--flag", "x y"],
            "secrets": {"/run/key": "hush"},
            "user": 10001,
        }
    )
    arguments = create_arguments(
        service,
        release="abc",
        family="prediction",
        bind_address="10.0.0.1",
        files={"/run/key": "/s/key"},
    )
    assert arguments[-3:] == [DIGEST, "--flag", "x y"]
    for expected in (
        "--read-only",
        "--init",
        "--cap-drop=ALL",
        "--cap-add=NET_BIND_SERVICE",
        "--security-opt=no-new-privileges",
        "--restart=unless-stopped",
        "--user=10001:10001",
        "--network=bridge",
        "--publish=10.0.0.1:18080:8080/tcp",
        "--cpus=2",
        "--memory=2g",
        "--memory-swap=2g",
        "--gpus=1",
        "--tmpfs=/tmp",
        "--env=A=1",
        "--env=B=true",
        "--env-file=/etc/a.env",
        "--mount=type=bind,source=/srv/m,target=/m,readonly",
        "--mount=type=bind,source=/w,target=/w",
        "--mount=type=bind,source=/s/key,target=/run/key,readonly",
        "--label=groundcrew.release=abc",
        "--label=groundcrew.ports=18080",
    ):
        assert expected in arguments
    assert "hush" not in " ".join(arguments)


def test_network_host_publishes_nothing() -> None:
    service = parse_service({"name": "web", "image": DIGEST, "network": "host", "port": 8000})
    arguments = create_arguments(service, release="a", family="", bind_address="10.0.0.1", files={})
    assert "--network=host" in arguments and "--label=groundcrew.ports=8000" in arguments
    assert not [
        argument
        for argument in arguments
        if argument.startswith(("--publish", "--memory", "--gpus"))
    ]


def test_a_backend_is_part_of_the_release_and_its_ports_are_the_hosts() -> None:
    backend = {"image": DIGEST, "port": 8501, "extra_ports": {28080: 8500}}
    plain, behind = the_id(), the_id(backend=backend)
    assert plain != behind != the_id(backend={**backend, "env": {"A": "b"}})
    service = parse_service({**PLAIN, "backend": {**backend, "config": {"/x": "secret words"}}})
    assert service.ports_of(0) == (18080, 28080)
    assert service.ports == (18080, 28080, 18081, 28081)
    assert "secret words" not in json.dumps(public_map(service))
    assert parse_service(public_map(service)).backend is not None
    with pytest.raises(GroundcrewError, match="port 28080 on the host is already digits-1's"):
        parse_services([{**PLAIN, "backend": backend}, {**PLAIN, "name": "b2", "host_port": 28080}])
