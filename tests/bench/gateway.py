#!/usr/bin/env python3
"""What the gateway costs: HAProxy as deployed in `local`, against no gateway and against nginx with the same duties, in one run.

Usage: gateway.py [REPETITIONS [SECONDS]]     writes build/bench/gateway.json, prints a table and the targets

All three are asked from the network of the gateway's host, for the same predictions of the same services. nginx (of the
distribution) runs there too, for as long as this does: the same certificate, the key by a header, a limit a client, a line of JSON
a request in its log. At a steady 2,000 requests/s over 64 connections what counts is the added median; then as many as are answered.
The load generator, the gateways and the services share the processors. A target that is not met is printed and changes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from load import BenchError, in_namespace, install, measure, medians, table
from serving import ACCESS, BUILD, HEADERS, instances, model_variants, reachable, run
from sklearn.datasets import load_digits

REPORT = BUILD / "gateway.json"
CONNECTIONS = 64
RATE = 2000
NGINX_PORT = 9443
DIRECT, HAPROXY, NGINX = "prediction service, no gateway", "HAProxy as deployed", "nginx"
CONFIGURATION = """
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    log_format json escape=json
        '{{"request_id": "$request_id", "client": "$client", "path": "$uri", '
        '"status": $status, "time": $request_time}}';
    access_log {folder}/access.log json;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    map $http_x_api_key $client {{ default ""; "{key}" bench; }}
    limit_req_zone $client zone=clients:10m rate=1000000r/s;
    upstream services {{ {servers} keepalive 128; }}
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/certificate.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;
        keepalive_requests 1000000;
        client_max_body_size 1m;
        client_body_buffer_size 128k;
        location /v1/models/ {{
            if ($client = "") {{ return 401; }}
            limit_req zone=clients burst=100000 nodelay;
            proxy_pass http://services;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Api-Key "";
            proxy_set_header X-Client-Id $client;
            proxy_set_header X-Request-Id $request_id;
        }}
    }}
}}
"""


def gateway_host(access: Mapping[str, Any]) -> tuple[str, int]:
    """Its name, and a process in its network."""
    host = min(name for name in access["hosts"] if "gateway" in name)
    return host, int(run(["docker", "inspect", "--format", "{{.State.Pid}}", host]))


def services(access: Mapping[str, Any], process: int, port: int) -> list[str]:
    """address:port of each host that serves it, in the slot that answers there."""
    script = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[2:]):\n"
        "    try: socket.create_connection((sys.argv[1], port), 2); print(port); break\n"
        "    except OSError: pass"
    )
    found = []
    for name, address in sorted(access["hosts"].items()):
        if "prediction" in name:
            words = [sys.executable, "-c", script, address, str(port), str(port + 1)]
            answered = run([*in_namespace(process), *words]).strip()
            if not answered:
                raise BenchError(f"{name} does not answer at port {port}. Run: make deploy")
            found.append(f"{address}:{answered}")
    return found


@contextmanager
def nginx(host: str, process: int, key: str, servers: list[str]) -> Iterator[str]:
    """nginx in the gateway's network; yields its address."""
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as name:
        folder = Path(name)
        certificate = run(["docker", "exec", host, "cat", "/etc/haproxy/certificate.pem"])
        for file, text in (
            ("certificate.pem", certificate),
            (
                "nginx.conf",
                CONFIGURATION.format(
                    folder=folder,
                    key=key,
                    port=NGINX_PORT,
                    servers=" ".join(f"server {server};" for server in servers),
                ),
            ),
        ):
            (folder / file).touch(mode=0o600)
            (folder / file).write_text(text)
        # Its workers, which are another user's, write there.
        os.chmod(folder, 0o711)
        command = [*in_namespace(process), "/usr/sbin/nginx", "-c", str(folder / "nginx.conf")]
        started = subprocess.Popen([*command, "-g", "daemon off;"], stderr=subprocess.PIPE)
        try:
            time.sleep(1)
            if started.poll() is not None:
                raise BenchError(f"nginx does not start: {started.stderr.read().decode()}")  # type: ignore[union-attr]
            yield f"https://127.0.0.1:{NGINX_PORT}"
        finally:
            started.send_signal(signal.SIGQUIT)
            started.wait(10)


