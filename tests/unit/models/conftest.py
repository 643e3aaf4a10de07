from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from groundcrew import model_store
from moto.server import ThreadedMotoServer

BUCKET = "groundcrew-models-test-store"
Publish = Callable[..., str]


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The environment of a program that may use the store."""
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


@pytest.fixture(scope="module")
def _client(store: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=store["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )


@pytest.fixture
def client(_client: Any) -> Iterator[Any]:
    """A client of a store that is empty."""
    _client.create_bucket(Bucket=BUCKET)
    yield _client
    for entry in model_store.list_objects(_client, BUCKET, ""):
        _client.delete_object(Bucket=BUCKET, Key=entry.key)


@pytest.fixture
def publish(client: Any, tmp_path: Path) -> Publish:
    """Publish a version of digits; keywords go into its manifest."""

    def call(version: str, **manifest: Any) -> str:
        directory = tmp_path / f"artifact-{version}"
        directory.mkdir()
        cases = [{"request": {"instances": []}, "response": {}}]
        (directory / "golden.json").write_text(json.dumps({"cases": cases}))
        (directory / "weights").write_text(version)
        held = model_store.claim(client, BUCKET, "digits", version)
        given = {"framework": "custom", "signature": {}, "metrics": {"accuracy": 0.9}, **manifest}
        return model_store.publish(client, BUCKET, held, directory, given)

    return call
