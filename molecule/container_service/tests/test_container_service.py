"""What runs on the host after the role, and what a bad release does to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

SECRET = "a-secret-of-the-scenario"
FAMILY = "label=groundcrew.family=scenario"


@pytest.fixture
def address(host):
    """The private address of the host."""
    return next(a for a in host.interface.default().addresses if ":" not in a)


def inspect(host, name):
    return json.loads(host.check_output("docker inspect %s", name))[0]


def get(host, url):
    script = (
        "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"
    )
    result = host.run("python3 -c %s %s", script, url)
    assert result.rc == 0, result.stderr + host.run("docker logs --tail 20 digits-1").stdout
    return json.loads(result.stdout)


def names(host):
    return sorted(
        host.check_output("docker ps --all --filter %s --format '{{.Names}}'", FAMILY).split()
    )


def test_both_services_answer_on_the_private_address_alone(host, address):
    assert get(host, f"http://{address}:18080/") == {"mode": "good", "uid": 10001}
    assert get(host, f"http://{address}:8000/") == {"mode": "good", "uid": 10001}
    listening = host.check_output("ss -Hltn")
    for port in (18080, 8000):
        assert f"{address}:{port}" in listening
        assert f"0.0.0.0:{port}" not in listening and f"*:{port}" not in listening


def test_containers_are_confined(host):
    for name in ("digits-1", "web"):
        details = inspect(host, name)
        limits = details["HostConfig"]
        assert details["Config"]["User"] == "10001:10001"
        assert (
            limits["ReadonlyRootfs"] and limits["CapDrop"] == ["ALL"] and not limits["Privileged"]
        )
        assert "no-new-privileges" in limits["SecurityOpt"]
        assert limits["RestartPolicy"]["Name"] == "unless-stopped"
        assert limits["LogConfig"]["Config"]["max-size"] == "10m"
    limits = inspect(host, "digits-1")["HostConfig"]
    assert limits["Memory"] == 128 * 1024 * 1024 and limits["NanoCpus"] == 500_000_000
    assert host.run('docker exec digits-1 /usr/bin/python3 -c \'open("/srv/x", "w")\'').rc != 0


def test_a_secret_is_a_file_for_its_owner_only(host):
    release = inspect(host, "digits-1")["Config"]["Labels"]["groundcrew.release"]
    folder = host.file(f"/var/lib/groundcrew/services/digits-1/{release}/secrets")
    assert folder.mode == 0o700 and folder.user == "root"
    secret = host.file(f"{folder.path}/00-api_key")
    assert (secret.mode, secret.uid, secret.content_string) == (0o400, 10001, SECRET)
    inside = "print(open('/run/secrets/api_key').read(), open('/etc/stub.conf').read())"
    said = host.check_output("docker exec digits-1 /usr/bin/python3 -c %s", inside)
    assert SECRET in said and "greeting = hello" in said
    assert SECRET not in host.check_output("docker inspect digits-1")
    assert SECRET not in host.run("journalctl --no-pager -t ansible-container_release").stdout


def release(host, address, *services, **options):
    """Run the module on the host as the role does; gives its result, also of a failure.

    Only a failure has a "msg".
    """
    parameters = {"services": services, "bind_address": address, **options}
    result = cloud.module("test-1", "container_release", parameters)
    return (
        result
        if result.get("failed")
        else {key: value for key, value in result.items() if key != "msg"}
    )


def map_of(host, **changes):
    """The map of digits-1 as the scenario deploys it, changed."""
    image = inspect(host, "digits-1")["Config"]["Image"]
    return {
        "name": "digits-1",
        "image": image,
        "mounts": [{"source": "/srv/models/digits/1", "target": "/models/digits/1"}],
        "port": 8080,
        "host_port": 18080,
        "ready": {
            "golden": "/srv/models/digits/1/golden.json",
            "path": "/v1/models/digits:predict",
        },
        "ready_timeout_seconds": 5,
        **changes,
    }


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("exits", "cannot load the model"),
        ("hangs", "not ready within 5 s"),
        ("wrong", "response.predictions[0][0] is 0.9, expected 0.1"),
    ],
)
def test_a_bad_release_is_refused_in_words_and_the_old_one_serves(host, address, mode, said):
    before = inspect(host, "digits-1")["Id"], names(host)
    result = release(host, address, map_of(host, env={"STUB_MODE": mode}))
    assert said in result["msg"]
    assert "(digits-1) serves on" in result["msg"]
    assert (inspect(host, "digits-1")["Id"], names(host)) == before
    assert get(host, f"http://{address}:18080/")["mode"] == "good"


def test_a_tag_is_refused_before_anything_is_touched(host, address):
    result = release(host, address, map_of(host, image="stub:latest"))
    assert "'stub:latest'" in result["msg"] and "never tags" in result["msg"]


def test_an_interrupted_release_is_mended_by_the_next_run(host, address):
    """What kill -9 leaves between the two renames, made by hand, on a service of its own."""
    service = map_of(host, name="drill", host_port=18090)
    label = "groundcrew.service=drill"
    try:
        assert release(host, address, service)["changed"]
        good = inspect(host, "drill")["Id"]
        host.check_output("docker rename drill drill-previous")
        host.check_output("docker stop drill-previous")
        host.check_output("docker create --name drill-next --label %s %s", label, service["image"])
        bad = release(host, address, {**service, "env": {"STUB_MODE": "exits"}})
        assert "cannot load the model" in bad["msg"]
        assert inspect(host, "drill")["Id"] == good
        assert inspect(host, "drill")["State"]["Running"]
        assert host.run("docker inspect drill-next").rc != 0
        assert not release(host, address, service)["changed"]
    finally:
        release(host, address, remove=["drill"])
    assert host.run("docker inspect drill").rc != 0
    assert not host.file("/var/lib/groundcrew/services/drill").exists


@pytest.mark.parametrize("network", ["bridge", "host"])
def test_a_release_stands_beside_what_serves_until_the_gateways_are_told(host, address, network):
    """As behind gateways: ready, then settled. The old one answers until then, on its own port."""
    service = map_of(host, name="drill", host_port=18090)
    ports = {"a": 18090, "b": 18091}
    if network == "host":
        service |= {"network": "host", "strategy": "blue_green", "port": 8090, "host_port": None}
        service |= {"env": {"HOST": address}}
        ports = {"a": 8090, "b": 8091}
    changed = {**service, "labels": {"drill": "again"}}
    try:
        first = release(host, address, service, state="ready")
        assert ports["a"] in first["serving"] and first["handed_over"] == []
        held = release(host, address, changed, state="ready")
        assert held["handed_over"] == ["drill"] and held["drain_seconds"] == 30
        assert ports["b"] in held["serving"] and ports["a"] not in held["serving"]
        for port in ports.values():
            assert get(host, f"http://{address}:{port}/")["mode"] == "good"
        # Interrupted here, the same command finds it as it is.
        assert not release(host, address, changed, state="ready")["again"]
        assert release(host, address, {**changed, "env": {"A": 1}}, state="ready")["again"]
        assert release(host, address, state="settled")["services"][0]["action"] == "settled"
        assert get(host, f"http://{address}:{ports['b']}/")["mode"] == "good"
        assert (
            host.run("docker inspect --format '{{.State.Status}}' drill-previous").stdout
            == "exited\n"
        )
        assert release(host, address, state="query")["serving"] == sorted([8000, 18080, ports["b"]])
        # Taken back, it leaves what served.
        again = {**changed, "labels": {"drill": "once more"}}
        assert release(host, address, again, state="ready")["handed_over"] == ["drill"]
        assert ports["b"] in release(host, address, state="withdrawn")["serving"]
        assert release(host, address, state="settled")["services"][0]["action"] == "withdrawn"
        assert host.run("docker inspect drill-next").rc != 0
        assert get(host, f"http://{address}:{ports['b']}/")["mode"] == "good"
    finally:
        release(host, address, remove=["drill"])


def test_neighbours_are_untouched(host):
    assert names(host) == ["digits-1", "web"]
