"""One contract, every framework: the same answers, the same refusals, and nobody takes another down."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud
import contract
from groundcrew.services import expand_models, frameworks

MODELS = yaml.safe_load(Path(os.environ["GROUNDCREW_TEST_VARIABLES"]).read_text())["models"]
FRAMEWORKS = frameworks(map(str, (cloud.ROOT / "roles/prediction/vars/frameworks").glob("*.yml")))
VARIANTS = {
    variant["model"]: variant
    for variant in expand_models(MODELS, FRAMEWORKS)
    if variant["fleet"] == "prediction"
}
BEHIND = [name for name, variant in VARIANTS.items() if variant["framework"] != "sklearn"]
ROW = json.dumps({"instances": [contract.ROW]}).encode()

every_model = pytest.mark.parametrize("model", VARIANTS)


def port_of(model: str) -> int:
    """Which of a service's two ports has it: each release takes the other one."""
    first = VARIANTS[model]["host_port"]
    with socket.socket() as probe:
        return first if probe.connect_ex((cloud.ADDRESS, first)) == 0 else first + 1


def url(model: str, path: str = "") -> str:
    return f"http://{cloud.ADDRESS}:{port_of(model)}/v1/models/{model}{path}"


def backend_of(host, model: str) -> str:
    """The name of a service's second container."""
    label = '{{ index .Config.Labels "groundcrew.backend" }}'
    return host.check_output("docker inspect -f %s %s-1", label, model)


def wait_for(condition, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.5)


def answers(model: str) -> bool:
    try:
        return contract.ask(url(model, ":predict"), ROW).status == 200
    except OSError:  # its front is being started
        return False


@pytest.fixture(scope="module")
def expected():
    return contract.predictions(url("digits", ":predict"))


@every_model
def test_the_same_answers(model, expected):
    contract.assert_same(contract.predictions(url(model, ":predict")), expected, model)


@every_model
def test_what_an_answer_says_of_itself(model):
    reply = contract.ask(url(model, "/versions/1:predict"), ROW, {"X-Request-Id": "asked-here"})
    assert reply.status == 200 and reply.headers["X-Request-Id"] == "asked-here"
    assert reply.headers["X-Model-Version"] == "1"
    assert [entry.split(";")[0] for entry in reply.headers["Server-Timing"].split(", ")] == [
        "queue",
        "model",
        "total",
    ]
    (state,) = contract.ask(url(model)).said["model_version_status"]
    assert (state["version"], state["state"]) == ("1", "AVAILABLE")


@every_model
@pytest.mark.parametrize("bad", contract.BAD, ids=lambda bad: bad.name)
def test_the_same_refusals(model, bad):
    reply = contract.ask(url(model, bad.path), bad.body, bad.headers)
    assert reply.status == bad.status and bad.word in reply.said["error"], reply
    assert contract.ask(url(model, ":predict"), ROW).status == 200


@every_model
def test_the_same_metrics(model):
    address = f"http://{cloud.ADDRESS}:{port_of(model)}/metrics"
    with urllib.request.urlopen(address, timeout=20) as reply:
        text = reply.read().decode()
    for name in (
        "requests_total",
        "request_seconds_bucket",
        "batch_size_bucket",
        "model_info",
        "in_flight",
    ):
        assert f"groundcrew_prediction_{name}{{" in text
    assert f'framework="{VARIANTS[model]["framework"]}"' in text


def test_only_fronts_are_published_and_the_rest_is_closed(host):
    published = host.check_output("docker ps --format '{{.Names}} {{.Ports}}'")
    for line in published.splitlines():
        name, _, ports = line.partition(" ")
        where = {part.split("->")[0] for part in ports.split(", ") if "->" in part}
        assert all(address.startswith(f"{cloud.ADDRESS}:") for address in where), line
        if name == backend_of(host, "digits_tf"):
            assert where == {f"{cloud.ADDRESS}:{VARIANTS['digits_tf']['grpc_port']}"}
        elif "-" in name and not name.endswith("-1"):
            assert not where, line
    for name in host.check_output("docker ps --format '{{.Names}}'").split():
        (found,) = json.loads(host.check_output("docker inspect %s", name))
        settings = found["HostConfig"]
        assert settings["ReadonlyRootfs"] and settings["CapDrop"] == ["ALL"], name
        assert not settings["Privileged"] and found["Config"]["User"] not in ("", "0", "0:0"), name
        assert all(not mount["RW"] for mount in found["Mounts"] if mount["Type"] == "bind"), name
    (front,) = json.loads(host.check_output("docker inspect digits-1"))
    assert front["HostConfig"]["Memory"] == 256 * 1024 * 1024


