from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn.base
from groundcrew.errors import GroundcrewError
from groundcrew_prediction import engine


@pytest.fixture
def copy(version_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(version_directory, tmp_path / "1"))


class Bomb:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_loaded_model_predicts_probabilities(loaded, model):
    instances = np.zeros((3, 64))
    assert loaded.predict(instances).shape == (3, 10)
    assert np.allclose(loaded.predict(instances), model.predict_proba(instances))


def test_nothing_is_unpickled_whose_checksum_is_wrong(copy, tmp_path, make_manifest):
    trace = tmp_path / "unpickled"
    joblib.dump(Bomb(trace), copy / "model.joblib")
    size = json.loads((copy / "manifest.json").read_text())["files"]["model.joblib"]["size"]
    data = (copy / "model.joblib").read_bytes()
    (copy / "model.joblib").write_bytes(data.ljust(size, b"\0"))
    with pytest.raises(GroundcrewError, match=r"model\.joblib has sha256"):
        engine.load(copy, "digits", "1")
    assert not trace.exists()
    # The trap works: with the right checksum it is sprung.
    make_manifest(copy)
    with pytest.raises(GroundcrewError, match="holds a NoneType"):
        engine.load(copy, "digits", "1")
    assert trace.exists()


def test_manifest_may_be_pinned(copy, loaded, make_manifest):
    assert engine.load(copy, "digits", "1", loaded.manifest_sha256)
    make_manifest(copy, metrics={"accuracy": 1.0})
    with pytest.raises(GroundcrewError, match="is expected"):
        engine.load(copy, "digits", "1", loaded.manifest_sha256)


def test_wrong_golden_answer_stops_the_start(copy, make_manifest):
    cases = json.loads((copy / "golden.json").read_text())
    cases["cases"][0]["response"]["predictions"][0][0] += 0.1
    (copy / "golden.json").write_text(json.dumps(cases))
    make_manifest(copy)
    with pytest.raises(GroundcrewError, match="golden case 0 wrong"):
        engine.load(copy, "digits", "1")


def test_model_of_another_scikit_learn_is_refused(model, tmp_path, monkeypatch, make_version):
    with monkeypatch.context() as patch:
        patch.setattr(sklearn.base, "__version__", "0.1")
        directory = make_version(tmp_path / "1", model)
    with pytest.raises(GroundcrewError, match=r"trained with scikit-learn 0\.1, this image has"):
        engine.load(directory, "digits", "1")


def test_other_framework_is_refused(copy, make_manifest):
    make_manifest(copy, framework="tensorflow")
    with pytest.raises(GroundcrewError, match="serves framework sklearn"):
        engine.load(copy, "digits", "1")


def test_missing_version_says_what_to_do(tmp_path):
    with pytest.raises(GroundcrewError, match="fetch the model version to this host"):
        engine.load(tmp_path / "digits" / "1", "digits", "1")
