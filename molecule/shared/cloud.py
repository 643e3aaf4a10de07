"""What tests of the controller's roles share: the cloud stand-in's API, ssh as Ansible does it, playbooks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import boto3

ROOT = Path(os.environ.get("MOLECULE_PROJECT_DIRECTORY", Path(__file__).resolve().parents[2]))
BUILD = ROOT / "build/test"
ENDPOINT = "http://10.78.0.1:5000"
HOST, ADDRESS = "test-1", "10.78.0.10"


def client(service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=ENDPOINT,
        region_name="us-east-1",
        aws_access_key_id="embedded",
        aws_secret_access_key="embedded",
    )


def instances(
    states: tuple[str, ...] = ("pending", "running", "stopping", "stopped"),
) -> list[dict[str, Any]]:
    pages = client("ec2").describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": list(states)}]
    )
    return [instance for page in pages["Reservations"] for instance in page["Instances"]]


def secret(name: str) -> dict[str, str]:
    value = client("secretsmanager").get_secret_value(SecretId=f"groundcrew/test/{name}")
    return dict(json.loads(value["SecretString"]))


def role(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Converge a scenario's role again, with the scenario's own variables and those that a test adds."""
    directory = ROOT / "molecule" / name
    os.environ.update(MOLECULE_SCENARIO_NAME=name, MOLECULE_SCENARIO_DIRECTORY=str(directory))
    return playbook("molecule/shared/converge.yml", *arguments)


def start_playbook(path: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a playbook of the repository in environment `test`; options are those of Popen."""
    command = [
        str(ROOT / ".venv/bin/ansible-playbook"),
        f"--inventory={ROOT}/inventories/shared",
        f"--inventory={ROOT}/molecule/shared/test_inventory.py",
        str(ROOT / path),
        *arguments,
    ]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "GROUNDCREW_ROOT": str(ROOT),
    }
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)


def playbook(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the repository in environment `test`."""
    process = start_playbook(path, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def ssh(
    *command: str, port: int = 22, address: str = ADDRESS, known_as: str = HOST
) -> subprocess.CompletedProcess[str]:
    """One command by ssh with the deploy key and the known hosts that Ansible uses, strictly."""
    options = {
        "UserKnownHostsFile": BUILD / "ssh/known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": known_as,
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ControlPath": "none",
        "ConnectTimeout": "10",
    }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    return subprocess.run(
        [
            "ssh",
            *flags,
            "-i",
            str(BUILD / "ssh/deploy_key"),
            "-p",
            str(port),
            f"groundcrew@{address}",
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def docker(*arguments: str) -> str:
    done = subprocess.run(
        ["/usr/bin/docker", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def module(host: str, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run one of our modules on a test host, as root; returns its result, also of a failure."""
    command = [
        str(ROOT / ".venv/bin/ansible"),
        host,
        f"--inventory={ROOT}/inventories/shared",
        f"--inventory={ROOT}/molecule/shared/test_inventory.py",
        "--become",
        f"--module-name={name}",
        f"--args={json.dumps(parameters)}",
    ]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "GROUNDCREW_ROOT": str(ROOT),
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    document = json.loads(done.stdout[done.stdout.index("{") :])
    return dict(document["plays"][0]["tasks"][0]["hosts"][host])
