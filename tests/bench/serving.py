#!/usr/bin/env python3
"""Prediction services against other model servers, and the running local environment, in one run on this machine.

Usage: serving.py [REPETITIONS [SECONDS]]     writes build/bench/serving.json, prints a table, ratios and the targets

Part 1: every server answers for the same forest (100 trees, 30 features, one row a request), as processes on loopback. A peer has
a virtual environment of its own from requirements/bench_*.txt, ours has what its image has. Each round starts every server anew,
compares its answers with scikit-learn's, warms it up and measures it at 1, 16 and 64 connections; figures are medians of rounds.
Part 2: every model of the environment `local`, at a prediction host and through the gateway, when the environment runs.

The load generator shares the processors with the servers. The exit status tells whether everything ran and answered right;
a target that is not met is printed and changes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from load import BenchError, container_memory_mb, install, measure, medians, table
from sklearn.datasets import load_digits

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / "tests/bench/peers"
BUILD = REPOSITORY / "build/bench"
REPORT = BUILD / "serving.json"
ACCESS = REPOSITORY / "build/local/access.json"
IMAGES = REPOSITORY / "files/images"
PYTHONPATH = f"{REPOSITORY / 'plugins/module_utils'}:{IMAGES / 'prediction_front'}:{PEERS}"
# A virtual environment and the lock files it is made of.
VENVS = {
    # One after the other: the second is constrained by the first and lists what it adds.
    "groundcrew": [
        IMAGES / "sklearn/requirements.txt",
        IMAGES / "prediction_sklearn/requirements.txt",
    ],
    # What exports the model, as a training job does.
    "onnx": [
        IMAGES / "sklearn/requirements.txt",
        IMAGES / "training_digits/requirements.txt",
    ],
    **{
        name: [REPOSITORY / f"requirements/bench_{name}.txt"]
        for name in ("flask", "mlserver", "bentoml")
    },
}
CONNECTIONS = (1, 16, 64)
WARM_UP_SECONDS = 2
START_SECONDS = 60
# Float32 against float64.
TOLERANCE = 1e-4
CONSTANT = [0.25, 0.75]

ONNX, SKLEARN, NO_MODEL = (
    "Groundcrew, ONNX export",
    "Groundcrew, scikit-learn",
    "Groundcrew, no model",
)
FLASK, MLSERVER, BENTOML = (
    "Flask + Gunicorn, 2 workers",
    "MLServer, adaptive batching",
    "BentoML, batchable",
)
FRONT, BACKEND = "front + constant backend", "constant backend alone"

Row = list[float]


def instances(row: Row) -> dict[str, Any]:
    return {"instances": [row]}


def predictions(answer: Any) -> Row:
    first: Row = answer["predictions"][0]
    return first


@dataclass(frozen=True)
class Server:
    """How one server is started and asked; ``{port}`` and ``{folder}`` stand in command and environment."""

    name: str
    venv: str
    command: Sequence[str]
    path: str
    environment: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[Row], Any] = instances
    answer: Callable[[Any], Row] = predictions
    constant: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)
    # Another server that runs beside it, at {backend_port}, and is part of its memory.
    backend: Server | None = None


def granian(target: str, interface: str, *more: str) -> list[str]:
    options = ["--host=127.0.0.1", "--port={port}", "--no-access-log", "--no-ws", *more]
    return ["granian", f"--interface={interface}", *options, target]


def ours(name: str, version: str, command: Sequence[str] = (), **more: Any) -> Server:
    environment = {
        "MODEL_NAME": "forest",
        "MODEL_VERSION": "1",
        "MODEL_DIRECTORY": "{folder}/" + version,
        "PORT": "{port}",
        **more.pop("environment", {}),
    }
    command = command or ["python", "-m", "groundcrew_prediction"]
    path = "/v1/models/forest:predict"
    return Server(name, "groundcrew", command, path, environment, **more)


CONSTANT_BACKEND = Server(
    BACKEND,
    "groundcrew",
    granian("constant_backend:application", "rsgi"),
    "/predict",
    constant=True,
)
SERVERS = [
    ours(ONNX, "onnx"),
    ours(
        NO_MODEL,
        "front",
        granian("no_model:application", "rsgi", "--factory"),
        constant=True,
    ),
    ours(SKLEARN, "sklearn"),
    Server(
        FLASK,
        "flask",
        [
            *("gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", "--worker-class=sync"),
            *("--log-level=warning", "flask_app:app"),
        ],
        "/predict",
        {"MODEL_FILE": "{folder}/model.joblib"},
    ),
    Server(
        MLSERVER,
        "mlserver",
        ["mlserver", "start", "{folder}"],
        "/v2/models/forest/infer",
        body=lambda row: {
            "inputs": [
                {"name": "predict", "shape": [1, len(row)], "datatype": "FP32", "data": row}
            ],
            "outputs": [{"name": "predict_proba"}],
        },
        answer=lambda answer: list(answer["outputs"][0]["data"]),
        files={
            "settings.json": {
                "host": "127.0.0.1",
                "http_port": "{port}",
                "grpc_port": "{port2}",
                "metrics_port": "{port3}",
                "debug": False,
            },
            # Its guide: size and time "are usually found through experimentation"; these were the best here.
            "model-settings.json": {
                "name": "forest",
                "implementation": "mlserver_sklearn.SKLearnModel",
                "max_batch_size": 64,
                "max_batch_time": 0.005,
                "parameters": {"uri": "./model.joblib"},
            },
        },
    ),
    Server(
        BENTOML,
        "bentoml",
        ["bentoml", "serve", "bentoml_service:Forest", "--host=127.0.0.1", "--port={port}"],
        "/predict",
        {
            "MODEL_FILE": "{folder}/model.joblib",
            "BENTOML_HOME": "{folder}/bentoml",
            "BENTOML_DO_NOT_TRACK": "True",
        },
        answer=lambda answer: list(answer[0]),
    ),
    ours(
        FRONT,
        "front",
        constant=True,
        environment={
            "BACKEND_PATH": "/predict",
            "BACKEND_HOST": "127.0.0.1",
            "BACKEND_PORT": "{backend_port}",
        },
        backend=CONSTANT_BACKEND,
    ),
    CONSTANT_BACKEND,
]


# -- virtual environments and models --------------------------------------------------------------


def run(command: Sequence[object], **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"{command} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def prepare(folder: Path) -> dict[str, Any]:
    """Virtual environments as their locks say, a model in each; returns rows and scikit-learn's probabilities by environment."""
    uv = Path(sys.prefix) / "bin/uv"
    cases = {}
    for name, locks in VENVS.items():
        print(f"bench | virtual environment and model: {name}", flush=True)
        venv = BUILD / "venvs" / name
        variables = {"VIRTUAL_ENV": str(venv)}
        if not (venv / "bin/python").exists():
            run([uv, "venv", "--quiet", "--python", "3.11", venv])
        # One file, for sync removes what it does not find in it.
        lock = folder / f"{name}.txt"
        lock.write_text("".join(path.read_text() for path in locks))
        run([uv, "pip", "sync", "--quiet", "--require-hashes", lock], **variables)
        python, models = venv / "bin/python", folder / name
        run([python, PEERS / "train.py", models])
        cases[name] = json.loads((models / "cases.json").read_text())
    # Ours: trained with what the image has, exported where the exporter is, then laid out as in the store.
    run([BUILD / "venvs/onnx/bin/python", PEERS / "export.py", folder / "groundcrew"])
    python = BUILD / "venvs/groundcrew/bin/python"
    run([python, PEERS / "versions.py", folder / "groundcrew"], PYTHONPATH=PYTHONPATH)
    return cases


