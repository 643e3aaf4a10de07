"""The parts that touch a real machine: HTTP, ports, and the docker command line (a script in its
place).
"""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import DIGEST
from groundcrew.container_engine import DockerEngine
from groundcrew.errors import GroundcrewError
from groundcrew.release import LinuxHost
from groundcrew.service_map import Service, parse_service


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b"loading")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"predictions": [[0.5]]}')

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _service(port: int, **ready: Any) -> Service:
    return parse_service(
        {"name": "web", "image": DIGEST, "network": "host", "port": port, "ready": ready}
    )


def test_probe_by_path(port: int) -> None:
    host = LinuxHost()
    assert host.probe(_service(port, path="/healthz"), "127.0.0.1", 5) == (
        True,
        f"http://127.0.0.1:{port}/healthz answered 200",
    )
    ok, answer = host.probe(_service(port, path="/other"), "127.0.0.1", 5)
    assert (ok, answer) == (False, f"http://127.0.0.1:{port}/other answered 503: loading")


@pytest.mark.parametrize(("expected", "ok"), [(0.5, True), (0.6, False)])
def test_probe_by_golden_prediction(port: int, tmp_path: Path, expected: float, ok: bool) -> None:
    golden = tmp_path / "golden.json"
    case = {"request": {"instances": [[1]]}, "response": {"predictions": [[expected]]}}
    golden.write_text(json.dumps({"cases": [case], "tolerance": 1e-6}))
    service = _service(port, path="/v1/models/m:predict", golden=str(golden))
    LinuxHost().check_files(service)
    assert LinuxHost().probe(service, "127.0.0.1", 5)[0] is ok
    golden.unlink()
    with pytest.raises(GroundcrewError, match="golden.json"):
        LinuxHost().check_files(service)


def test_probe_of_nothing_and_of_something_that_is_not_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        ok, said = LinuxHost().probe(_service(port, path="/"), "127.0.0.1", 5)
        thread.join(10)
        assert not ok and "did not answer" in said
    ok, said = LinuxHost().probe(_service(port, path="/"), "127.0.0.1", 5)
    assert not ok and "refused" in said


def test_a_taken_port_and_a_foreign_address() -> None:
    host = LinuxHost()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert "in use" in (host.taken("127.0.0.1", port) or "")
    assert host.taken("127.0.0.1", port) is None
    assert "assign" in (host.taken("192.0.2.1", port) or "")


def test_a_missing_mount_is_named(tmp_path: Path) -> None:
    service = parse_service(
        {"name": "web", "image": DIGEST, "mounts": [{"source": f"{tmp_path}/no", "target": "/m"}]}
    )
    with pytest.raises(GroundcrewError, match="/no, mounted at /m, does not exist"):
        LinuxHost().check_files(service)


def _docker(tmp_path: Path, script: str) -> DockerEngine:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return DockerEngine(str(program))


def test_docker_listing_state_and_logs(tmp_path: Path) -> None:
    engine = _docker(
        tmp_path,
        """case $1 in
        ps) printf 'digits-1\\trunning\\tdigits-1\\tabc\\tprediction\\t18080\\n'
            printf 'x1\\texited\\t\\t\\t\\t\\n';;
        inspect) printf '{"Status":"exited","ExitCode":137,"OOMKilled":true}\\t2\\n';;
        logs) echo out; echo err >&2;;
        esac""",
    )
    ours, other = engine.containers()
    assert ours == ("digits-1", "running", "digits-1", "abc", "prediction", 18080)
    assert other == ("x1", "exited", "", "", "", None)
    assert engine.state("x") == ("exited", 137, 2, True, "")
    assert engine.logs("x", 40) == "out\nerr"


def test_dockers_own_words_are_passed_on(tmp_path: Path) -> None:
    engine = _docker(tmp_path, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(GroundcrewError, match="docker start failed: Cannot connect"):
        engine.start("x")
    assert engine.has_image("x") is False
    with pytest.raises(GroundcrewError, match="no container engine"):
        DockerEngine(str(tmp_path / "none")).containers()
