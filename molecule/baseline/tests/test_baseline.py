"""What the baseline leaves behind, on a plain image and on a Deep Learning AMI's; other systems are refused."""

import json
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud


def test_sshd_takes_keys_only_and_presents_one_key(host):
    effective = host.check_output("sshd -T")
    assert "passwordauthentication no" in effective
    assert "permitrootlogin no" in effective
    assert "hostkey /etc/ssh/ssh_host_ed25519_key" in effective
    assert "ecdsa" not in host.check_output("ls /etc/ssh")


def test_named_user_may_log_in(host):
    user = host.user("ada")
    assert "sudo" in user.groups
    keys = host.file("/home/ada/.ssh/authorized_keys")
    assert keys.mode == 0o600 and keys.user == "ada"
    assert "ada" in host.check_output("sshd -T | grep -i allowusers")


def test_security_updates_are_on(host):
    assert 'Unattended-Upgrade "1"' in host.check_output(
        "apt-config dump | grep Periodic::Unattended"
    )
    assert host.package("unattended-upgrades").is_installed


def test_aws_file_is_for_root_alone(host):
    file = host.file("/etc/groundcrew/aws.env")
    assert file.mode == 0o600 and file.user == "root"
    assert file.content_string.splitlines()[1:] == [
        "AWS_DEFAULT_REGION=us-east-1",
        "AWS_ENDPOINT_URL=http://192.0.2.1:5000",
    ]


def test_authority_is_trusted_by_openssl_and_python(host):
    certificate = "/usr/local/share/ca-certificates/groundcrew-extra.crt"
    assert host.check_output(f"openssl verify {certificate}") == f"{certificate}: OK"
    trusted = host.check_output(
        "python3 -c 'import ssl; print(ssl.create_default_context().get_ca_certs())'"
    )
    assert "Groundcrew scenario" in trusted and trusted.count("serialNumber") > 50


def test_journal_is_bounded_since_its_restart(host):
    said = host.check_output("journalctl -u systemd-journald -o cat | tail -n 5")
    assert "max 123.0M" in said, said


def test_forwarding_stays_on_for_containers(host):
    assert host.sysctl("net.ipv4.ip_forward") == 1


def test_other_system_is_refused_by_name_and_nothing_is_changed(host, monkeypatch):
    monkeypatch.setenv("GROUNDCREW_TEST_VARIANTS", "plain,dlami")
    name = host.backend.get_hostname()
    facts = {"distribution": "Debian", "distribution_major_version": "11", "packages": {}}
    # Were it to go on, it would write the journal's limit.
    wanted = {"ansible_facts": facts, "baseline_journal_max_mb": 321}
    done = cloud.role("baseline", "--limit", name, "-e", json.dumps(wanted))
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert f"{name} runs Debian 11. Supported are Debian 12, Ubuntu 22.04, Ubuntu 24.04." in said
    assert "inventories/test" in said
    assert "changed=0 unreachable=0 failed=1" in said
    assert "321" not in host.file("/etc/systemd/journald.conf.d/groundcrew.conf").content_string


def test_only_what_is_declared_is_let_in(host):
    """Asked from this machine, which is another network namespace than the host's."""
    address = next(a for a in host.interface.default().addresses if ":" not in a)
    for port in (8000, 8001, 8003):
        host.check_output(
            f"systemctl is-active listen-{port} || systemd-run --unit=listen-{port} python3 -m http.server {port}"
        )

    def opens(port):
        try:
            with socket.create_connection((address, port), timeout=3):
                return True
        except ConnectionRefusedError:
            return False

    deadline = time.monotonic() + 10
    while not opens(8000):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert opens(22) and not opens(8001) and not opens(8003)
    assert "200" in host.check_output(
        "python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8001').status)\""
    ), "what a host asks itself is not restricted"
    rules = host.check_output("nft list table inet groundcrew")
    assert "192.0.2.0/24" in rules and "ct original proto-dst" in rules
    # Without it they are open, so it is what refuses.
    host.check_output("systemctl stop groundcrew-firewall")
    try:
        assert opens(8001) and opens(8003)
    finally:
        host.check_output("systemctl start groundcrew-firewall")
    assert not opens(8001)
    assert host.service("groundcrew-firewall").is_enabled


def test_rules_that_let_nobody_in_are_refused_or_taken_away(host):
    name = host.check_output("hostname")

    def converge(rules):
        wish = json.dumps({"baseline_firewall": rules})
        return cloud.role("baseline", "-e", wish, "-l", name)

    done = converge([{"name": "pages", "ports": [80]}])
    assert done.returncode != 0 and "let nobody log in" in done.stdout
    done = converge([{"name": "logins", "ports": [22], "sources": ["192.0.2.7"]}])
    assert done.returncode != 0 and "rules were taken away again" in done.stdout
    assert not host.service("groundcrew-firewall").is_running
    # As it was.
    assert cloud.role("baseline", "-l", name).returncode == 0
    assert host.service("groundcrew-firewall").is_running
