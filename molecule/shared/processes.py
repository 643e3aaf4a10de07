"""Killing what a test started, whole."""

from __future__ import annotations

import contextlib

import psutil


def kill_all(pid: int) -> None:
    """SIGKILL for a process and all below it: Ansible's workers have sessions of their own."""
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
