"""Everything on one host: all services run, and only the gateway listens beyond the private address."""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
BUILD = ROOT / "build/test"
PRIVATE = ("10.78.0.10", "127.", "[::1]")


def test_the_proof_passed():
    report = json.loads((BUILD / "verify.json").read_text())
    assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    names = " ".join(check["name"] for check in report["checks"])
    for part in ("on test-1", "through the gateway", "401", "application page", "batch results"):
        assert part in names


def test_every_service_runs_on_this_host(host):
    running = host.check_output("docker ps --format '{{.Names}}'").split()
    assert {"digits-1", "application"} <= set(running)
    for unit in (
        "haproxy",
        "prometheus",
        "prometheus-alertmanager",
        "prometheus-node-exporter",
        "cron",
    ):
        assert host.service(unit).is_running, unit


def test_only_gateway_and_sshd_listen_on_every_address(host):
    sockets = host.check_output("ss -Htln | awk '{print $4}'").split()
    public = {address.rsplit(":", 1)[1] for address in sockets if not address.startswith(PRIVATE)}
    assert public <= {"22", "443"}, sockets


def test_a_batch_job_run_by_hand_and_what_is_refused():
    done = cloud.playbook("playbooks/batch.yml", "-e", "job=digits_nightly")
    assert done.returncode == 0, done.stdout[-3000:]
    assert '"rows": 360' in done.stdout and "succeeded" in done.stdout
    for arguments, said in (
        (["-e", "job=digit_nightly"], "There is no batch job 'digit_nightly'"),
        (["-e", "job=digits_nightly", "-e", "date=tomorrow"], "tomorrow is no day"),
        (["-e", "job=digits_nightly", "-e", "from=2026-01-01"], "from and to belong together"),
        (["-e", "job=digits_nightly", "-e", "date=2099-01-01"], "was not due from 2099-01-01"),
    ):
        done = cloud.playbook("playbooks/batch.yml", *arguments)
        assert done.returncode != 0 and said in done.stdout + done.stderr, said


def test_a_release_on_one_host():
    """The short form of a drill (tests/drills/run.py); molecule/fleet rebuilds a host."""
    command = [sys.executable, ROOT / "tests/drills/run.py", "--environment=test", "--rate=40"]
    done = subprocess.run(
        [*command, "--short", "releases"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
