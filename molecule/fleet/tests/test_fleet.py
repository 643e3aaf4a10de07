"""What a user of the deployed system sees, and what nobody may see."""

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import testinfra

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud
import contract

ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
BUILD = ROOT / "build/test"
REGISTRY_PORT = 6077  # local's and the tests' thousand
HOSTS = {
    "test-gateway-1": "10.78.0.10",
    "test-prediction-1": "10.78.0.11",
    "test-prediction-2": "10.78.0.12",
    "test-application-1": "10.78.0.21",
    "test-training-1": "10.78.0.31",
    "test-batch-1": "10.78.0.41",
}


@pytest.fixture(scope="module")
def access():
    return json.loads((BUILD / "access.json").read_text())


def ask(access, path, body=None, key=True, headers=()):
    """(status, answer, headers) of a request to the gateway."""
    request = urllib.request.Request(
        access["gateway_url"] + path,
        data=body,
        headers={"Content-Type": "application/json", **dict(headers)},
    )
    if key:
        request.add_header("X-Api-Key", access["api_key"])
    context = ssl.create_default_context(cafile=access["ca_file"])
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def on(name):
    return testinfra.get_host(f"ssh://{name}", ssh_config=str(BUILD / "ssh/config"), sudo=True)


def test_access_file(access):
    assert (BUILD / "access.json").stat().st_mode & 0o777 == 0o600
    assert access["hosts"] == HOSTS
    assert access["region"] == "us-east-1"
    assert Path(access["ca_file"]).exists()


def test_report(access):
    report = json.loads((BUILD / "verify.json").read_text())
    assert report["ok"] is True
    names = [check["name"] for check in report["checks"]]
    assert "digits-1 on test-prediction-1" in names and "digits-1 on test-prediction-2" in names
    assert all({"name", "ok", "detail"} <= set(check) for check in report["checks"])


def test_prediction_is_ten_probabilities(access):
    body = (BUILD / "request.json").read_bytes()
    status, answer, headers = ask(access, "/v1/models/digits:predict", body)
    assert status == 200
    for row in json.loads(answer)["predictions"]:
        assert len(row) == 10 and abs(sum(row) - 1) < 1e-6
    assert headers["X-Model-Version"] == "1" and "model;dur=" in headers["Server-Timing"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"not json", "JSON"),
        (b"{}", "instances"),
        (b'{"instances": [[1, 2, 3]]}', "64"),
        (json.dumps({"instances": [[0.0] * 63 + ["x"]]}).encode(), "63"),
        (b'{"instances": [[' + b"0," * 63 + b"NaN]]}", "NaN"),
    ],
)
def test_bad_request_says_why_and_the_service_stays_up(access, body, word):
    status, answer, _ = ask(access, "/v1/models/digits:predict", body)
    assert status == 400 and word in json.loads(answer)["error"]
    assert ask(access, "/v1/models/digits")[0] == 200


MODELS = ["digits", "digits_tf", "digits_mx", "digits_ox"]


@pytest.fixture(scope="module")
def expected(access):
    return gateway_predictions(access, "digits")


def gateway_predictions(access, model):
    key = {"X-Api-Key": access["api_key"]}
    url = f"{access['gateway_url']}/v1/models/{model}:predict"
    return contract.predictions(url, key, access["ca_file"])


@pytest.mark.parametrize("model", MODELS)
def test_every_framework_gives_the_same_answers(access, model, expected):
    contract.assert_same(gateway_predictions(access, model), expected, model)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bad", contract.BAD, ids=lambda bad: bad.name)
def test_every_framework_gives_the_same_refusals(access, model, bad):
    key = {"X-Api-Key": access["api_key"], **(bad.headers or {})}
    url = f"{access['gateway_url']}/v1/models/{model}"
    reply = contract.ask(url + bad.path, bad.body, key, access["ca_file"])
    assert reply.status == bad.status and bad.word in reply.said["error"], reply
    assert contract.ask(url, None, key, access["ca_file"]).status == 200


