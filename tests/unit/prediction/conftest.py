from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pytest
from groundcrew_prediction import engine
from groundcrew_prediction.app import Application
from groundcrew_prediction.serving import MicroBatch
from groundcrew_prediction.settings import Settings
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

PREDICT = "/v1/models/digits:predict"
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
    for path in sorted(directory.iterdir()):
        if path.name == "manifest.json":
            continue
        data = path.read_bytes()
        files[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
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
    return LogisticRegression(max_iter=50, tol=0.01).fit(data.data[:400] / 16, data.target[:400])


@pytest.fixture(scope="session")
def version_directory(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    return write_version(tmp_path_factory.mktemp("models") / "digits" / "1", model)


@pytest.fixture(scope="session")
def loaded(version_directory: Path) -> engine.SklearnEngine:
    return engine.load(version_directory, "digits", "1")


class Client:
    """Asks an application by RSGI, in memory."""

    def __init__(self, application: Application) -> None:
        self.application = application

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        return asyncio.run(self.asked(method, path, body, **headers))

    async def asked(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = Connection(body)
        scope = SimpleNamespace(method=method, path=path, headers=given)
        await self.application.__rsgi__(scope, connection)
        assert connection.answered is not None
        return connection.answered

    def post(self, document: Any, **headers: str) -> Answered:
        return self.ask("POST", PREDICT, json.dumps(document).encode(), **headers)


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    def __init__(self, body: bytes) -> None:
        self.body = body
        self.answered: Answered | None = None

    async def __call__(self) -> bytes:
        return self.body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), 1 << 14):
            yield self.body[start : start + (1 << 14)]

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        assert self.answered is None
        assert len(dict(headers)) == len(headers)
        self.answered = Answered(status, dict(headers), body)


@pytest.fixture
def client(loaded: engine.SklearnEngine, version_directory: Path) -> Client:
    settings = Settings(
        "digits", "1", version_directory, max_body_bytes=100_000, max_instances=50, max_queue=8
    )
    return Client(Application(MicroBatch(loaded), settings))


@pytest.fixture
def instance() -> list[float]:
    return np.zeros(64).tolist()
