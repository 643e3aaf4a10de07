"""The prediction services of the host answer right, and only those of its fleet run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

ASK = """
import json, sys, urllib.request as u
body = json.dumps({"instances": [[0] * 64] * 3}).encode()
request = u.Request(sys.argv[1], data=body, headers={"Content-Type": "application/json"})
print(u.urlopen(request, timeout=10).read().decode())
"""


@pytest.fixture
def address(host):
    """The private address of the host."""
    return next(a for a in host.interface.default().addresses if ":" not in a)


def test_the_model_predicts_on_its_port(host, address):
    result = host.run("python3 -c %s %s", ASK, f"http://{address}:18080/v1/models/digits:predict")
    assert result.rc == 0, result.stderr + host.run("docker logs --tail 20 digits-1").stdout
    assert json.loads(result.stdout) == {"predictions": [[0.1] * 10] * 3}


def test_the_service_is_told_its_model_and_reads_it_only(host):
    details = json.loads(host.check_output("docker inspect digits-1"))[0]
    env = dict(item.split("=", 1) for item in details["Config"]["Env"])
    assert env["MODEL_NAME"] == "digits" and env["MODEL_VERSION"] == "1"
    assert env["MODEL_DIRECTORY"] == "/models/digits/1" and env["PORT"] == "8080"
    (mount,) = details["Mounts"]
    assert (mount["Source"], mount["Destination"]) == ("/srv/models/digits/1", "/models/digits/1")
    assert not mount["RW"]
    assert details["HostConfig"]["Memory"] == 256 * 1024 * 1024
    assert details["Config"]["Labels"]["groundcrew.family"] == "prediction"


def test_models_of_other_fleets_do_not_run_here(host):
    assert host.check_output("docker ps --all --format '{{.Names}}'").split() == ["digits-1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verison": "2"}, ["models.yml", "digits", "verison"]),
        ({"framework": "sklaern"}, ["digits", "sklaern", "sklearn"]),
    ],
)
def test_bad_declaration_is_refused_and_the_service_stays(host, change, words):
    before = host.check_output("docker inspect -f '{{.Id}} {{.State.StartedAt}}' digits-1")
    declared = {"framework": "sklearn", "host_port": 18080, "version": "1", **change}
    extra = json.dumps({"prediction_models": {"digits": declared}})
    done = cloud.role("prediction", "-e", extra)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and all(word in said for word in words), said[-2000:]
    assert host.check_output("docker inspect -f '{{.Id}} {{.State.StartedAt}}' digits-1") == before