def main() -> int:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 4.0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    BUILD.mkdir(parents=True, exist_ok=True)
    if not ACCESS.exists() or not reachable(json.loads(ACCESS.read_text())):
        print("bench | The environment local is not running (make deploy): nothing to measure")
        return 1
    access = json.loads(ACCESS.read_text())
    install("wrk")
    install("nginx", "nginx-light")
    host, process = gateway_host(access)
    variant = next(v for v in model_variants(host) if v["framework"] == "sklearn")
    servers = services(access, process, int(variant["host_port"]))
    path = f"/v1/models/{variant['model']}:predict"
    key = {"X-Api-Key": access["bench_api_key"]}
    bodies = [instances(row) for row in load_digits().data[:64].tolist()]
    steady: dict[str, list[dict[str, float]]] = {}
    saturated: dict[str, list[dict[str, float]]] = {}
    try:
        with nginx(host, process, access["bench_api_key"], servers) as other:
            routes = {
                DIRECT: (f"http://{servers[0]}{path}", HEADERS),
                HAPROXY: (f"https://127.0.0.1:443{path}", {**HEADERS, **key}),
                NGINX: (f"{other}{path}", {**HEADERS, **key}),
            }
            for number in range(repetitions):
                for name, (url, headers) in routes.items():
                    where = {"namespace_of": process}
                    measure(url, headers, bodies, CONNECTIONS, 1, **where)
                    slow = measure(url, headers, bodies, CONNECTIONS, seconds, rate=RATE, **where)
                    fast = measure(url, headers, bodies, CONNECTIONS, seconds, **where)
                    steady.setdefault(name, []).append(slow)
                    saturated.setdefault(name, []).append(fast)
                    print(
                        f"{number + 1}/{repetitions}  {name}: {fast['requests_per_second']:.0f} requests/s; "
                        f"at {slow['requests_per_second']:.0f} p50 {slow['p50_ms']:.2f} ms",
                        flush=True,
                    )
    except BenchError as error:
        print(f"FAILED: {error}")
        return 1
    report(
        {name: medians(listed) for name, listed in steady.items()},
        {name: medians(listed) for name, listed in saturated.items()},
        {"steady": steady, "saturated": saturated},
    )
    return 0


def targets_of(
    steady: Mapping[str, Mapping[str, float]], saturated: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    added = round(steady[HAPROXY]["p50_ms"] - steady[DIRECT]["p50_ms"], 3)
    rate = {name: figures["requests_per_second"] for name, figures in saturated.items()}
    kept = round(rate[HAPROXY] / rate[DIRECT], 3)
    peer = round(rate[HAPROXY] / rate[NGINX], 3)
    return [
        {
            "name": f"at {RATE} requests/s the gateway adds at most 0.5 ms to the median",
            "value": added,
            "met": added <= 0.5,
        },
        {"name": "saturated: at least 0.5 of no gateway", "value": kept, "met": kept >= 0.5},
        {"name": "saturated: at least as much as nginx", "value": peer, "met": peer >= 1},
    ]


def report(
    steady: Mapping[str, Mapping[str, float]],
    saturated: Mapping[str, Mapping[str, float]],
    rounds: Any,
) -> None:
    targets = targets_of(steady, saturated)
    document = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
        "connections": CONNECTIONS,
        "steady": steady,
        "saturated": saturated,
        "rounds": rounds,
        "targets": targets,
    }
    REPORT.write_text(json.dumps(document, indent=1) + "\n")
    rows = [["", "requests/s", "p50 ms", "p99 ms", "saturated: requests/s", "p50 ms", "p99 ms"]]
    for name in steady:
        columns = [
            f"{figures[key]:.{digits}f}"
            for figures in (steady[name], saturated[name])
            for key, digits in (("requests_per_second", 0), ("p50_ms", 2), ("p99_ms", 2))
        ]
        rows.append([name, *columns])
    print("\n" + table(rows) + "\n\ntargets")
    for target in targets:
        print(
            f"{target['value']:9.2f}  {'met    ' if target['met'] else 'NOT MET'}  {target['name']}"
        )
    print(
        f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; every figure: {REPORT}"
    )


if __name__ == "__main__":
    sys.exit(main())
