"""Variables of inventories/shared that follow the machine and the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def value(name: str, extra: str = "", **environment: str) -> Any:
    """What a variable of local-gateway-1 is, on a controller with these environment variables and -e EXTRA."""
    rest = {key: text for key, text in os.environ.items() if key not in BUNDLES}
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible"),
            "local-gateway-1",
            "--connection=local",
            "--module-name=ansible.builtin.debug",
            f"--args=msg={{{{ {name} }}}}",
            *([f"--extra-vars={extra}"] if extra else []),
        ],
        cwd=ROOT,
        env={**rest, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true", **environment},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    document = json.loads(done.stdout[done.stdout.index("{") :])
    return document["plays"][0]["tasks"][0]["hosts"]["local-gateway-1"]["msg"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({"SSL_CERT_FILE": "/a.pem"}, "/a.pem"),
        ({"REQUESTS_CA_BUNDLE": "/b.pem"}, "/b.pem"),
        ({"SSL_CERT_FILE": "/a.pem", "REQUESTS_CA_BUNDLE": "/b.pem"}, "/a.pem"),
    ],
)
def test_ca_bundle_is_the_one_that_this_machine_trusts(
    environment: dict[str, str], expected: str
) -> None:
    assert value("controller_ca_file", **environment) == expected


def test_a_connection_of_one_checkout_is_not_used_by_another() -> None:
    ours, theirs = (value("ansible_control_path", GROUNDCREW_ROOT=root) for root in ("/a", "/b"))
    assert ours != theirs and ours == value("ansible_control_path", GROUNDCREW_ROOT="/a")


def test_a_certificate_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.pem"
    file.write_text("certificate, chain and key\n")
    assert (
        value("environment_certificate", f"gateway_certificate_file={file}")
        == "certificate, chain and key\n"
    )


def test_each_host_lets_in_what_the_flows_say_and_the_gateway_alone_lets_in_the_world() -> None:
    rules = {rule["name"]: rule for rule in value("host_firewall")}
    assert "sources" not in rules["clients"] and rules["clients"]["ports"] == [443]
    assert all("sources" in rule for name, rule in rules.items() if name != "clients")
    assert "predictions" not in rules
