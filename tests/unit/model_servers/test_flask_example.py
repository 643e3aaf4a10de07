"""The example of a team's own Flask application."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

APP = Path(__file__).resolve().parents[3] / "files/example/flask/app.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flask_example", APP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def version(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).random((40, 3))
    joblib.dump(LogisticRegression().fit(rows, rows.sum(axis=1) > 1.5), tmp_path / "model.joblib")
    digest = hashlib.sha256((tmp_path / "model.joblib").read_bytes()).hexdigest()
    manifest = {"files": {"model.joblib": {"sha256": digest}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_it_predicts_and_says_that_it_is_there(example: Any, version: Path) -> None:
    client = example.make(version).test_client()
    assert client.get("/healthz").status_code == 200
    answer = client.post("/predict", json={"instances": [[0.1, 0.2, 0.3], [1, 1, 1]]})
    assert np.allclose(np.sum(answer.get_json()["predictions"], axis=1), 1)


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"{}", b'{"instances": [[1]]}', b'{"instances": [["a", 1, 2]]}']
)
def test_bad_input_is_400(example: Any, version: Path, body: bytes) -> None:
    answer = example.make(version).test_client().post("/predict", data=body)
    assert answer.status_code == 400 and answer.get_json()["error"]


def test_a_damaged_model_is_not_loaded(example: Any, version: Path) -> None:
    (version / "model.joblib").write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match="changed or damaged"):
        example.load(version)
