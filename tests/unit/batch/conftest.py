from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto import mock_aws
from sklearn.linear_model import LinearRegression, LogisticRegression

sys.path.insert(0, str(Path(__file__).parent))

from batch_support import BUCKET, FolderClient, Job, write_model

FEATURES = 3


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model version that takes three numbers from 0 to 16 and knows two classes."""
    features = np.random.default_rng(0).uniform(0, 16, (100, FEATURES))
    model = LogisticRegression().fit(features, features.sum(axis=1) > 24)
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny" / "1",
        model,
        model.predict_proba([[1.0, 2.0, 3.0]]).tolist(),
        {"shape": [2], "labels": ["no", "yes"]},
    )


@pytest.fixture(scope="session")
def number_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that answers the sum of its three numbers."""
    features = np.random.default_rng(0).uniform(0, 16, (100, FEATURES))
    model = LinearRegression().fit(features, features.sum(axis=1))
    answer = model.predict([[1.0, 2.0, 3.0]]).tolist()
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny" / "1", model, answer, {"shape": []}
    )


@pytest.fixture
def store(tmp_path: Path) -> FolderClient:
    """An empty store in a folder."""
    folder = tmp_path / "store"
    folder.mkdir()
    return FolderClient(folder)


@pytest.fixture
def start(store: FolderClient, model_directory: Path) -> Callable[..., dict[str, Any]]:
    """Runs the job once on this store: start(input, run_id, **settings)."""
    return Job(store, model_directory)


@pytest.fixture(scope="module")
def _module_client() -> Iterator[Any]:
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
def client(_module_client: Any) -> Iterator[Any]:
    """A client of a store that is empty; one client a module, as making one takes 0.2 s."""
    _module_client.create_bucket(Bucket=BUCKET)
    yield _module_client
    for entry in _module_client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        _module_client.delete_object(Bucket=BUCKET, Key=entry["Key"])
