from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from groundcrew_prediction import engine
from groundcrew_prediction.app import create_app
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

SIGNATURE = {
    "inputs": {"shape": [64], "dtype": "float64", "minimum": 0, "maximum": 16},
    "outputs": {"shape": [10], "labels": [str(digit) for digit in range(10)]},
}


def write_version(directory: Path, model: Any, **changes: Any) -> Path:
    """A model version's directory as the store gives it."""
    directory.mkdir(parents=True)
    instance = load_digits().data[:1]
    response = {"predictions": model.predict_proba(instance).tolist()} if model else {}
    cases = [{"request": {"instances": instance.tolist()}, "response": response}]
    joblib.dump(model, directory / "model.joblib")
    (directory / "golden.json").write_text(json.dumps({"cases": cases, "tolerance": 1e-6}))
    write_manifest(directory, **changes)
    return directory


def write_manifest(directory: Path, **changes: Any) -> None:
    files = {}
    for name in ("model.joblib", "golden.json"):
        data = (directory / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest = {
        "files": files,
        "framework": "sklearn",
        "signature": SIGNATURE,
        "metrics": {"accuracy": 0.9},
        **changes,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def make_version() -> Callable[..., Path]:
    return write_version


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., None]:
    return write_manifest


@pytest.fixture(scope="session")
def model() -> LogisticRegression:
    data = load_digits()
    return LogisticRegression(max_iter=20, tol=0.1).fit(data.data[:400] / 16, data.target[:400])


@pytest.fixture(scope="session")
def version_directory(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    return write_version(tmp_path_factory.mktemp("models") / "digits" / "1", model)


@pytest.fixture(scope="session")
def loaded(version_directory: Path) -> engine.SklearnEngine:
    return engine.load(version_directory, "digits", "1")


@pytest.fixture
def client(loaded: engine.SklearnEngine) -> Any:
    return create_app(loaded, max_body_bytes=100_000).test_client()


@pytest.fixture
def instance() -> list[float]:
    return np.zeros(64).tolist()
