#!/usr/bin/env python3
"""Drills: faults on purpose, under a steady load through the gateway; each writes build/drills/<name>.json.

Usage: run.py [--environment local] [--model digits] [--rate 200] [--short] [DRILL ...]      no drill: all of them

They change nothing that the last step of each does not bring back: playbooks/deploy_prediction.yml with what the inventory says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from drill import PLAYBOOK, ROOT, Drill, docker, settle
from groundcrew.load import Load, figures
from hosts import patch, rebuild

sys.path.insert(0, str(ROOT / "molecule/shared"))
from processes import kill_all

LEAST_REQUESTS = 20_000
NO_SUCH_IMAGE = "no.such.image/at-all@sha256:" + "0" * 64


def releases(drill: Drill) -> None:
    """Releases in a row: no request fails, and latency stays what it was."""
    load = drill.load()
    settle(5 if drill.short else 20)
    before = load.now()
    for number in range(1 if drill.short else 3):
        status, output = drill.release(
            "-e", drill.changed_models(env={"DRILL": f"{time.time():.0f}-{number}"})
        )
        drill.check(
            f"release {number + 1} ends well", status == 0, output[-2000:] if status else "yes"
        )
        drill.check(
            f"release {number + 1} took over",
            "handover | Stop what it replaces" in output,
            output[-2000:],
        )
    during = load.now()
    if not drill.short:
        settle(max(0.0, LEAST_REQUESTS / drill.rate - load.now()))
    samples = load.stop()
    drill.figures = {
        "before": figures([s for s in samples if s.at < before]),
        "during": figures([s for s in samples if before <= s.at < during]),
    }
    drill.none_failed(samples)


def bad_releases(drill: Drill) -> None:
    """An image that does not exist, one that never is ready, one that dies: refused, and nobody notices."""
    load = drill.load()
    wishes = {
        "no such image": {"image": NO_SUCH_IMAGE},
        "never ready": {"env": {"MODEL_DIRECTORY": "/nowhere"}, "ready_timeout_seconds": 10},
        "dies": {"resources": {"memory": "24m"}, "ready_timeout_seconds": 20},
    }
    for name, wish in list(wishes.items())[: 1 if drill.short else None]:
        status, output = drill.release("-e", drill.changed_models(**wish))
        drill.check(f"{name}: the run fails", status != 0, f"exit status {status}")
        drill.check(f"{name}: says what serves", "serves on" in output, output[-1500:])
    # Ready and right, and dead five seconds after its start.
    (host, *_) = drill.hosts("prediction")
    process = drill.start("-e", drill.changed_models(env={"DRILL": f"{time.time():.0f}"}))
    drill.on(
        host,
        "for i in $(seq 600); do"
        f" id=$(docker ps --quiet --filter name=^/{drill.model}-[0-9]+-next$);"
        ' if [ -n "$id" ]; then sleep 4; docker kill $id; exit; fi; sleep 0.2; done',
    )
    output, _ = process.communicate(timeout=900)
    drill.check("dies after five seconds: the run fails", process.returncode != 0, output[-1500:])
    drill.check("dies after five seconds: says what serves", "serves on" in output, output[-1500:])
    samples = load.stop()
    drill.none_failed(samples)


def interrupted(drill: Drill) -> None:
    """kill -9 of the whole run at random moments, then the same command again: it converges, and nobody notices."""
    chance = random.Random(20261126)
    load = drill.load()
    for number in range(1 if drill.short else 10):
        wish = ("-e", drill.changed_models(env={"DRILL": f"{time.time():.0f}-{number}"}))
        moment = chance.uniform(3, 30)
        process = drill.start(*wish)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moment)
        if process.poll() is None:
            kill_all(process.pid)
            process.communicate()
        status, output = drill.release(*wish)
        drill.check(
            f"killed after {moment:.1f} s, then again",
            status == 0,
            output[-2000:] if status else "yes",
        )
    samples = load.stop()
    drill.none_failed(samples)


def container_dies(drill: Drill) -> None:
    """The process of one prediction container is killed: only what was inside it may fail."""
    (host, *_) = drill.hosts("prediction")
    load = drill.load()
    settle(5)
    inspect = (
        "docker inspect --format '{{ '{{' }}%s{{ '}}' }}' "
        f"$(docker ps --quiet --filter name=^/{drill.model}-[0-9]+$)"
    )
    drill.on(host, inspect % ".State.Pid" + " | xargs kill -9")
    killed = load.now()
    settle(10)
    samples = load.stop()
    restarts = drill.on(host, inspect % ".RestartCount").split()[-1]
    drill.check("the engine started it again", int(restarts) >= 1, f"{restarts} times")
    failed = [s for s in samples if s.failed]
    drill.figures = figures(samples)
    drill.check("at most what was inside it failed", len(failed) <= load.connections, len(failed))
    late = [s for s in failed if s.at > killed + 3]
    drill.check("none failed 3 s later", not late, len(late))


def gateway_reloads(drill: Drill) -> None:
    """The gateway reads its configuration again and again: no connection is lost."""
    load = drill.load()
    settle(3)
    for host in drill.hosts("gateway"):
        drill.on(host, "for i in 1 2 3; do systemctl reload haproxy; sleep 2; done")
    settle(3)
    samples = load.stop()
    drill.none_failed(samples)


def canaries(drill: Drill) -> None:
    """A worse version and a slow one: each goes back by itself, and says why."""
    first = drill.models[drill.model]
    stable = str(first.get("version", "1"))
    worse, slow = (str(int(stable) + 9000 + number) for number in (1, 2))
    job = {"image": "training_digits", "model": drill.model, "gate": {"minimum": 0.05}}
    bounds = {"memory": "1500m", "timeout_minutes": 15}
    jobs = {
        # What 25 images teach is wrong for half of the digits.
        "worse": {**job, **bounds, "version": worse, "env": {"TRAINING_ROWS": "25"}},
        "slow": {**job, **bounds, "version": slow},
    }
    variants = [
        {"version": stable, "weight": 100},
        {"version": worse, "weight": 0},
        {"version": slow, "weight": 0, "resources": {"cpus": 0.03, "memory": "256m"}},
    ]
    if drill.short:
        variants.pop()
        del jobs["slow"]
    own = {key: value for key, value in first.items() if key not in ("version", "variants")}
    models = {**drill.models, drill.model: {**own, "variants": variants}}
    declared = ("-e", json.dumps({"models": models, "training_jobs": jobs}))
    for playbook in ("playbooks/train.yml", PLAYBOOK, "playbooks/deploy_gateway.yml"):
        status, output = drill.release(*declared, playbook=playbook)
        drill.check(f"{playbook} of all versions", status == 0, output[-2000:] if status else "yes")
    load = drill.load()
    tries = (("worse", worse, "golden cases of version"), ("slow", slow, "its p95 is"))
    for name, version, why in tries[: 1 if drill.short else None]:
        status, output = drill.release(
            *declared,
            *("-e", f"model={drill.model}", "-e", f"version={version}"),
            *("-e", "canary_seconds=15", "-e", json.dumps({"canary_limits": {"requests": 50}})),
            playbook="playbooks/canary.yml",
        )
        drill.check(f"{name}: it goes back", status != 0 and "went back to 0 %" in output, status)
        drill.check(f"{name}: it says why", why in output, output[-1500:])
        steps = json.loads((drill.build / "canary.json").read_text())["steps"]
        drill.check(f"{name}: it answers", "10 of 10" in steps[0]["golden"], steps[0]["golden"])
        drill.figures[name] = steps
    samples = load.stop()
    drill.figures["load"] = figures(samples)
    drill.none_failed(samples)
    if not drill.short:
        status, output = drill.release(playbook="deploy.yml")
        drill.check("the inventory's own release is deployed again", status == 0, output[-2000:])


def key_rotation(drill: Drill) -> None:
    """The key of a client changes, and changes back, while it is used: no request fails."""
    load = drill.load()
    settle(3)
    client = "bench" if drill.access["bench_api_key"] else "verify"
    for action in ("rotate", "revoke"):
        if action == "revoke":
            # The load's own change of keys: it takes the new one before the old one ends.
            access = json.loads((drill.build / "access.json").read_text())
            load.headers["X-Api-Key"] = access["bench_api_key"] or access["api_key"]
            settle(2)
        status, output = drill.release(
            *("-e", f"client={client}", "-e", f"action={action}"), playbook="playbooks/keys.yml"
        )
        drill.check(f"{action} ends well", status == 0, output[-1500:] if status else "yes")
    settle(2)
    samples = load.stop()
    drill.none_failed(samples)
    old = drill.access["bench_api_key"] or drill.access["api_key"]
    context = ssl.create_default_context(cafile=drill.access["ca_file"])
    request = urllib.request.Request(load.url, b"{}", {"X-Api-Key": old})
    try:
        urllib.request.urlopen(request, context=context, timeout=10)
        answered = 200
    except urllib.error.HTTPError as error:
        answered = error.code
    drill.check("the old key is refused", answered == 401, answered)


def host_dies(drill: Drill) -> None:
    """A whole prediction host goes: only what was inside it may fail; it comes back by itself."""
    (host, *others) = drill.hosts("prediction")
    if not others:
        drill.check("another host serves it too", True, "there is one host: nothing to drill")
        return
    load = drill.load()
    settle(5)
    docker("kill", host)
    killed = load.now()
    try:
        settle(10)
    finally:
        docker("start", host)
    started, back = load.now(), False
    question = f"docker ps --quiet --filter name=^/{drill.model}-[0-9]+$"
    while not back and load.now() < started + 60:
        settle(2)
        with contextlib.suppress(SystemExit):
            back = bool(drill.on(host, question).strip().splitlines()[1:])
    drill.check("it came back by itself", back, f"within {load.now() - started:.0f} s")
    settle(5)
    samples = load.stop()
    drill.figures = figures(samples)
    failed = [s for s in samples if s.failed]
    drill.check("at most what was inside it failed", len(failed) <= load.connections, len(failed))
    # A request's time counts from when it should have left.
    late = [s for s in failed if s.at > killed + 3]
    drill.check("none failed 3 s later", not late, len(late))


def slow_and_greedy(drill: Drill) -> None:
    """200 clients that never finish their headers, and one that floods: another client does not notice."""
    load = drill.load()
    settle(5 if drill.short else 15)
    before = load.now()
    address = urlsplit(drill.access["gateway_url"])
    context = ssl.create_default_context(cafile=drill.access["ca_file"])
    number = 50 if drill.short else 200
    slow = []
    for _ in range(number):
        connection = context.wrap_socket(
            socket.create_connection((address.hostname, address.port), timeout=20),
            server_hostname=address.hostname,
        )
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        slow.append(connection)
    flood = subprocess.run(
        [sys.executable, __file__, "--environment", drill.environment, "--flood", "8"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    flooded = json.loads(flood.stdout)
    settle(5)
    during = load.now()
    cut = 0
    for connection in slow:
        connection.settimeout(0.5)
        # Either an answer (408) and the end, or the end at once.
        with contextlib.suppress(OSError):
            while connection.recv(4096):
                pass
            cut += 1
        connection.close()
    samples = load.stop()
    calm = figures([s for s in samples if s.at < before])
    busy = figures([s for s in samples if before <= s.at < during])
    drill.figures = {"before": calm, "during": busy, "flood": flooded, "slow clients cut": cut}
    drill.none_failed(samples)
    drill.check("the slow ones are cut", cut == number, f"{cut} of {number}")
    drill.check("the flood is refused", flooded["refused"] > 0.9 * flooded["requests"], flooded)
    # A short run has too few requests for a p99 that means something.
    if not drill.short:
        ratio = busy["p99_ms"] / calm["p99_ms"]
        drill.check("the other's p99 at most doubles", ratio <= 2, round(ratio, 2))


def flood_for(environment: str, seconds: float) -> None:
    """A flood by client `flood`, in a process of its own; prints how many of its requests were refused (429)."""
    drill = Drill(environment, "", 300, True)
    key = drill.secret("clients/flood")["token"]
    model = min(drill.models)
    load = Load(
        url=f"{drill.access['gateway_url']}/v1/models/{model}:predict",
        headers={"X-Api-Key": key, "Content-Type": "application/json"},
        body=b"{}",
        ca_file=drill.access["ca_file"],
        rate=drill.rate,
        most_seconds=seconds,
    ).start()
    samples = load.wait()
    refused = sum(s.failed.startswith("429") for s in samples)
    print(json.dumps({"requests": len(samples), "refused": refused}))


DRILLS: dict[str, Callable[[Drill], None]] = {
    "rebuild": rebuild,
    "patch": patch,
    "releases": releases,
    "bad_releases": bad_releases,
    "interrupted": interrupted,
    "container_dies": container_dies,
    "host_dies": host_dies,
    "slow_and_greedy": slow_and_greedy,
    "gateway_reloads": gateway_reloads,
    "key_rotation": key_rotation,
    "canaries": canaries,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--environment", default="local")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--short", action="store_true", help="one of each instead of several")
    parser.add_argument("--flood", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=", ".join(DRILLS))
    wanted = parser.parse_args()
    if wanted.flood:
        flood_for(wanted.environment, wanted.flood)
        return
    unknown = [name for name in wanted.drills if name not in DRILLS]
    if unknown:
        parser.error(f"no drill is called '{unknown[0]}'; there are {', '.join(DRILLS)}")
    reports = ROOT / "build/drills"
    reports.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in wanted.drills or DRILLS:
        drill = Drill(wanted.environment, wanted.model, wanted.rate, wanted.short)
        began = time.monotonic()
        print(f"drill | {name}: {DRILLS[name].__doc__}", flush=True)
        DRILLS[name](drill)
        if name in ("releases", "bad_releases", "interrupted") and not wanted.short:
            drill.restore()
        ok = all(check["ok"] for check in drill.checks)
        report = {"ok": ok, "checks": drill.checks, "figures": drill.figures, "rate": wanted.rate}
        (reports / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
        for check in drill.checks:
            if not check["ok"]:
                print(f"  FAILED {check['name']}: {check['detail']}")
        said = json.dumps(drill.figures)
        print(
            f"  {'ok' if ok else 'FAILED'} in {time.monotonic() - began:.0f} s: {said}", flush=True
        )
        failed += [] if ok else [name]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; build/drills/ says more")


if __name__ == "__main__":
    main()
