from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import joblib
import network
import numpy as np
import onnxruntime
import pytest
import train
from groundcrew import golden, model_store, training_job
from groundcrew.errors import GroundcrewError
from groundcrew.training_job import Checkpoints
from moto.server import ThreadedMotoServer
from sklearn.dummy import DummyClassifier

# moto keeps one cloud a process, whatever the number of its servers.
BUCKET = "groundcrew-training-test-store"
REQUIRED = {
    "MODEL_NAME": "digits",
    "MODEL_VERSION": "1",
    "STORE_BUCKET": BUCKET,
    "GATE_MINIMUM": "0.95",
}


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The environment of a job that may use an empty store."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    patch = pytest.MonkeyPatch()
    for name, value in environment.items():
        patch.setenv(name, value)
    boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
    yield environment
    patch.undo()
    server.stop()


@pytest.fixture(scope="module")
def client(store: dict[str, str]) -> Any:
    return boto3.client("s3", endpoint_url=store["AWS_ENDPOINT_URL"])


@pytest.fixture(scope="module")
def trained(store: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The job as it is run in its container: train.py as a program."""
    return job(store, MODEL_VERSION="1")


def job(store: dict[str, str], **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **store,
        **REQUIRED,
        "CODE_REVISION": "abc",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **changes,
    }
    return subprocess.run(
        [sys.executable, train.__file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_job_publishes_and_its_last_line_is_the_result(client, trained):
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout.splitlines()[-1])
    manifest, digest = model_store.read_manifest(client, BUCKET, "digits", "1")
    assert result == {
        "model": "digits",
        "version": "1",
        "metrics": {name: round(value, 4) for name, value in manifest["metrics"].items()},
        "manifest_sha256": digest,
    }
    assert result["metrics"]["accuracy"] >= 0.97
    assert manifest["signature"]["inputs"]["shape"] == [64]
    assert manifest["code_revision"] == "abc"
    assert manifest["data"]["rows"] == 1797


def test_published_model_answers_its_golden_cases(client, trained, tmp_path):
    fetched = model_store.fetch(client, BUCKET, "digits", "1", tmp_path / "digits" / "1")
    model = joblib.load(fetched.path / "model.joblib")
    cases = golden.load(fetched.path / "golden.json")
    assert len(cases.cases) == 10
    for digit, case in enumerate(cases.cases):
        answer = model.predict_proba(np.array(case["request"]["instances"])).tolist()
        assert golden.compare({"predictions": answer}, case["response"], cases.tolerance) == []
        assert int(np.argmax(answer[0])) == digit
    assert (fetched.path / "model.joblib").stat().st_size < 15_000_000


def test_changed_copies_of_held_out_images_are_predicted_too(client, trained, tmp_path):
    """What somebody draws with a mouse is not as neat as the data set."""
    fetched = model_store.fetch(client, BUCKET, "digits", "1", tmp_path / "digits" / "1")
    model, data = joblib.load(fetched.path / "model.joblib"), train.load_data()
    copies = train.changed_copies(data.holdout_images, np.random.default_rng(1))
    assert np.mean(model.predict(copies) == data.holdout_digits) > 0.92


def test_weights_and_onnx_export_answer_as_the_model_does(client, trained, tmp_path):
    fetched = model_store.fetch(client, BUCKET, "digits", "1", tmp_path / "digits" / "1")
    data = train.load_data()
    expected = joblib.load(fetched.path / "model.joblib").predict_proba(data.holdout_images)
    layers = network.Network.load(fetched.path / "network.npz")
    assert np.abs(layers.forward(data.holdout_images / 16) - expected).max() < 1e-9
    session = onnxruntime.InferenceSession(fetched.path / "model.onnx")
    answer = session.run(None, {"instances": data.holdout_images.astype(np.float32)})[-1]
    assert np.abs(answer - expected).max() < 1e-4
    assert "exported to ONNX" in trained.stdout


def test_holdout_is_uploaded_as_the_batch_input(client, trained):
    body = client.get_object(Bucket=BUCKET, Key="data/digits/holdout.csv")["Body"].read()
    rows = list(csv.reader(io.StringIO(body.decode())))
    assert rows[0] == ["id", *(f"p{pixel}" for pixel in range(64))]
    assert len(rows) - 1 == 360
    assert all(0 <= float(value) <= 16 for row in rows[1:] for value in row[1:])


def run_here(monkeypatch: pytest.MonkeyPatch, **changes: str) -> int:
    """The job in this process: a new one takes seconds to import scikit-learn."""
    for name, value in {**REQUIRED, **changes}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        return training_job.main(train.build)
    finally:
        signal.signal(signal.SIGTERM, before)


def quickly(images: np.ndarray, digits: np.ndarray, *_: Any) -> DummyClassifier:
    return DummyClassifier().fit(images, digits)


@pytest.mark.parametrize(
    ("framework", "files"),
    [("flask", {"model.joblib", "golden.json"}), ("custom", {"model.joblib", "golden.json"})],
)
def test_framework_decides_what_is_published(client, store, monkeypatch, framework, files):
    monkeypatch.setattr(train, "train", quickly)
    changes = {"MODEL_NAME": f"legacy_{framework}", "FRAMEWORK": framework, "GATE_MINIMUM": "0"}
    assert run_here(monkeypatch, **changes) == 0
    manifest, _digest = model_store.read_manifest(client, BUCKET, f"legacy_{framework}", "1")
    assert manifest["framework"] == framework
    assert set(manifest["files"]) == files


def test_unknown_framework_is_refused_before_training(client, store, monkeypatch, capsys):
    assert run_here(monkeypatch, MODEL_VERSION="11", FRAMEWORK="caffe") == 2
    assert "FRAMEWORK is 'caffe'; it must be one of sklearn, flask, custom" in (
        capsys.readouterr().err
    )
    model_store.claim(client, BUCKET, "digits", "11", owner="somebody else")


def test_wrong_onnx_export_is_refused(client, store, monkeypatch, capsys, tmp_path):
    def wrong(*_arguments: Any) -> None:
        raise GroundcrewError("the ONNX export answers 3 of 1797 test instances differently")

    monkeypatch.setattr(train, "CHANGED_COPIES", 0)
    monkeypatch.setattr(train.onnx_export, "export", wrong)
    assert run_here(monkeypatch, MODEL_NAME="quick", MODEL_VERSION="12", GATE_MINIMUM="0") == 3
    assert "3 of 1797 test instances" in capsys.readouterr().err
    assert "12" not in model_store.versions(client, BUCKET, "quick")


def test_without_the_converter_scikit_learn_serves(client, store, monkeypatch, capsys):
    def missing(*_arguments: Any) -> None:
        raise ImportError("No module named 'skl2onnx'")

    monkeypatch.setattr(train, "CHANGED_COPIES", 0)
    monkeypatch.setattr(train.onnx_export, "export", missing)
    assert run_here(monkeypatch, MODEL_NAME="quick", MODEL_VERSION="13", GATE_MINIMUM="0") == 0
    assert "no ONNX export" in capsys.readouterr().out
    manifest, _digest = model_store.read_manifest(client, BUCKET, "quick", "13")
    assert "model.onnx" not in manifest["files"]


def test_taken_version_is_refused(store, trained, monkeypatch, capsys):
    assert run_here(monkeypatch, MODEL_VERSION="1") == 2
    message = capsys.readouterr().err
    assert "published already" in message
    assert "next free version is 2" in message


def test_gate_refuses_and_publishes_nothing(client, store, monkeypatch, capsys):
    monkeypatch.setattr(train, "train", quickly)
    assert run_here(monkeypatch, MODEL_VERSION="8", GATE_MINIMUM="0.9999") == 3
    message = capsys.readouterr().err
    assert re.search(
        r"accuracy 0\.\d{4} on the held-out data is below the gate of 0\.9999", message
    )
    assert "8" not in model_store.versions(client, BUCKET, "digits")
    # The version is free again for anybody.
    model_store.claim(client, BUCKET, "digits", "8", owner="somebody else")


def test_interrupted_job_gives_its_claim_back(client, store, monkeypatch):
    def stopped(*_arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "train", stopped)
    with pytest.raises(SystemExit):
        run_here(monkeypatch, MODEL_VERSION="9")
    model_store.claim(client, BUCKET, "digits", "9", owner="somebody else")


def test_unreachable_store_is_one_readable_line(store, monkeypatch, capsys):
    changes = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "MODEL_VERSION": "7"}
    assert run_here(monkeypatch, **changes) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_split_is_fixed_and_stratified():
    data, again = train.load_data(), train.load_data()
    assert data.holdout_ids == again.holdout_ids
    assert data.sha256 == again.sha256
    counts = np.bincount(data.holdout_digits, minlength=10)
    assert counts.min() >= 34
    assert len(set(data.holdout_ids)) == 360


def test_changed_copies_stay_in_range_and_keep_their_digit():
    images = train.load_data().images[:50]
    copies = train.changed_copies(images, np.random.default_rng(0))
    assert copies.shape == images.shape
    assert copies.min() >= 0
    assert copies.max() <= 16
    assert np.mean(np.abs(copies - images)) < 5
    assert not np.array_equal(copies, images)


class Killed(Exception):
    """Stands for the end of a process between two phases."""


@pytest.mark.parametrize("phase", range(1, len(train.PHASES) + 1))
def test_interrupted_training_ends_in_the_very_same_model(tmp_path, monkeypatch, phase):
    monkeypatch.setattr(train, "CHANGED_COPIES", 1)
    data = train.load_data()
    given = (data.images, data.digits, 7)
    whole = train.train(*given, Checkpoints(None))
    real = Checkpoints.save

    def save_and_die(self: Checkpoints, step: int, write: Any) -> None:
        real(self, step, write)
        if step == phase:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            train.train(*given, Checkpoints(tmp_path))
    fitted = []
    fit = train.MLPClassifier.fit
    monkeypatch.setattr(
        train.MLPClassifier, "fit", lambda *given: fitted.append(1) or fit(*given), raising=True
    )
    resumed = train.train(*given, Checkpoints(tmp_path))
    assert len(fitted) == len(train.PHASES) - phase
    for one, other in zip(
        whole.named_steps["classify"].coefs_ + whole.named_steps["classify"].intercepts_,
        resumed.named_steps["classify"].coefs_ + resumed.named_steps["classify"].intercepts_,
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert train.golden_cases(whole, data) == train.golden_cases(resumed, data)


def test_second_attempt_goes_on_from_the_checkpoint(client, store, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train, "CHANGED_COPIES", 0)
    changes = {
        "MODEL_NAME": "resumed",
        "MODEL_VERSION": "next",
        "GATE_MINIMUM": "0.5",
        "CHECKPOINT_DIRECTORY": str(tmp_path),
    }
    monkeypatch.setattr(train, "write_artifact", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run_here(monkeypatch, **changes)
    monkeypatch.undo()
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    assert run_here(monkeypatch, **changes, ATTEMPT="2", FRAMEWORK="custom") == 0
    assert "goes on after phase 2 of 2" in capsys.readouterr().out
    manifest, _digest = model_store.read_manifest(client, BUCKET, "resumed", "1")
    assert manifest["attempt"] == 2
    assert [path.name for path in tmp_path.iterdir()] == []


def test_new_version_is_compared_with_the_live_one_on_the_same_images(
    client, store, trained, monkeypatch, capsys
):
    """Fewer rows make a worse model, which the gate's minimum alone would let through."""
    monkeypatch.setattr(train, "CHANGED_COPIES", 0)
    changes = {"GATE_MINIMUM": "0.1", "GATE_MARGIN": "0.005", "TRAINING_ROWS": "300"}
    assert run_here(monkeypatch, MODEL_VERSION="20", LIVE_VERSION="1", **changes) == 3
    live = model_store.read_manifest(client, BUCKET, "digits", "1")[0]["metrics"]["accuracy"]
    message = capsys.readouterr().err
    assert f"is worse than {live:.4f} of version 1, which is live" in message
    assert "GATE_MARGIN allows 0.005" in message
    assert "20" not in model_store.versions(client, BUCKET, "digits")


def test_joblib_of_a_version_without_weights_is_evaluated_too(client, store, tmp_path):
    data = train.load_data()
    joblib.dump(quickly(data.images, data.digits), tmp_path / "model.joblib")
    assert train.evaluate(tmp_path, data)["accuracy"] < 0.2


def test_example_refuses_a_data_set(client, store, monkeypatch, capsys):
    client.put_object(Bucket=BUCKET, Key="data/x/a.csv", Body=b"1")
    assert run_here(monkeypatch, MODEL_VERSION="30", DATA=f"s3://{BUCKET}/data/x/") == 2
    assert "leave DATA empty" in capsys.readouterr().err
