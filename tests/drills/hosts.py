"""The drill of hosts that are gone: terminated through the AWS API, brought back by playbooks/rebuild.yml."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drill import ROOT, Drill, docker, settle
from groundcrew.load import figures

sys.path.insert(0, str(ROOT / "molecule/shared"))
from processes import kill_all

PLAYBOOK = "playbooks/rebuild.yml"
FLEETS = ("prediction", "gateway", "application", "training", "batch")
# Until health checks have taken a host out.
DETECTION_SECONDS = 3


def terminate(drill: Drill, names: list[str]) -> None:
    """As somebody's accident would: the instance is gone, and its machine with it."""
    ec2 = drill.cloud("ec2")
    for name in names:
        pages = ec2.describe_instances(
            Filters=[
                {"Name": "tag:Name", "Values": [name]},
                {"Name": "instance-state-name", "Values": ["pending", "running", "stopped"]},
            ]
        )
        for instance in (i for page in pages["Reservations"] for i in page["Instances"]):
            number = instance["InstanceId"]
            ec2.modify_instance_attribute(InstanceId=number, DisableApiTermination={"Value": False})
            ec2.terminate_instances(InstanceIds=[number])
        docker("rm", "--force", "--volumes", name)


def machines(drill: Drill) -> dict[str, str]:
    """Host name to the container that stands for its machine."""
    form = "{{.Names}} {{.ID}}"
    listed = docker(
        "ps", "--filter", f"label=groundcrew.environment={drill.environment}", "--format", form
    )
    return dict(line.split() for line in listed.splitlines())


def rebuilt(drill: Drill, what: str, names: list[str]) -> dict[str, float]:
    """Run the playbook and check what it promises; returns the seconds of each phase."""
    before = machines(drill)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "phases.json"
        began = time.monotonic()
        process = drill.start(playbook=PLAYBOOK, GROUNDCREW_PHASES=str(file))
        output, _ = process.communicate(timeout=1200)
        took = time.monotonic() - began
        phases: dict[str, float] = json.loads(file.read_text())
    drill.check(f"{what}: it ends well", process.returncode == 0, output[-2500:])
    same = len(re.findall("another machine, the same", output))
    drill.check(f"{what}: each has its fingerprint and releases again", same == len(names), same)
    after = machines(drill)
    kept = {name for name in after if before.get(name) == after[name]}
    others = set(after) - set(names)
    drill.check(
        f"{what}: the others are the machines they were", others <= kept, sorted(others - kept)
    )
    # What runs on the controller for all of them is said of one of them, with an arrow.
    touched = sorted(others & set(re.findall(r"^changed: \[([^\] ]+)\]", output, re.MULTILINE)))
    drill.check(f"{what}: nothing was changed on the others", not touched, touched)
    return {"all of it": round(took, 1), **{name: s for name, s in phases.items() if s >= 1}}


def bake(drill: Drill) -> None:
    """A machine image of the first prediction host, for those that are launched from then on."""
    host = drill.hosts("prediction")[0]
    status, output = drill.release(playbook="playbooks/bake.yml", limit=host)
    drill.check("an image is baked", status == 0, output[-2500:] if status else "yes")


def rebuild(drill: Drill) -> None:
    """Hosts are terminated and come back: one of each fleet, one from a baked image, all at once, with the controller killed."""
    hosts = sorted(set(drill.access["hosts"]))
    seconds: dict[str, dict[str, float]] = {
        "nothing to rebuild": rebuilt(drill, "nothing to rebuild", [])
    }
    load: dict[str, Any] = {}

    def one(victim: str, what: str, under_load: bool) -> None:
        running = drill.load() if under_load else None
        settle(3 if running else 0)
        terminate(drill, [victim])
        killed = running.now() if running else 0.0
        seconds[what] = rebuilt(drill, what, [victim])
        if running:
            samples = running.stop()
            late = [s for s in samples if s.failed and s.at > killed + DETECTION_SECONDS]
            load[what] = figures(samples)
            drill.check(
                f"{what}: no request failed after {DETECTION_SECONDS} s", not late, len(late)
            )

    prediction = drill.hosts("prediction")[-1]
    # Somebody else has to serve meanwhile.
    several = len(hosts) > 1
    if not (drill.short and several):
        for fleet in ["prediction"] if drill.short else FLEETS:
            victim = drill.hosts(fleet)[-1]
            one(victim, victim, several and fleet != "gateway")
    if several:
        bake(drill)
        try:
            one(prediction, f"{prediction}, baked", True)
        finally:
            # Hosts start from their fleet's own image again.
            (drill.build / "machine_images.yml").unlink(missing_ok=True)
    if not drill.short:
        terminate(drill, hosts)
        seconds["all at once"] = rebuilt(drill, "all at once", hosts)
        for moment in (8, 20, 35):
            terminate(drill, [prediction])
            process = drill.start(playbook=PLAYBOOK)
            time.sleep(moment)
            kill_all(process.pid)
            process.communicate()
            what = f"controller killed after {moment} s"
            seconds[what] = rebuilt(drill, what, [prediction])
    drill.figures = {"seconds": seconds, "load": load}
    print_table(seconds)


def patch(drill: Drill) -> None:
    """A prediction host is patched, and rebooted whatever there was to upgrade: nobody notices."""
    victim = drill.hosts("prediction")[-1]
    alone = len(drill.hosts("prediction")) == 1
    load = drill.load()
    settle(3)
    started = docker("inspect", "--format", "{{.State.StartedAt}}", victim)
    status, output = drill.release(
        *("-e", "reboot=always"), playbook="playbooks/patch.yml", limit=victim
    )
    if alone:
        drill.check("the only host is refused", status != 0 and "accept_downtime" in output, status)
        load.stop()
        return
    drill.check("it ends well", status == 0, output[-2500:])
    again = docker("inspect", "--format", "{{.State.StartedAt}}", victim)
    drill.check("it was rebooted", again != started, again)
    settle(3)
    samples = load.stop()
    drill.none_failed(samples)


def print_table(seconds: dict[str, dict[str, float]]) -> None:
    phases = list(dict.fromkeys(phase for of in seconds.values() for phase in of))
    width = max(map(len, phases))
    for number, name in enumerate(seconds, 1):
        print(f"  {number}: {name}")
    print("  " + "seconds".ljust(width) + "".join(f"{n:>8}" for n in range(1, len(seconds) + 1)))
    for phase in phases:
        cells = "".join(f"{of[phase]:8.1f}" if phase in of else " " * 8 for of in seconds.values())
        print("  " + phase.ljust(width) + cells)
