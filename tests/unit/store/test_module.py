"""The Ansible module model_store, run by Ansible on this machine.

The module's own code is thin; what it hands over is tested beside this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from groundcrew import model_store
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).resolve().parents[3]
# moto keeps one cloud a process, whatever the number of its servers.
BUCKET = "groundcrew-module-test-store"
MODELS = [{"name": "digits", "version": "1"}]


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def published(store, artifact, details, monkeypatch) -> dict[str, str]:
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=store["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket=BUCKET)
    if not model_store.versions(client, BUCKET, "digits"):
        held = model_store.claim(client, BUCKET, "digits", "1")
        model_store.publish(client, BUCKET, held, artifact, details)
    return store


def module(tmp_path: Path, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run the module on this machine by an ad hoc command; its result."""
    given = {"bucket": BUCKET, "models": MODELS, "directory": str(tmp_path / "srv"), **arguments}
    command = [str(Path(sys.executable).parent / "ansible"), "localhost", "-c", "local"]
    command += ["-m", "model_store", "-a", json.dumps(given), *(["--check"] if check else [])]
    # A configuration of its own, so that the repository's does not matter.
    configuration = tmp_path / "ansible.cfg"
    configuration.touch()
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(configuration),
        "ANSIBLE_LIBRARY": str(ROOT / "plugins" / "modules"),
        "ANSIBLE_MODULE_UTILS": str(ROOT / "plugins" / "module_utils"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        "ANSIBLE_NOCOLOR": "true",
    }
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "=> {" in ended.stdout, ended.stdout + ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout[ended.stdout.index("=> {") + 3 :])
    # The callback takes these out of the result and shows them in its own way.
    return {**result, "failed": "FAILED!" in ended.stdout, "log": ended.stderr}


def test_fetch_twice_and_query(published, tmp_path):
    first = module(tmp_path)
    assert first["changed"], first
    assert first["fetched"] == ["digits/1"]
    assert first["models"][0]["metrics"] == {"accuracy": 0.97}
    assert model_store.verify_directory(tmp_path / "srv" / "digits" / "1")
    assert not module(tmp_path)["changed"]
    asked = module(tmp_path, state="query", models=[*MODELS, {"name": "digits", "version": "5"}])
    assert asked["models"][0]["versions"] == ["1"]
    assert "has versions 1" in asked["missing"][0]["message"]


def test_missing_version_fails_with_what_the_store_has(published, tmp_path):
    failed = module(tmp_path, models=[{"name": "digits", "version": "7"}])
    assert failed["failed"]
    assert "version 7 is not in the store" in failed["msg"]
    assert "has versions 1" in failed["msg"]


def test_check_mode_without_a_store_warns(store, tmp_path, monkeypatch):
    for name, value in {**store, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    would = module(tmp_path, check=True)
    assert would["changed"]
    assert would["fetched"] == ["digits/1"]
    assert "cannot be reached" in would["log"]
    assert not (tmp_path / "srv").exists()
    asked = module(tmp_path, check=True, state="query")
    assert asked["missing"][0]["version"] == "1"
    assert module(tmp_path, state="query")["failed"]


def test_what_a_container_mounts_is_not_pruned(published, artifact, details, tmp_path, monkeypatch):
    client = boto3.client("s3", endpoint_url=published["AWS_ENDPOINT_URL"])
    for version in ("2", "3"):
        if version not in model_store.versions(client, BUCKET, "digits"):
            held = model_store.claim(client, BUCKET, "digits", version)
            model_store.publish(client, BUCKET, held, artifact, details)
    for version in ("1", "2"):
        module(tmp_path, models=[{"name": "digits", "version": version}])
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\n[ $1 = ps ] && echo 0123 || echo {tmp_path}/srv/digits/1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    done = module(tmp_path, models=[{"name": "digits", "version": "3"}], keep=0)
    assert done["pruned"] == ["digits/2"] and (tmp_path / "srv/digits/1").is_dir()