GRPC = """
import json, os, sys
import grpc, numpy
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow import make_ndarray, make_tensor_proto
credentials = grpc.ssl_channel_credentials(open("/ca.crt", "rb").read())
stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.secure_channel(sys.argv[1], credentials))
request = predict_pb2.PredictRequest()
request.model_spec.name = sys.argv[2]
rows = numpy.array(json.load(sys.stdin), dtype="float32")
(name,) = json.loads(os.environ["INPUTS"])
request.inputs[name].CopyFrom(make_tensor_proto(rows))
try:
    reply = stub.Predict(request, 20, metadata=[("x-api-key", os.environ.get("KEY", ""))])
except grpc.RpcError as error:
    sys.exit(error.code().name)
print(json.dumps(make_ndarray(list(reply.outputs.values())[0]).tolist()))
"""


def ask_by_grpc(access, model, rows, key):
    """TensorFlow Serving's own client, in the image that has it: the one that answers, from the registry as this machine sees it."""
    running = (
        on("test-prediction-1")
        .check_output("docker ps --no-trunc --format '{{.Image}}'")
        .splitlines()
    )
    (image,) = {name for name in running if "/tensorflow_serving_stand_in@" in name}
    image = f"127.0.0.1:{REGISTRY_PORT}/{image.partition('/')[2]}"
    done = subprocess.run(
        [
            "/usr/bin/docker",
            "run",
            "--rm",
            "--interactive",
            "--network=host",
            "--entrypoint=python",
            "--env=KEY",
            "--env=INPUTS",
            f"--volume={access['ca_file']}:/ca.crt:ro",
            image,
            "-c",
            GRPC,
            access["gateway_url"].removeprefix("https://"),
            model,
        ],
        check=False,
        input=json.dumps(rows),
        env={**os.environ, "KEY": key, "INPUTS": '["instances"]'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_grpc_through_the_gateway(access, expected):
    # gRPC goes past the front, so the division by 16 is the client's.
    rows = (contract.held_out()[:20] / 16).tolist()
    status, answer, said = ask_by_grpc(access, "digits_tf", rows, access["api_key"])
    assert status == 0, said
    contract.assert_same(np.array(json.loads(answer)), expected[:20], "digits_tf by gRPC")
    for model, key, code in (
        ("digits_tf", "wrong", "UNAUTHENTICATED"),
        ("digits", access["api_key"], "UNIMPLEMENTED"),
    ):
        status, _, said = ask_by_grpc(access, model, rows[:1], key)
        assert status != 0 and code in said, said


def test_nobody_notices_a_release_a_bad_one_a_death_and_reloads():
    """The short form of `make drill`, at a rate that leaves these processors time for the rest."""
    drills = [
        # First: a host comes back as what the inventory says, and the others leave releases of their own.
        "rebuild",
        "patch",
        "releases",
        "bad_releases",
        "container_dies",
        "host_dies",
        "slow_and_greedy",
        "gateway_reloads",
        "key_rotation",
        "canaries",
    ]
    command = [sys.executable, ROOT / "tests/drills/run.py", "--environment=test", "--rate=40"]
    done = subprocess.run(
        [*command, "--short", *drills], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_idle_training_host_switches_off_and_the_next_job_starts_it():
    name = "test-training-1"
    may_sleep = ["-e", json.dumps({"training_idle_stop_minutes": 30})]

    def state(what):
        return cloud.docker("inspect", "--format", f"{{{{.State.{what}}}}}", name)

    before = state("StartedAt")
    # As its timer would, half an hour after the last job and the last login. The host takes the command itself along.
    leave = "pkill -f 'sshd: [g]roundcrew'; sleep 1; groundcrew-job stop-when-idle --minutes 0"
    subprocess.run(
        ["/usr/bin/docker", "exec", name, "sh", "-c", leave], capture_output=True, check=False
    )
    deadline = time.monotonic() + 60
    # Docker starts such a container again, where EC2 stops the instance.
    while state("StartedAt") == before:
        assert time.monotonic() < deadline, "waited 60 s for the host to switch itself off"
        time.sleep(0.5)
    # What the account says of such an instance.
    (instance,) = [
        found["InstanceId"]
        for found in cloud.instances()
        if {"Key": "Name", "Value": name} in found["Tags"]
    ]
    cloud.client("ec2").stop_instances(InstanceIds=[instance])
    refused = cloud.playbook("playbooks/provision.yml")
    assert refused.returncode != 0 and f"{name} is gone" in refused.stdout + refused.stderr
    done = cloud.playbook("playbooks/train.yml", *may_sleep)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert state("Running") == "true"
    assert on(name).service("groundcrew-idle-stop.timer").is_running


def test_strangers_are_refused(access):
    body = (BUILD / "request.json").read_bytes()
    assert ask(access, "/v1/models/digits:predict", body, key=False)[0] == 401
    assert (
        ask(access, "/v1/models/digits:predict", body, key=False, headers={"X-Api-Key": "wrong"})[0]
        == 401
    )
    assert ask(access, "/v1/models/unknown:predict", body)[0] == 404
    assert ask(access, "/v1/other")[0] == 404
    assert ask(access, "/v1/models/digits:predict", b"x" * (2 << 20))[0] == 413


def test_the_key_is_kept_hashed_and_secrets_are_not_readable(access, host):
    assert host.run(f"grep -rq {access['api_key']} /etc/haproxy").rc == 1
    secret = (
        on("test-application-1")
        .check_output("find /var/lib/groundcrew/services -path '*secrets*' -type f -printf '%m\\n'")
        .split()
    )
    assert secret and set(secret) == {"400"}


def test_only_the_gateway_is_published_on_this_machine():
    ports = subprocess.run(
        ["/usr/bin/docker", "ps", "--filter", "label=groundcrew.environment=test", "--format", "{{.Names}} {{.Ports}}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    published = dict(line.split(" ", 1) for line in ports.splitlines() if "->" in line)
    assert published == {
        "test-gateway-1": "127.0.0.1:9443->443/tcp",
        "test-registry": "127.0.0.1:6077->5000/tcp",
    }


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "test-gateway-1"])
def test_hosts_listen_on_the_private_address_only(name):
    sockets = on(name).check_output("ss -Htln | awk '{print $4}'").split()
    public = [
        address for address in sockets if not address.startswith((HOSTS[name], "127.", "[::1]"))
    ]
    assert {address.rsplit(":", 1)[1] for address in public} <= {"22"}, public


def test_batch_job_is_installed_and_has_run(access):
    assert on("test-batch-1").file("/etc/cron.d/groundcrew-batch-digits_nightly").mode == 0o644
    status, answer, _ = ask(access, "/api/batch", key=False)
    run = json.loads(answer)
    assert status == 200 and run["rows"] == 360 and run["items"][0]["instance"]


def test_no_container_is_privileged():
    listed = subprocess.run(
        ["/usr/bin/docker", "ps", "-q", "--filter", "label=groundcrew.environment=test"], capture_output=True, text=True, check=True
    ).stdout.split()  # fmt: skip
    flags = subprocess.run(
        ["/usr/bin/docker", "inspect", "-f", "{{.HostConfig.Privileged}}", *listed], capture_output=True, text=True, check=True
    ).stdout.split()  # fmt: skip
    assert set(flags) == {"false"} and len(flags) == 7


def test_every_target_is_scraped(host):
    answer = on("test-batch-1").check_output(
        "python3 -c \"import urllib.request as u; print(u.urlopen('http://10.78.0.41:9090/api/v1/targets').read().decode())\""
    )
    targets = json.loads(answer)["data"]["activeTargets"]

    def of(target):
        return tuple(target["labels"].get(key, "") for key in ("job", "service", "host"))

    # A service answers in one of its two slots.
    up = {of(target) for target in targets if target["health"] == "up"}
    assert not {of(target) for target in targets} - up
