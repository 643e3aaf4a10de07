"""Exports of the network: what surrounds an artifact, with a function of NumPy in its place."""

from __future__ import annotations

import importlib.util
import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import network
import numpy as np
import pytest
from groundcrew import golden, model_store
from groundcrew.errors import GroundcrewError
from groundcrew.training_job import Job
from moto.server import ThreadedMotoServer
from network import Network, Predict

BUCKET = "groundcrew-export-test-store"
REQUIRED = {
    "MODEL_NAME": "digits_x",
    "MODEL_VERSION": "1",
    "STORE_BUCKET": BUCKET,
    "SOURCE_MODEL": "digits",
    "SOURCE_VERSION": "3",
    "GATE_MINIMUM": "0.95",
}


def some_network() -> Network:
    random = np.random.default_rng(0)
    widths = [64, 12, 10]
    return Network(
        [random.normal(size=(a, b)) for a, b in itertools.pairwise(widths)],
        [random.normal(size=width) for width in widths[1:]],
    )


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """An S3 client; the store has version 3 of digits, whose held-out images it gets all right."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket=BUCKET)
    yield client
    patch.undo()
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def _source(client: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("source")
    layers = some_network()
    images = np.random.default_rng(1).integers(0, 17, (30, 64)).astype(np.float64)
    answer = layers.forward(images / 16)
    layers.save(directory / network.NETWORK)
    network.save_holdout(directory / network.HOLDOUT, images, answer.argmax(axis=1))
    publish(client, "digits", "3", directory, images[:2], answer[:2])


def publish(
    client: Any, model: str, version: str, directory: Path, images: np.ndarray, answer: np.ndarray
) -> None:
    cases = [
        {"request": {"instances": [a.tolist()]}, "response": {"predictions": [b.tolist()]}}
        for a, b in zip(images, answer, strict=True)
    ]
    (directory / "golden.json").write_text(json.dumps({"cases": cases, "tolerance": 1e-6}))
    manifest = {
        "framework": "sklearn",
        "signature": {"inputs": {"shape": [64]}},
        "metrics": {"accuracy": 1.0},
        "data": {"sha256": "0"},
    }
    held = model_store.claim(client, BUCKET, model, version)
    model_store.publish(client, BUCKET, held, directory, manifest)


def write(layers: Network, job: Job) -> None:
    (job.directory / "variables").mkdir()
    layers.save(job.directory / "variables" / "artifact.npz")


def right(directory: Path) -> Predict:
    return Network.load(directory / "variables" / "artifact.npz").forward


def export(monkeypatch: pytest.MonkeyPatch, load: network.Load, **changes: str) -> int:
    for name, value in {**REQUIRED, **changes}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        return network.main("paper", "1.0", write, load)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_export_is_published_with_its_origin(client, monkeypatch, capsys, tmp_path):
    assert export(monkeypatch, right) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    fetched = model_store.fetch(client, BUCKET, "digits_x", "1", tmp_path / "1")
    manifest = fetched.manifest
    source, digest = model_store.read_manifest(client, BUCKET, "digits", "3")
    assert result["manifest_sha256"] == fetched.manifest_sha256
    assert result["metrics"]["accuracy"] == manifest["metrics"]["accuracy"] == 1.0
    assert (manifest["framework"], manifest["framework_version"]) == ("paper", "1.0")
    assert manifest["derived_from"] == {
        "model": "digits",
        "version": "3",
        "manifest_sha256": digest,
    }
    assert manifest["signature"] == source["signature"]
    assert set(manifest["files"]) == {"variables/artifact.npz", "transform.py", "golden.json"}
    assert golden.load(fetched.path / "golden.json").tolerance == 1e-4


def test_transform_is_the_scaling_that_the_network_expects(client, monkeypatch, tmp_path):
    assert export(monkeypatch, right, MODEL_VERSION="2") == 0
    fetched = model_store.fetch(client, BUCKET, "digits_x", "2", tmp_path / "2")
    spec = importlib.util.spec_from_file_location("transform", fetched.path / "transform.py")
    assert spec is not None and spec.loader is not None
    transform = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(transform)
    instances = np.arange(64.0).reshape(1, 64)
    np.testing.assert_allclose(transform.preprocess(instances), network.scaled(instances))


@pytest.mark.parametrize("answer", ["shifted", "nan", "narrow"])
def test_artifact_that_answers_otherwise_is_refused(client, monkeypatch, capsys, answer):
    def wrong(directory: Path) -> Predict:
        forward = right(directory)
        changed = {
            "shifted": lambda images: forward(images) + 2e-4,
            "nan": lambda images: forward(images) * np.nan,
            "narrow": lambda images: forward(images)[:, :9],
        }
        return changed[answer]

    assert export(monkeypatch, wrong, MODEL_VERSION="5") == 3
    message = capsys.readouterr().err
    assert "digits_x version 5 is refused: its answers differ by" in message
    assert "digits version 3 in golden case 0; 0.0001 is allowed" in message
    assert "5" not in model_store.versions(client, BUCKET, "digits_x")
    again = model_store.claim(client, BUCKET, "digits_x", "5", owner="somebody else")
    model_store.release(client, BUCKET, again)


def test_artifact_that_is_wrong_outside_the_golden_cases_is_refused(monkeypatch, capsys):
    def wrong(directory: Path) -> Predict:
        forward = right(directory)
        return lambda images: forward(images) + (2e-4 if len(images) > 1 else 0)

    assert export(monkeypatch, wrong, MODEL_VERSION="6") == 3
    assert "on the held-out images; 0.0001 is allowed" in capsys.readouterr().err


def test_gate_refuses_an_export_of_a_bad_model(client, monkeypatch, capsys, tmp_path):
    layers = some_network()
    images = np.random.default_rng(1).integers(0, 17, (20, 64)).astype(np.float64)
    answer = layers.forward(images / 16)
    layers.save(tmp_path / network.NETWORK)
    digits = answer.argmax(axis=1)
    digits[:10] = (digits[:10] + 1) % 10
    network.save_holdout(tmp_path / network.HOLDOUT, images, digits)
    publish(client, "digits", "4", tmp_path, images[:2], answer[:2])
    assert export(monkeypatch, right, MODEL_VERSION="7", SOURCE_VERSION="4") == 3
    assert "accuracy 0.5000 on the held-out data is below the gate" in capsys.readouterr().err


def test_export_is_compared_with_the_live_one_by_its_own_artifact(client, monkeypatch, capsys):
    assert export(monkeypatch, right, MODEL_VERSION="20") == 0
    compared = {"GATE_MARGIN": "0.005", "LIVE_VERSION": "20"}
    assert export(monkeypatch, right, MODEL_VERSION="21", **compared) == 0
    manifest, _digest = model_store.read_manifest(client, BUCKET, "digits_x", "21")
    assert manifest["gate"]["live_value"] == manifest["gate"]["value"] == 1.0

    def unreadable(directory: Path) -> Predict:
        if "live" in directory.parts:
            raise ValueError("not a SavedModel")
        return right(directory)

    assert export(monkeypatch, unreadable, MODEL_VERSION="22", **compared) == 3
    message = capsys.readouterr().err
    assert "version 20, which is live, and that cannot be evaluated" in message
    assert "not a SavedModel" in message
    assert "22" not in model_store.versions(client, BUCKET, "digits_x")


def test_source_must_be_named_and_hold_a_network(client, monkeypatch, capsys, tmp_path):
    assert export(monkeypatch, right, MODEL_VERSION="8", SOURCE_MODEL="") == 2
    assert "SOURCE_MODEL must be set" in capsys.readouterr().err
    assert export(monkeypatch, right, MODEL_VERSION="8", SOURCE_VERSION="99") == 2
    assert "digits version 99 is not in the store" in capsys.readouterr().err
    publish(client, "plain", "1", tmp_path, np.zeros((1, 64)), np.zeros((1, 10)))
    changes = {"MODEL_VERSION": "8", "SOURCE_MODEL": "plain", "SOURCE_VERSION": "1"}
    assert export(monkeypatch, right, **changes) == 2
    assert "plain version 1 has no network.npz" in capsys.readouterr().err


def test_network_survives_its_file(tmp_path):
    layers = some_network()
    layers.save(tmp_path / network.NETWORK)
    images = np.random.default_rng(2).random((5, 64))
    again = Network.load(tmp_path / network.NETWORK)
    np.testing.assert_array_equal(again.forward(images), layers.forward(images))
    assert np.abs(layers.as_float32().forward(images) - layers.forward(images)).max() < 1e-5


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(GroundcrewError, match="ends in 12 numbers, not in 10"):
        Network([np.zeros((64, 12))], [np.zeros(12)])
    with pytest.raises(GroundcrewError, match=r"weights \(63, 10\)"):
        Network([np.zeros((63, 10))], [np.zeros(10)])
