"""The parts that touch a real machine: HTTP, ports, and the docker command line (a script in its
place).
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import DIGEST
from groundcrew.container_engine import DockerEngine, backend_arguments, create_arguments
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
    assert host.probe(_service(port, path="/healthz"), "127.0.0.1", port, 5) == (
        True,
        f"http://127.0.0.1:{port}/healthz answered 200",
    )
    ok, answer = host.probe(_service(port, path="/other"), "127.0.0.1", port, 5)
    assert (ok, answer) == (False, f"http://127.0.0.1:{port}/other answered 503: loading")


@pytest.mark.parametrize(("expected", "ok"), [(0.5, True), (0.6, False)])
def test_probe_by_golden_prediction(port: int, tmp_path: Path, expected: float, ok: bool) -> None:
    golden = tmp_path / "golden.json"
    case = {"request": {"instances": [[1]]}, "response": {"predictions": [[expected]]}}
    golden.write_text(json.dumps({"cases": [case], "tolerance": 1e-6}))
    service = _service(port, path="/v1/models/m:predict", golden=str(golden))
    LinuxHost().check_files(service)
    assert LinuxHost().probe(service, "127.0.0.1", port, 5)[0] is ok
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
        ok, said = LinuxHost().probe(_service(port, path="/"), "127.0.0.1", port, 5)
        thread.join(10)
        assert not ok and "did not answer" in said
    ok, said = LinuxHost().probe(_service(port, path="/"), "127.0.0.1", port, 5)
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
        ps) printf 'digits-1\\trunning\\tdigits-1\\tabc\\tprediction\\t18080\\t\\t\\t\\n'
            printf 'old-1\\trunning\\told-1\\tabc\\tprediction\\t\\t\\t\\t18082\\n'
            printf 'x1\\texited\\t\\t\\t\\t\\t\\t\\t\\n';;
        inspect) printf '{"Status":"exited","ExitCode":137,"OOMKilled":true}\\t2\\n';;
        logs) echo out; echo err >&2;;
        esac""",
    )
    ours, older, other = engine.containers()
    assert older.ports == (18082,)
    assert ours == ("digits-1", "running", "digits-1", "abc", "prediction", 18080, (18080,))
    assert other == ("x1", "exited", "", "", "", None, ())
    assert engine.state("x") == ("exited", 137, 2, True, "")
    assert engine.logs("x", 40) == "out\nerr"


