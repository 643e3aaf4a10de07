#!/usr/bin/env python3
"""Starts deploy.yml and kills it, workers and all, while the training job runs. Fails when it comes to no training in time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))
import cloud

TASK = "Train in a container"
SECONDS = 300
# Stopped, it is still there when the next run comes, as a job is that trains for hours.
STOP_THE_JOB = "sudo pkill -STOP -f '^python /opt/training/train.py'"


def kill_all(process: psutil.Process) -> None:
    """SIGKILL for all of them: Ansible's workers have sessions of their own."""
    for each in [process, *process.children(recursive=True)]:
        each.kill()


def main() -> None:
    deploy = cloud.start_playbook("deploy.yml", stderr=subprocess.STDOUT)
    everything = psutil.Process(deploy.pid)
    timer = threading.Timer(SECONDS, kill_all, [everything])
    timer.start()
    lines = []
    for line in deploy.stdout:
        lines.append(line)
        if TASK in line:
            break
    timer.cancel()
    deadline = time.monotonic() + 30
    while deploy.poll() is None and cloud.ssh(STOP_THE_JOB).returncode != 0:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if deploy.poll() is not None or time.monotonic() > deadline:
        sys.exit(f"deploy.yml came to no training job within {SECONDS} s:\n" + "".join(lines[-40:]))
    kill_all(everything)
    deploy.wait()


if __name__ == "__main__":
    main()