# -- servers --------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


@contextmanager
def running(server: Server, folder: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The server's address and its processes, the backend's among them; all of them end with the block."""
    with ExitStack() as stack:
        ports = dict(zip(("port", "port2", "port3"), map(str, free_ports(3)), strict=True))
        values = {**ports, "folder": str(folder / server.venv)}
        processes: list[psutil.Process] = []
        if server.backend:
            address, processes = stack.enter_context(running(server.backend, folder))
            values["backend_port"] = address.rpartition(":")[2]

        def fill(text: str) -> str:
            for name, value in values.items():
                text = text.replace("{" + name + "}", value)
            return text

        for name, document in server.files.items():
            (folder / server.venv / name).write_text(fill(json.dumps(document)))
        tools = BUILD / "venvs" / server.venv / "bin"
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": PYTHONPATH if server.venv == "groundcrew" else str(PEERS),
            **{name: fill(value) for name, value in server.environment.items()},
        }
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        command = [fill(word) for word in server.command]
        process = psutil.Popen(
            [str(tools / command[0]), *command[1:]],
            cwd=PEERS,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(end, process)
        address = f"http://127.0.0.1:{values['port']}"
        try:
            yield address, [*processes, process]
        except BenchError as error:
            log.seek(0)
            error.add_note(f"log of {server.name}:\n{log.read()[-4000:]}")
            raise


def end(process: psutil.Popen) -> None:
    """Ask the process to end, then kill what is left of its tree."""
    tree = [*process.children(recursive=True), process] if process.is_running() else [process]
    process.terminate()
    psutil.wait_procs(tree, timeout=10)
    for left in tree:
        if left.is_running():
            left.kill()
    process.wait(10)


def memory(processes: Sequence[psutil.Process]) -> int:
    """Proportional set size of the processes and all their children, in bytes: pages that they share count once."""
    tree = [p for process in processes for p in [process, *process.children(recursive=True)]]
    return sum(int(p.memory_full_info().pss) for p in tree)


def ask(url: str, headers: Mapping[str, str], body: Any, context: ssl.SSLContext | None) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), dict(headers))
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return json.load(answer)


def wait_until_ready(server: Server, url: str, process: psutil.Process, row: Row) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask(url, HEADERS, server.body(row), None)
            return
        except (OSError, ValueError) as error:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise BenchError("it ended while it was starting") from None
            if time.monotonic() > deadline:
                detail = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
                raise BenchError(
                    f"no answer {START_SECONDS} s after its start: {error} {detail}"
                ) from None
            time.sleep(0.1)


HEADERS = {"Content-Type": "application/json"}


def compare(server: Server, url: str, cases: Mapping[str, Any]) -> None:
    """Every row must be answered as scikit-learn does: label and probabilities."""
    for row, wanted in zip(cases["rows"], cases["probabilities"], strict=True):
        wanted = CONSTANT if server.constant else wanted
        got = server.answer(ask(url, HEADERS, server.body(row), None))
        far = [abs(g - w) for g, w in zip(got, wanted, strict=True)]
        if max(far) > TOLERANCE or got.index(max(got)) != wanted.index(max(wanted)):
            raise BenchError(f"it answers {got} where scikit-learn has {wanted}")


def measure_server(
    server: Server, folder: Path, cases: Mapping[str, Any], seconds: float
) -> dict[str, dict[str, float]]:
    """One round: figures by number of connections, and the memory after the last one."""
    with running(server, folder) as (address, processes):
        url = address + server.path
        wait_until_ready(server, url, processes[-1], cases["rows"][0])
        compare(server, url, cases)
        bodies = [server.body(row) for row in cases["rows"]]
        measure(url, HEADERS, bodies, 16, WARM_UP_SECONDS)
        figures = {}
        for connections in CONNECTIONS:
            figures[str(connections)] = {
                **measure(url, HEADERS, bodies, connections, seconds),
                "memory_mb": round(memory(processes) / 1e6, 1),
            }
        return figures


# -- the local environment ------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    name: str
    url: str
    headers: Mapping[str, str]
    context: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Variant:
    """A model version that the environment serves: its service on the first prediction host, and the ways to it."""

    service: str
    host: str
    routes: list[Route]


def model_variants(host: str) -> list[dict[str, Any]]:
    """What the inventory says is served, with every default filled in."""
    ansible = Path(sys.prefix) / "bin/ansible"
    # The debug action asks no host.
    command = [ansible, host, "-m", "ansible.builtin.debug", "-a", "var=model_variants"]
    output = run(command, ANSIBLE_CALLBACK_RESULT_FORMAT="json")
    variants: list[dict[str, Any]] = json.loads(output.partition("=>")[2])["model_variants"]
    return variants


def slot(address: str, port: int) -> int:
    """Which of a service's two ports answers."""
    for own in (port, port + 1):
        try:
            with socket.create_connection((address, own), timeout=3):
                return own
        except OSError:
            continue
    raise BenchError(f"nothing answers at {address}:{port} and the port above. Run: make deploy")


def local_variants(access: Mapping[str, Any]) -> list[Variant]:
    host, address = next((h, a) for h, a in sorted(access["hosts"].items()) if "prediction" in h)
    context = ssl.create_default_context(cafile=access["ca_file"])
    variants = []
    for variant in model_variants(host):
        model, version = variant["model"], variant["version"]
        path = f"/v1/models/{model}/versions/{version}:predict"
        name = f"{model} {version} ({variant['framework']})"
        url = f"http://{address}:{slot(address, int(variant['host_port']))}{path}"
        routes = [Route(f"{name}, host", url, HEADERS)]
        if access.get("bench_api_key"):
            key = {"X-Api-Key": access["bench_api_key"]}
            url = access["gateway_url"].rstrip("/") + path
            routes.append(Route(f"{name}, gateway", url, {**HEADERS, **key}, context))
        variants.append(Variant(variant["name"], host, routes))
    return variants


def reachable(access: Mapping[str, Any]) -> bool:
    address = urllib.parse.urlsplit(access["gateway_url"])
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=3):
            return True
    except OSError:
        return False


