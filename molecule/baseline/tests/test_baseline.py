"""What the baseline leaves behind, on a plain image and on a Deep Learning AMI's."""


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


def test_forwarding_stays_on_for_containers(host):
    assert host.sysctl("net.ipv4.ip_forward") == 1
