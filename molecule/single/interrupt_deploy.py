#!/usr/bin/env python3
"""Starts deploy.yml and kills it, workers and all, while the training job runs. Fails when it comes to no training in time."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))
import cloud
from processes import kill_all

SECONDS = 300
# Paused, the job cannot end before the deploy is killed. Then it goes on by itself, as the host's own, and the next deploy finds it at work
# or done.
PAUSE, GO_ON = (f"sudo docker {what} training-digits" for what in ("pause", "unpause"))


def main() -> None:
    deadline, trains = time.monotonic() + SECONDS, False
    with tempfile.TemporaryFile("w+") as output:
        deploy = cloud.start_playbook("deploy.yml", stdout=output, stderr=subprocess.STDOUT)
        while not trains and deploy.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            trains = cloud.ssh(PAUSE).returncode == 0
        if deploy.poll() is None:
            kill_all(deploy.pid)
            deploy.wait()
        if trains:
            cloud.ssh(GO_ON)
        if not trains:
            output.seek(0)
            said = output.read().splitlines()[-40:]
            sys.exit(f"no training job ran within {SECONDS} s:\n" + "\n".join(said))


if __name__ == "__main__":
    main()