def service_memory_mb(variant: Variant) -> float:
    """Of the service's container, and of the backend's where it has one, as Docker on its host counts."""
    shown = run(
        ["docker", "exec", variant.host, "docker", "stats", "--no-stream", "--format", "{{json .}}"]
    )
    return container_memory_mb(shown, variant.service)


def compare_routes(variant: Variant, rows: Sequence[Row], labels: Sequence[int]) -> None:
    """A model is right about most digits, and both ways to it give the same answers."""
    answers = [
        [predictions(ask(r.url, r.headers, instances(row), r.context)) for row in rows]
        for r in variant.routes
    ]
    right = sum(a.index(max(a)) == label for a, label in zip(answers[0], labels, strict=True))
    if right < 0.9 * len(labels):
        raise BenchError(f"{variant.service} is right about {right} of {len(labels)} digits")
    for answer in answers[1:]:
        far = max(
            abs(a - b)
            for one, other in zip(answers[0], answer, strict=True)
            for a, b in zip(one, other, strict=True)
        )
        if far > TOLERANCE:
            raise BenchError(f"{variant.service} answers otherwise through the gateway, by {far}")


def measure_local(repetitions: int, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by route and connections; none when the environment does not run."""
    if not ACCESS.exists() or not reachable(json.loads(ACCESS.read_text())):
        print(
            "bench | The environment local is not running (make deploy): its models are not measured"
        )
        return {}
    access = json.loads(ACCESS.read_text())
    if not access.get("bench_api_key"):
        print(
            f"bench | {ACCESS} has no key of a client without a limit: nothing is measured through the gateway"
        )
    digits = load_digits()
    rows, labels = digits.data[:64].tolist(), digits.target[:64].tolist()
    bodies = [instances(row) for row in rows]
    variants = local_variants(access)
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
    for variant in variants:
        compare_routes(variant, rows, labels)
    for number in range(repetitions):
        for variant in variants:
            for route in variant.routes:
                measure(route.url, route.headers, bodies, 16, 1)
                for connections in CONNECTIONS:
                    figures = measure(route.url, route.headers, bodies, connections, seconds)
                    figures["memory_mb"] = service_memory_mb(variant)
                    listed = rounds.setdefault(route.name, {}).setdefault(str(connections), [])
                    listed.append(figures)
                print_round(number, repetitions, route.name, figures)
    return {name: {c: medians(listed) for c, listed in by.items()} for name, by in rounds.items()}


# -- report ---------------------------------------------------------------------------------------


def print_round(number: int, repetitions: int, name: str, figures: Mapping[str, float]) -> None:
    rate = figures["requests_per_second"]
    print(f"{number + 1}/{repetitions}  {name}: {rate:.0f} requests/s", flush=True)


def main() -> int:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    # So that a stopped bench ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    BUILD.mkdir(parents=True, exist_ok=True)
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {}
    failed: dict[str, str] = {}
    local: dict[str, dict[str, dict[str, float]]] = {}
    install("wrk")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        cases = prepare(folder)
        for number in range(repetitions):
            for server in SERVERS:
                if server.name in failed:
                    continue
                try:
                    figures = measure_server(server, folder, cases[server.venv], seconds)
                except BenchError as error:
                    failed[server.name] = "\n".join([str(error), *error.__notes__])
                    print(f"{number + 1}/{repetitions}  {server.name}: FAILED", flush=True)
                    continue
                rounds.setdefault(server.name, []).append(figures)
                print_round(number, repetitions, server.name, figures[str(CONNECTIONS[-1])])
        try:
            local = measure_local(repetitions, min(seconds, 2))
        except (BenchError, OSError) as error:
            failed["local environment"] = str(error)
    servers = {
        name: {c: medians(r[c] for r in listed) for c in listed[0]}
        for name, listed in rounds.items()
        if name not in failed
    }
    report(servers, local, rounds, failed)
    return 1 if failed else 0


Figures = Mapping[str, Mapping[str, Mapping[str, float]]]


def ratios_of(servers: Figures, local: Figures) -> dict[str, float]:
    """Requests per second of one server over those of another, at 64 connections."""
    pairs = [(ONNX, MLSERVER), (ONNX, FLASK), (ONNX, BENTOML), (ONNX, NO_MODEL)]
    pairs += [(SKLEARN, MLSERVER), (SKLEARN, FLASK), (FRONT, BACKEND)]
    pairs += [(name, name.replace(", gateway", ", host")) for name in local if ", gateway" in name]
    both = {**servers, **local}
    rate = {name: by["64"]["requests_per_second"] for name, by in both.items()}
    return {f"{a} / {b}": round(rate[a] / rate[b], 3) for a, b in pairs if a in rate and b in rate}


def targets_of(servers: Figures, ratios: Mapping[str, float]) -> list[dict[str, Any]]:
    """Which targets are met; only what was measured."""
    found = []
    for least, peer in ((10, MLSERVER), (40, FLASK), (0.5, NO_MODEL)):
        value = ratios.get(f"{ONNX} / {peer}")
        if value is not None:
            found.append((f"at least {least:g} times {peer}", value, value >= least))
    if ONNX in servers:
        p99 = servers[ONNX]["16"]["p99_ms"]
        most = max(by["memory_mb"] for by in servers[ONNX].values())
        found.append(("p99 at 16 connections below 5 ms", p99, p99 < 5))
        found.append(("memory of one service below 200 MB", most, most < 200))
    return [{"name": name, "value": value, "met": met} for name, value, met in found]


def report(servers: Figures, local: Figures, rounds: Any, failed: Mapping[str, str]) -> None:
    ratios = ratios_of(servers, local)
    targets = targets_of(servers, ratios)
    packages = {
        name: run(
            [Path(sys.prefix) / "bin/uv", "pip", "freeze", "--python", BUILD / "venvs" / name]
        )
        for name in VENVS
    }
    document = {
        "ok": not failed,
        "failed": failed,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
        "packages": {name: text.split() for name, text in packages.items()},
        "servers": servers,
        "local": local,
        "rounds": rounds,
        "ratios": ratios,
        "targets": targets,
    }
    REPORT.write_text(json.dumps(document, indent=1) + "\n")
    rows = [["", "connections", "requests/s", "p50 ms", "p99 ms", "memory MB"]]
    for name, by in {**servers, **local}.items():
        for connections, figures in by.items():
            used = f"{figures['memory_mb']:.0f}" if "memory_mb" in figures else ""
            speed = f"{figures['requests_per_second']:.0f}"
            latencies = [f"{figures['p50_ms']:.2f}", f"{figures['p99_ms']:.2f}"]
            rows.append([name, connections, speed, *latencies, used])
    print("\n" + table(rows))
    print("\n    ratio of requests/s at 64 connections")
    for name, value in ratios.items():
        print(f"{value:9.2f}  {name}")
    print("\ntargets")
    for target in targets:
        print(
            f"{target['value']:9.2f}  {'met    ' if target['met'] else 'NOT MET'}  {target['name']}"
        )
    for name, error in failed.items():
        print(f"\nFAILED {name}: {error}")
    print(
        f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; every figure: {REPORT}"
    )


if __name__ == "__main__":
    sys.exit(main())
