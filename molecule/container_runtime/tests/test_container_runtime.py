"""Docker Engine where it was missing, and as the machine image brought it where it was not."""

import json


def daemon(host):
    return json.loads(host.file("/etc/docker/daemon.json").content_string)


def test_engine_runs_with_our_options(host):
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert info["LiveRestoreEnabled"] is True
    assert "10.78.0.2:5000" in info["RegistryConfig"]["IndexConfigs"]
    assert daemon(host)["log-opts"]["max-size"] == "7m"
    assert host.service("docker").is_enabled


def test_the_nvidia_runtime_of_a_deep_learning_ami_survives(host):
    runtimes = daemon(host).get("runtimes", {})
    if host.backend.get_hostname() == "test-dlami":
        assert runtimes["nvidia"]["path"] == "nvidia-container-runtime"
        assert "nvidia" in host.check_output("docker info --format '{{json .Runtimes}}'")
    else:
        assert runtimes == {}


def test_engine_that_was_there_stays(host):
    """Installed once: by the role on a server image, before it on a Deep Learning AMI, and never again."""
    log = host.check_output("grep -E ' (install|upgrade|remove) docker.io:' /var/log/dpkg.log")
    assert [line.split()[2] for line in log.splitlines()] == ["install"]
    # The host's own /etc/hostname is as old as its first boot.
    by_role = host.check_output("find /var/lib/dpkg/info/docker.io.list -newer /etc/hostname")
    assert bool(by_role) == (host.backend.get_hostname() != "test-dlami")


def test_what_the_image_wrote_is_merged_not_overwritten(host):
    # Written at boot, before the role: nested containers belong to the host's own control group.
    if host.file("/sys/fs/cgroup/memory").exists:
        assert daemon(host)["cgroup-parent"].endswith("/nested")


def test_containers_outlive_a_restart_of_the_engine(host):
    # An image of what is there: nothing is downloaded.
    host.check_output(
        "tar -C / -c bin lib lib64 usr/bin/sleep usr/lib/x86_64-linux-gnu/libc.so.6 usr/lib64 | docker import - probe:1"
    )
    host.run("docker rm -f probe")
    host.check_output("docker run -d --name probe --network none probe:1 /usr/bin/sleep 300")
    before = host.check_output("docker inspect -f '{{.State.Pid}} {{.State.StartedAt}}' probe")
    host.check_output("systemctl restart docker")
    assert (
        host.check_output("docker inspect -f '{{.State.Pid}} {{.State.StartedAt}}' probe") == before
    )
    host.check_output("docker rm -f probe")


def test_forwarding_is_on(host):
    assert host.sysctl("net.ipv4.ip_forward") == 1


ECR = "123456789012.dkr.ecr.xx-test-1.amazonaws.com"


def test_root_logs_in_to_ecr_by_a_helper_and_elsewhere_as_before(host):
    config = host.file("/root/.docker/config.json")
    assert json.loads(config.content_string) == {
        "auths": {"registry.example": {"auth": "YTpi"}},
        "credHelpers": {"gcr.example": "gcr", ECR: "ecr-login"},
    }
    for path, mode in (("/root/.docker", 0o700), ("/root/.docker/config.json", 0o600)):
        found = host.file(path)
        assert (found.mode, found.user, found.group) == (mode, "root", "root")


def test_docker_asks_the_helper_for_ecr_and_for_nothing_else(host):
    """A stand-in of the helper, ahead of the real one on PATH, notes what Docker wants to know."""
    assert host.exists("docker-credential-ecr-login")
    host.check_output(
        "mkdir -p /opt/helper && printf '%s\\n' '#!/bin/sh' 'cat >>/opt/helper/asked' 'exit 1' "
        ">/opt/helper/docker-credential-ecr-login && chmod +x /opt/helper/docker-credential-ecr-login"
    )
    # Neither answers: Docker looks for the login first.
    for image in (f"{ECR}/groundcrew/nothing:1", "127.0.0.1:9/nothing:1"):
        pull = host.run(f"PATH=/opt/helper:$PATH HOME=/root timeout 60 docker pull -q {image}")
        assert pull.rc != 0
    assert host.check_output("cat /opt/helper/asked") == ECR
    host.check_output("rm -r /opt/helper")
