from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import joblib
import numpy as np
import pytest
from moto import mock_aws
from sklearn.linear_model import LogisticRegression

BUCKET = "groundcrew-test-store"
FEATURES = 3


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model version that takes three numbers from 0 to 16 and knows two classes."""
    directory = tmp_path_factory.mktemp("models") / "tiny" / "1"
    directory.mkdir(parents=True)
    features = np.random.default_rng(0).uniform(0, 16, (100, FEATURES))
    model = LogisticRegression().fit(features, features.sum(axis=1) > 24)
    joblib.dump(model, directory / "model.joblib")
    instance = [[1.0, 2.0, 3.0]]
    response = {"predictions": model.predict_proba(instance).tolist()}
    golden = {"cases": [{"request": {"instances": instance}, "response": response}]}
    (directory / "golden.json").write_text(json.dumps({**golden, "tolerance": 1e-6}))
    files = {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in directory.iterdir()
    }
    signature = {
        "inputs": {"shape": [FEATURES], "dtype": "float64", "minimum": 0, "maximum": 16},
        "outputs": {"shape": [2], "labels": ["no", "yes"]},
    }
    manifest = {"files": files, "framework": "sklearn", "signature": signature, "metrics": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture(scope="session")
def _session_client() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CA_BUNDLE"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield boto3.client("s3")
    patch.undo()


@pytest.fixture
def client(_session_client: Any) -> Iterator[Any]:
    """A client of a store that is empty; one client for all tests, as making one takes 0.2 s."""
    _session_client.create_bucket(Bucket=BUCKET)
    yield _session_client
    for entry in _session_client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        _session_client.delete_object(Bucket=BUCKET, Key=entry["Key"])
