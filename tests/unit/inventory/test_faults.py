"""hosts.yml with mistakes that Ansible passes over in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from groundcrew.inventory import faults, fleet_faults, unedited

ROOT = Path(__file__).resolve().parents[3]
HOSTS = """\
local:
  children:
    local_gateway:
      hosts:
        one: {private_address: 10.0.0.10}
    local_batch:
      hosts:
        two: {private_address: %s}
    local_monitoring:
      hosts:
        %s
"""


@pytest.mark.parametrize(
    ("address", "last", "words"),
    [
        ("10.0.0.11", "two:", []),
        ("10.0.0.10", "two:", ["hosts 'one' and 'two' have the same address 10.0.0.10"]),
        (
            "10.0.0.11",
            "one: {private_address: 10.0.0.12}",
            ["host 'one' is declared twice", "line 5"],
        ),
        ("10.0.1.11", "two:", ["'10.0.1.11'", "not in the subnet 10.0.0.0/24"]),
        ("ten", "two:", ["'ten'", "not in the subnet"]),
        ("10.0.0.11", "three:", ["host 'three' has no private_address"]),
    ],
)
def test_faults(address: str, last: str, words: list[str]) -> None:
    found = faults(HOSTS % (address, last), "10.0.0.0/24", "hosts.yml")
    assert len(found) == (1 if words else 0), found
    for word in words:
        assert word in found[0]


def list_hosts(*limit: str) -> str:
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        [str(program), "deploy.yml", "--list-hosts", *limit],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_limit_decides_which_environment_is_touched() -> None:
    local, prod, everything = list_hosts("-l", "local"), list_hosts("-l", "prod"), list_hosts()
    assert "local-prediction-2" in local and "prod-" not in local and "single-" not in local
    assert "prod-prediction-2" in prod and "local-" not in prod and "staging-" not in prod
    for environment in ("local-gateway-1", "single-1", "staging-gateway-1", "prod-gateway-1"):
        assert environment in everything


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (
            '{"models": {"digits": {"framework": "sklearn", "host_prot": 1, "version": "1"}}}',
            "Did you mean 'host_port'?",
        ),
        ('{"services": {"application": {"image": "x", "prot": 1}}}', "Did you mean 'port'?"),
    ],
)
def test_unknown_variables_are_refused_with_the_file_to_edit(extra: str, word: str) -> None:
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        [str(program), "playbooks/preflight.yml", "-l", "local", "-e", extra],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and word in output
    assert "inventories/local/group_vars/local/" in output


def test_a_run_without_limit_is_refused() -> None:
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        [str(program), "deploy.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0 and "Say which environment you mean" in " ".join(
        (done.stdout + done.stderr).split()
    )


def test_an_example_says_which_lines_to_edit() -> None:
    text = (
        "# EDIT is explained here\n"
        "aws_account: EDIT      # twelve digits\n"
        "domain: EDIT\n"
        "region: us-east-1      # EDIT is no value here\n"
        "edited: [EDITED]\n"
    )
    assert unedited(text, "fleet.yml") == [
        "fleet.yml:2: aws_account: twelve digits",
        "fleet.yml:3: domain: give it a value",
    ]


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_the_examples_are_unedited_in_one_file(environment: str) -> None:
    folder = ROOT / f"inventories/{environment}"
    found = {
        path.relative_to(folder).as_posix(): len(unedited(path.read_text(), path.name))
        for path in folder.rglob("*.yml")
    }
    assert {name for name, lines in found.items() if lines} == {
        f"group_vars/{environment}/fleet.yml"
    }


def test_a_misspelt_key_of_a_fleet_is_named():
    fleets = {
        "batch": {"instance_type": "m7i.large", "data_volume_gb": 5},
        "training": {"instance_type": "g6.xlarge", "data_volumes_gb": 50},
        "gateway": None,
    }
    (fault,) = fleet_faults(fleets, "fleet.yml")
    assert "fleet training" in fault and "Did you mean 'data_volume_gb'?" in fault
