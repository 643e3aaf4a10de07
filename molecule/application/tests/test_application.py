"""The application runs on the host's private address and has what it needs, its key as a file."""

from __future__ import annotations

import json

import pytest

KEY = "a-key-of-the-scenario"


@pytest.fixture
def address(host):
    """The private address of the host."""
    return next(a for a in host.interface.default().addresses if ":" not in a)


def test_it_answers_on_the_private_address_alone(host, address):
    script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).status)"
    result = host.run("python3 -c %s %s", script, f"http://{address}:8000/healthz")
    assert result.rc == 0, result.stderr + host.run("docker logs --tail 20 application").stdout
    assert result.stdout.strip() == "200"
    assert host.run("python3 -c %s http://127.0.0.1:8000/healthz", script).rc != 0


def test_it_is_told_where_everything_is(host, address):
    details = json.loads(host.check_output("docker inspect application"))[0]
    env = dict(item.split("=", 1) for item in details["Config"]["Env"])
    expected = {
        "HOST": address,
        "PORT": "8000",
        "PREDICTION_URL": "https://10.0.0.1",
        "PREDICTION_CA_FILE": "/etc/groundcrew/prediction-ca.pem",
        "API_KEY_FILE": "/run/secrets/api_key",
        "MODEL_NAME": "digits",
        "STORE_BUCKET": "scenario-store",
        "BATCH_JOB": "digits_nightly",
        "BATCH_POLL_SECONDS": "5",
        "AWS_ENDPOINT_URL": "http://192.0.2.1:5000",
    }
    assert {key: env.get(key) for key in expected} == expected
    assert details["HostConfig"]["NetworkMode"] == "host"
    assert KEY not in json.dumps(details)


def test_its_key_and_ca_are_files_it_can_read(host):
    files = "('/run/secrets/api_key', '/etc/groundcrew/prediction-ca.pem')"
    inside = f"print(*[open(name).read() for name in {files}])"
    said = host.check_output("docker exec application /usr/bin/python3 -c %s", inside)
    assert KEY in said and "BEGIN CERTIFICATE" in said
    (secret,) = host.check_output(
        "find /var/lib/groundcrew/services/application -path '*/secrets/*' -printf '%m %U %p\\n'"
    ).splitlines()
    assert secret.startswith("400 10001 ")