@pytest.mark.parametrize("model", BEHIND)
def test_a_server_that_dies_comes_back_and_takes_nobody_with_it(host, model):
    backend = backend_of(host, model)
    host.check_output("docker kill --signal KILL %s", backend)
    # By hand killed, the engine leaves it down: as long as it is, the front says so.
    reply = contract.ask(url(model, ":predict"), ROW)
    assert reply.status == 503 and "not available" in reply.said["error"], reply
    assert contract.ask(url(model)).status == 503
    others = [name for name in VARIANTS if name != model]
    assert all(answers(name) for name in others)
    host.check_output("docker start %s", backend)
    wait_for(lambda: answers(model), f"{model} to answer again")


@pytest.mark.parametrize("model", ["digits_mx", "digits_ox"])
def test_a_worker_that_dies_of_a_request_is_started_again(host, model):
    """What a crash of the model's library is: the process that predicts is gone in the middle of its work."""
    top = host.check_output("docker top %s -eo pid,args", backend_of(host, model))
    workers = [line.split()[0] for line in top.splitlines() if "model_service_worker" in line]
    assert workers, top
    host.check_output("kill -9 %s", " ".join(workers[:1]))
    assert all(answers(name) for name in VARIANTS if name != model)
    wait_for(lambda: answers(model), f"{model} to answer again")
    # Its server went on: only the worker was started anew.
    after = host.check_output("docker top %s -eo pid,args", backend_of(host, model))
    assert workers[0] not in [line.split()[0] for line in after.splitlines()]
    state = host.check_output("docker inspect -f {{.RestartCount}} %s", backend_of(host, model))
    assert state == "0"


@pytest.mark.parametrize("model", ["digits", "digits_mx"])
def test_a_model_file_that_was_damaged_is_refused_by_name(host, model):
    name = "model.joblib" if model == "digits" else f"{model}.mar"
    file = f"/srv/models/{model}/1/{name}"
    host.check_output(
        f"cp -p {file} /root/kept && chmod u+w {file} && printf x | dd of={file} bs=1 seek=9 conv=notrunc"
    )
    try:
        host.check_output("docker restart --time 5 %s-1", model)
        wait_for(
            lambda: "sha256" in host.run("docker logs --tail 5 %s-1 2>&1", model).stdout,
            "the reason in the log",
        )
        assert name in host.run("docker logs --tail 5 %s-1 2>&1", model).stdout
        assert all(answers(other) for other in VARIANTS if other != model)
    finally:
        host.check_output(f"cp -p /root/kept {file}")
    host.check_output("docker restart --time 5 %s-1", model)
    wait_for(lambda: answers(model), f"{model} to answer again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verison": "2"}, ["models.yml", "digits", "verison"]),
        ({"framework": "sklaern"}, ["digits", "sklaern", "sklearn"]),
        ({"resources": {"gpus": 1}}, ["digits-1", "gpus", "no GPU"]),
        ({"version": "7"}, ["digits", "7", "models.yml"]),
    ],
)
def test_bad_declaration_is_refused_and_the_service_stays(host, change, words):
    before = host.check_output("docker inspect -f '{{.Id}} {{.State.StartedAt}}' digits-1")
    models = {**MODELS, "digits": {**MODELS["digits"], **change}}
    done = cloud.playbook("playbooks/deploy_prediction.yml", "-e", json.dumps({"models": models}))
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and all(word in said for word in words), said[-2000:]
    assert host.check_output("docker inspect -f '{{.Id}} {{.State.StartedAt}}' digits-1") == before


def test_a_new_version_and_back_by_a_rollback_without_a_number(host):
    models = {**MODELS, "legacy": {"framework": "flask", "version": "2"}}
    jobs = yaml.safe_load(Path(os.environ["GROUNDCREW_TEST_VARIABLES"]).read_text())[
        "training_jobs"
    ]
    jobs = {"legacy": {**jobs["legacy"], "version": "2"}}
    both = json.dumps({"models": models, "training_jobs": jobs})
    for playbook in ("train", "deploy_prediction"):
        done = cloud.playbook(f"playbooks/{playbook}.yml", "-e", both)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert contract.ask(url("legacy", ":predict"), ROW).headers["X-Model-Version"] == "2"
    for expected in ("1", "2", "1"):
        done = cloud.playbook("playbooks/rollback.yml", "-e", "model=legacy", "-e", both)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        assert f"legacy-{expected}" in done.stdout and "models.yml" in done.stdout
        assert contract.ask(url("legacy", ":predict"), ROW).headers["X-Model-Version"] == expected
    done = cloud.playbook("playbooks/rollback.yml", "-e", "model=digits")
    assert done.returncode != 0 and "nothing to go back to" in " ".join(done.stdout.split())
