"""start-engine on machines of stubs: an engine that runs, that is down, that never answers. The real one is never asked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "files/local_cloud/start-engine"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine without systemd whose engine starts as the real one does: not over a pid file."""
    for folder in ("bin", "usr/bin", "var/run/docker/containerd", "var/log"):
        (tmp_path / folder).mkdir(parents=True)
    stub(tmp_path / "usr/bin/docker", f"[ -e {tmp_path}/up ]")
    stub(
        tmp_path / "bin/dockerd",
        f"[ ! -e {tmp_path}/var/run/docker.pid ] || {{ echo 'pid file found'; exit 1; }}; touch {tmp_path}/up",
    )
    stub(tmp_path / "bin/systemctl", f'[ "$*" = "start docker" ] && touch {tmp_path}/up')
    # The wait for an engine, shortened; what was asked for is noted.
    stub(tmp_path / "bin/timeout", f'echo "$1" >>{tmp_path}/waits; shift; exec /usr/bin/timeout 2 "$@"')  # fmt: skip
    return tmp_path


@pytest.fixture
def running() -> Iterator[Callable[[Path], int]]:
    """Runs a program until the test ends; gives its process id."""
    processes = []

    def start(program: Path) -> int:
        processes.append(subprocess.Popen([str(program)], start_new_session=True))
        return processes[-1].pid

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stub(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def start(machine: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM)],
        env={"PATH": f"{machine}/bin:/usr/bin:/bin", "LOCAL_CLOUD_ROOT": str(machine)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_running_engine_is_left_alone(machine: Path) -> None:
    (machine / "up").touch()
    (machine / "var/run/docker.pid").write_text("1")
    stub(machine / "bin/dockerd", f"touch {machine}/second")
    done = start(machine)
    assert (done.returncode, done.stdout) == (0, "running\n")
    assert (machine / "var/run/docker.pid").exists() and not (machine / "second").exists()


@pytest.mark.parametrize("name", ["docker.pid", "docker/containerd/containerd.pid"])
@pytest.mark.parametrize("owner", ["nobody", "another program"])
def test_stale_pid_file_is_taken_away(machine: Path, name: str, owner: str) -> None:
    pidfile = machine / "var/run" / name
    pidfile.write_text("4194305" if owner == "nobody" else str(os.getpid()))  # above any pid_max
    done = start(machine)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert not pidfile.exists()


def test_engine_that_is_just_starting_keeps_its_pid_file(
    machine: Path, running: Callable[[Path], int]
) -> None:
    pid = running(stub(machine / "var/dockerd", f"sleep 1; touch {machine}/up; sleep 30"))
    (machine / "var/run/docker.pid").write_text(str(pid))
    assert start(machine).stdout == "started\n"
    assert (machine / "var/run/docker.pid").read_text() == str(pid)


def test_where_systemd_runs_it_starts_the_engine(machine: Path) -> None:
    (machine / "run/systemd/system").mkdir(parents=True)
    stub(machine / "bin/dockerd", f"touch {machine}/second")
    assert start(machine).stdout == "started\n"
    assert not (machine / "second").exists()


@pytest.mark.parametrize("client", ["exit 1", "exec sleep 30"], ids=["refuses", "hangs"])
def test_engine_that_never_answers_ends_the_wait(machine: Path, client: str) -> None:
    stub(machine / "usr/bin/docker", client)
    stub(machine / "bin/dockerd", "echo no space left on device")
    done = start(machine)
    assert done.returncode != 0 and not done.stdout
    assert "did not answer within 60 s" in done.stderr
    assert "no space left on device" in done.stderr
    assert (machine / "waits").read_text().split()[1] == "60"
