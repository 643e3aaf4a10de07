from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

BUCKET = "groundcrew-test-store"


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


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """The files of a small model version, one of them in a folder as TensorFlow has it."""
    directory = tmp_path / "artifact"
    (directory / "variables").mkdir(parents=True)
    (directory / "model.joblib").write_bytes(b"weights" * 1000)
    (directory / "variables" / "index").write_bytes(b"index")
    (directory / "golden.json").write_text(
        '{"cases": [{"request": {"instances": [[1]]}, "response": {"predictions": [[1.0]]}}],'
        ' "tolerance": 1e-6}'
    )
    return directory


@pytest.fixture
def details() -> dict[str, Any]:
    return {"framework": "sklearn", "signature": {"inputs": {}}, "metrics": {"accuracy": 0.97}}