def test_dockers_own_words_are_passed_on(tmp_path: Path) -> None:
    engine = _docker(tmp_path, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(GroundcrewError, match="docker start failed: Cannot connect"):
        engine.start("x")
    assert engine.has_image("x") is False
    with pytest.raises(GroundcrewError, match="no container engine"):
        DockerEngine(str(tmp_path / "none")).containers()


def test_a_gpu_is_asked_for_where_there_is_one(tmp_path: Path) -> None:
    backend = {"image": DIGEST, "port": 1, "resources": {"gpus": 1}}
    service = parse_service({"name": "web", "image": DIGEST, "port": 2, "backend": backend})
    with pytest.raises(GroundcrewError, match="service web: resources.gpus is 1.*no GPU"):
        LinuxHost(nvidia=tmp_path / "none").check_files(service)
    LinuxHost(nvidia=tmp_path).check_files(service)


class FakeDocker:
    """A docker command line with a memory, for containers that come in pairs."""

    PROGRAM = """#!{python}
import json, pathlib, re, sys
memory = pathlib.Path(__file__).with_name("memory.json")
boxes = json.loads(memory.read_text()) if memory.exists() else {{}}
command, *rest = sys.argv[1:]
memory.with_name("calls").open("a").write(" ".join(sys.argv[1:]) + chr(10))
def labels(arguments):
    return dict(a[8:].split("=", 1) for a in arguments if a.startswith("--label="))
if command == "ps":
    for name, box in boxes.items():
        keys = ("service", "release", "family", "ports", "backend", "part", "port")
        told = labels(box["arguments"])
        print(name, box["state"], *(told.get("groundcrew." + key, "") for key in keys), sep=chr(9))
elif command == "network":
    sys.exit(0 if rest[0] == "create" else 1)
elif command == "create":
    assert rest[0] == "--name" and rest[1] not in boxes, rest
    boxes[rest[1]] = {{"state": "created", "arguments": rest[2:]}}
elif command == "inspect":
    print(json.dumps({{"Status": boxes[rest[-1]]["state"]}}) + chr(9) + "0")
elif command == "rename":
    boxes[rest[1]] = boxes.pop(rest[0])
elif command in ("start", "stop"):
    for name in (a for a in rest if a in boxes):
        boxes[name]["state"] = "running" if command == "start" else "exited"
elif command == "rm":
    for name in (a for a in rest if not a.startswith("-")):
        if name not in boxes:
            sys.exit("Error: No such container: " + name)
        del boxes[name]
memory.write_text(json.dumps(boxes))
"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        program = folder / "docker"
        program.write_text(self.PROGRAM.format(python=sys.executable))
        program.chmod(0o755)

    def engine(self) -> DockerEngine:
        """A new run's view."""
        engine = DockerEngine(str(self._folder / "docker"))
        engine.containers()
        return engine

    @property
    def boxes(self) -> dict[str, Any]:
        boxes: dict[str, Any] = json.loads((self._folder / "memory.json").read_text())
        return boxes

    def forget(self, name: str) -> None:
        boxes = self.boxes
        del boxes[name]
        (self._folder / "memory.json").write_text(json.dumps(boxes))

    @property
    def calls(self) -> list[str]:
        return (self._folder / "calls").read_text().splitlines()


@pytest.fixture
def docker(tmp_path: Path) -> FakeDocker:
    return FakeDocker(tmp_path)


def _create(engine: DockerEngine, name: str = "digits_tf-1-next") -> None:
    own = {"image": DIGEST, "port": 8501, "env": {"A": "b"}, "extra_ports": {28080: 8500}}
    service = parse_service(
        {
            "name": "digits_tf-1",
            "image": DIGEST,
            "port": 8080,
            "host_port": 18080,
            "backend": own,
        }
    )
    common: dict[str, Any] = {"release": "abc", "family": "prediction", "bind_address": "10.0.0.1"}
    engine.create(
        name,
        create_arguments(service, files={}, **common),
        backend_arguments(service, files={}, **common),
    )


def test_a_backend_goes_where_its_service_goes(docker: FakeDocker) -> None:
    engine = docker.engine()
    _create(engine)
    (backend,) = [name for name in docker.boxes if name != "digits_tf-1-next"]
    front = docker.boxes["digits_tf-1-next"]["arguments"]
    # A host name: no '_', and no name that a later release has too.
    assert re.fullmatch(r"digits-tf-1-[0-9a-f]{6}", backend)
    assert f"--env=BACKEND_HOST={backend}" in front and "--env=BACKEND_PORT=8501" in front
    assert "--publish=10.0.0.1:18080:8080/tcp" in front and "--network=groundcrew" in front
    behind = docker.boxes[backend]["arguments"]
    assert [a for a in behind if a.startswith("--publish")] == ["--publish=10.0.0.1:28080:8500/tcp"]
    assert "--network=groundcrew" in behind and "--env=A=b" in behind and "--env=A=b" not in front

    engine.start("digits_tf-1-next")
    engine.rename("digits_tf-1-next", "digits_tf-1")
    assert engine.state("digits_tf-1").status == "running"
    (listed,) = docker.engine().containers()
    assert listed == (
        "digits_tf-1",
        "running",
        "digits_tf-1",
        "abc",
        "prediction",
        18080,
        (18080, 28080),
    )
    later = docker.engine()
    later.stop("digits_tf-1", 3)
    assert [c for c in docker.calls if c.startswith(("start", "stop"))] == [
        f"start {backend} digits_tf-1-next",
        "stop --time 3 digits_tf-1",
        f"stop --time 3 {backend}",
    ]
    later.remove("digits_tf-1")
    assert docker.boxes == {}


@pytest.mark.parametrize(("how", "state"), [("stopped", "exited"), ("removed", "dead")])
def test_a_service_is_no_better_than_its_backend(docker: FakeDocker, how: str, state: str) -> None:
    engine = docker.engine()
    _create(engine, "digits_tf-1")
    engine.start("digits_tf-1")
    (backend,) = [name for name in docker.boxes if name != "digits_tf-1"]
    if how == "removed":
        docker.forget(backend)
    else:
        engine._run("stop", backend)
        assert engine.state("digits_tf-1").status == "exited"
    later = docker.engine()
    (listed,) = later.containers()
    assert listed.state == state
    later.stop("digits_tf-1", 3)
    later.remove("digits_tf-1")
    assert docker.boxes == {}


def test_a_backend_whose_service_was_never_made_is_removed(docker: FakeDocker) -> None:
    engine = docker.engine()
    _create(engine)
    docker.forget("digits_tf-1-next")
    later = docker.engine()
    assert later.containers() == []
    later.prune()
    assert docker.boxes == {}
    calls = len(docker.calls)
    later.prune()
    assert len(docker.calls) == calls
