from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import sklearn.base
from groundcrew import onnx_export
from groundcrew.errors import GroundcrewError
from groundcrew_prediction import engine
from groundcrew_prediction.contract import BadRequest
from sklearn.datasets import load_digits


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
    assert engine.load(copy, "digits", "1", loaded.model.manifest_sha256)
    make_manifest(copy, metrics={"accuracy": 1.0})
    with pytest.raises(GroundcrewError, match="is expected"):
        engine.load(copy, "digits", "1", loaded.model.manifest_sha256)


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


@pytest.fixture
def exported(copy: Path, model: Any, make_manifest: Any) -> Path:
    """The version with its ONNX export; float32 asks for a wider tolerance."""
    onnx_export.export(model, copy, load_digits().data)
    golden = json.loads((copy / "golden.json").read_text())
    (copy / "golden.json").write_text(json.dumps({**golden, "tolerance": 1e-4}))
    make_manifest(copy)
    return copy


def test_an_export_serves_without_scikit_learn_and_answers_the_same(exported, loaded):
    code = (
        "import sys; from pathlib import Path; from groundcrew_prediction import engine;"
        "e = engine.load(Path(sys.argv[1]), 'digits', '1'); print(type(e).__name__, 'sklearn' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(exported)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["OnnxEngine", "False"]
    rows = load_digits().data[:500]
    found = engine.load(exported, "digits", "1").predict(rows)
    assert np.abs(found - loaded.predict(rows)).max() < 1e-5


def test_an_export_of_a_later_onnx_is_refused_by_name(exported, make_manifest):
    later = onnx.load(exported / "model.onnx")
    later.opset_import[0].version = 9999
    onnx.save(later, exported / "model.onnx")
    make_manifest(exported)
    with pytest.raises(
        GroundcrewError, match=r"model\.onnx cannot be loaded by ONNX Runtime .*9999"
    ):
        engine.load(exported, "digits", "1")


def with_transform(copy: Path, make_manifest: Any, code: str) -> Path:
    (copy / "transform.py").write_text(code)
    make_manifest(copy)
    return copy


def test_a_versions_transform_runs_around_its_model(copy, make_manifest, loaded):
    code = """
def preprocess(instances):
    if instances.max() > 15:
        raise ValueError("too much ink")
    return instances
def postprocess(predictions):
    return predictions[:, ::-1]
"""
    cases = json.loads((copy / "golden.json").read_text())
    cases["cases"][0]["response"]["predictions"][0].reverse()
    (copy / "golden.json").write_text(json.dumps(cases))
    turned = engine.load(with_transform(copy, make_manifest, code), "digits", "1")
    rows = np.ones((2, 64))
    assert np.array_equal(turned.predict(rows), loaded.predict(rows)[:, ::-1])
    with pytest.raises(BadRequest, match="too much ink"):
        turned.predict(rows * 16)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module", "transform.py cannot be run .ModuleNotFoundError"),
        ("def prepare(x): return x", "defines neither preprocess nor postprocess"),
        ("def preprocess(x): return x[:0]", "made .0, 64. of 1 rows"),
    ],
)
def test_a_transform_that_cannot_work_stops_the_start(copy, make_manifest, code, said):
    with pytest.raises((GroundcrewError, TypeError), match=said):
        engine.load(with_transform(copy, make_manifest, code), "digits", "1")
