"""The stand-ins: reachable from this machine and its hosts only, with a memory, and followed without losing a host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

STATE = cloud.BUILD / "cloud"


def kill_stand_in():
    os.kill(int((STATE / "stand-in.pid").read_text()), signal.SIGKILL)


def test_host_runs_systemd_docker_and_cloud_init_unprivileged():
    assert cloud.docker("inspect", "-f", "{{.HostConfig.Privileged}}", "test-1") == "false"
    assert cloud.ssh("systemctl is-system-running").stdout.strip() == "running"
    assert "status: done" in cloud.ssh("cloud-init status").stdout
    assert cloud.ssh("sudo docker info --format '{{.Driver}}'").stdout.strip() == "overlay2"


def test_nested_containers_count_for_their_host():
    if not Path("/sys/fs/cgroup/memory").is_dir():
        return  # control groups v2 nest by themselves
    parent = json.loads(cloud.ssh("cat /etc/docker/daemon.json").stdout)["cgroup-parent"]
    assert cloud.docker("inspect", "-f", "{{.Id}}", "test-1") in parent


def test_nothing_but_gateway_and_registry_is_published_and_on_loopback_alone():
    for name, expected in (
        ("test-1", "127.0.0.1:9444->443/tcp"),
        ("test-registry", "127.0.0.1:6078->5000/tcp"),
    ):
        assert (
            cloud.docker("ps", "--filter", f"name=^{name}$", "--format", "{{.Ports}}") == expected
        )


def test_stand_in_listens_on_the_bridge_alone():
    import psutil

    pid = int((STATE / "stand-in.pid").read_text())
    listening = {
        c.laddr for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN
    }
    assert {tuple(address) for address in listening} == {("10.78.0.1", 5000)}
    assert (STATE / "requests.jsonl").stat().st_mode & 0o077 == 0


def test_killed_stand_in_remembers_and_stopped_host_is_started_again():
    before = [(i["InstanceId"], i["PrivateIpAddress"]) for i in cloud.instances()]
    secret = cloud.secret("ssh/deploy")
    container = cloud.docker("inspect", "-f", "{{.Id}}", "test-1")
    kill_stand_in()
    cloud.docker("stop", "-t", "2", "test-1")
    done = cloud.playbook("playbooks/provision.yml")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert [(i["InstanceId"], i["PrivateIpAddress"]) for i in cloud.instances()] == before
    assert cloud.secret("ssh/deploy") == secret
    assert (
        cloud.docker("inspect", "-f", "{{.Id}} {{.State.Running}}", "test-1") == f"{container} true"
    )
    assert cloud.ssh("true").returncode == 0


def test_host_removed_by_hand_comes_back_as_the_same_host():
    container = cloud.docker("inspect", "-f", "{{.Id}}", "test-1")
    cloud.docker("rm", "-f", "-v", "test-1")
    done = cloud.playbook("playbooks/provision.yml")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert cloud.docker("inspect", "-f", "{{.Id}}", "test-1") != container
    # Strictly checked, with the permanent key: it had presented the key of the first login again.
    assert cloud.ssh("hostname").stdout.strip() == "test-1"
    known = (cloud.BUILD / "ssh/known_hosts").read_text().splitlines()
    assert known == [f"test-1,{cloud.ADDRESS} {cloud.secret('host-keys/test-1')['public']}"]


def test_empty_cloud_beside_hosts_stops_the_run_and_deletes_nothing(tmp_path):
    container = cloud.docker("inspect", "-f", "{{.Id}}", "test-1")
    kill_stand_in()
    kept = tmp_path / "requests.jsonl"
    shutil.move(STATE / "requests.jsonl", kept)
    try:
        done = cloud.playbook("playbooks/provision.yml")
        assert done.returncode != 0
        said = " ".join((done.stdout + done.stderr).split())
        assert "knows no instance" in said and "make clean" in said
        assert (
            cloud.docker("inspect", "-f", "{{.Id}} {{.State.Running}}", "test-1")
            == f"{container} true"
        )
    finally:
        kill_stand_in()
        shutil.move(kept, STATE / "requests.jsonl")
    done = cloud.playbook("playbooks/provision.yml")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
