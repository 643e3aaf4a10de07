"""The service as its container runs it: a process of its own behind Granian."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from groundcrew import golden

pytest.importorskip("granian")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(directory: Path, **more: str) -> dict[str, str]:
    tools = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "MODEL_NAME": "digits",
        "MODEL_VERSION": "1",
        "MODEL_DIRECTORY": str(directory),
        "MAX_BODY_BYTES": "10000000",
        "MAX_INSTANCES": "50000",
        "OMP_NUM_THREADS": "1",
        **more,
    }


@contextmanager
def serving(directory: Path, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    # Its log goes where pytest shows it when the test fails.
    process = subprocess.Popen(
        [sys.executable, "-m", "groundcrew_prediction"],
        env=environment(directory, PORT=str(port), **more),
        start_new_session=True,
    )
    try:
        wait_until_ready(process, port)
        yield process, port
    finally:
        # The workers too: they outlive a killed parent.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended"
        try:
            if ask(port, "GET", "/healthz")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the service was not ready after 60 s")


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_service_answers_its_golden_cases_refuses_bad_input_and_finishes_what_it_began(
    version_directory, instance
):
    with serving(version_directory) as (process, port):
        path = "/v1/models/digits:predict"
        cases = golden.load(version_directory / "golden.json")
        assert golden.check(f"http://127.0.0.1:{port}{path}", cases).ok
        assert ask(port, "POST", path, b"not json")[0] == 400
        assert ask(port, "POST", path, b"x" * 10_000_001)[0] == 413
        assert chunked(port, path, json.dumps({"instances": [instance]}).encode())[0] == 200
        assert golden.check(f"http://127.0.0.1:{port}{path}", cases).ok

        # Stopped while it computes: the answer still comes, then the process ends well.
        answers: list[Any] = []
        large = json.dumps({"instances": [instance] * 30_000}).encode()
        asking = threading.Thread(target=lambda: answers.append(ask(port, "POST", path, large)))
        asking.start()
        wait_for_request(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        asking.join()
        assert answers[0][0] == 200
        assert len(answers[0][1]["predictions"]) == 30_000


def wait_for_request(port: int) -> None:
    """Until the service says that it is busy with a prediction."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            if b'in_flight{model="digits",version="1"} 1.0' in answer.read():
                return
        time.sleep(0.001)
    raise AssertionError("the request did not reach the service within 10 s")


def chunked(port: int, path: str, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, iter([body[:10], body[10:]]), encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_corrupted_model_is_one_line_and_a_failure(version_directory, tmp_path):
    copy = Path(shutil.copytree(version_directory, tmp_path / "1"))
    with (copy / "model.joblib").open("r+b") as stream:
        stream.write(b"garbage")
    ended = subprocess.run(
        [sys.executable, "-m", "groundcrew_prediction"],
        env=environment(copy, PORT=str(free_port())),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "has sha256" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
