"""What would keep this machine from taking an environment, found before anything is changed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
RIGHT: dict[str, Any] = {
    "environment_name": "nothing-deployed",
    "disk_path": "/var/lib/not-there-yet",
    "minimum_disk_gb": 0,
    "loopback_ports": [],
    "network_cidr": "10.255.240.0/24",
    "bridge_name": "gc-nothing",
}


def preflight(**changes: Any) -> tuple[int, str]:
    """(status, output) of the module on this machine."""
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible"),
            "localhost",
            "--inventory=localhost,",
            "--connection=local",
            f"--extra-vars=ansible_python_interpreter={sys.executable}",
            "-m",
            "controller_preflight",
            "-a",
            json.dumps({**RIGHT, **changes}),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_right_machine_passes() -> None:
    status, output = preflight()
    assert status == 0, output


def test_taken_port_names_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, output = preflight(loopback_ports=[port])
    assert status != 0
    assert f"Port {port} on this machine is taken by" in output
    assert f"process {os.getpid()}" in output
    assert "Nothing was changed" in output


def test_too_little_disk() -> None:
    status, output = preflight(minimum_disk_gb=10**6)
    assert status != 0 and "1000000 GB are needed" in output


def test_subnet_of_another_interface() -> None:
    status, output = preflight(network_cidr="127.0.0.0/16")
    assert status != 0 and "overlaps with" in output and "interface lo" in output
