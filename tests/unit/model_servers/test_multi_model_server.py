"""What runs inside Multi Model Server's images, as far as it needs neither the server nor MXNet."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import export_onnx
import mms_request
import numpy as np
import onnxruntime
import pytest
from network import Network

SERVE = Path(__file__).resolve().parents[3] / "files/images/mms/serve.py"


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mms_serve", SERVE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Context:
    """What the server hands to a handler."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}

    def set_response_status(self, code: int, _phrase: str, number: int) -> None:
        self.statuses[number] = code

    def set_response_content_type(self, _number: int, kind: str) -> None:
        assert kind == "application/json"


def test_each_request_of_a_batch_has_its_own_answer() -> None:
    context = Context()
    bodies: list[Any] = [b'{"instances": [[1, 2]]}', b"garbage", {"instances": [[3, 4], [5, 6]]}]
    data = [{"body": body} for body in bodies]
    first, second, third = map(
        json.loads, mms_request.answer(data, context, 2, lambda rows: rows.sum(axis=1))
    )
    assert (first, third) == ({"predictions": [3.0]}, {"predictions": [7.0, 11.0]})
    assert "not JSON" in second["error"] and context.statuses == {1: 400}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", 'must be {"instances"'),
        (None, 'must be {"instances"'),
        (b'{"instances": []}', "shape"),
        (b'{"instances": [[1]]}', "2 numbers each"),
        (b'{"instances": [[1, 2], [3]]}', "2 numbers each"),
        (b'{"instances": [["a", "b"]]}', "2 numbers each"),
        (b'{"instances": [[1, NaN]]}', "finite"),
        (b'{"instances": [[1, 1e39]]}', "float32"),
    ],
)
def test_a_bad_request_is_told_why(body: Any, said: str) -> None:
    with pytest.raises(mms_request.BadRequest, match=said):
        mms_request.read(body, 2)


def test_the_onnx_graph_is_the_network() -> None:
    random = np.random.default_rng(0)
    sizes = [(64, 8), (8, 10)]
    source = Network(
        [random.normal(size=size).astype(np.float32) for size in sizes],
        [random.normal(size=size[1]).astype(np.float32) for size in sizes],
    )
    session = onnxruntime.InferenceSession(export_onnx.graph(source).SerializeToString())
    rows = random.random((5, 64), dtype=np.float32)
    (found,) = session.run(["probabilities"], {"data": rows})
    assert np.abs(found - source.forward(rows)).max() < 1e-6


def test_the_server_serves_the_archive_that_the_manifest_names(
    serve: ModuleType, tmp_path: Path
) -> None:
    env = {"MODEL_NAME": "digits", "MODEL_VERSION": "3", "MODEL_DIRECTORY": str(tmp_path)}
    with pytest.raises(serve.StartError, match=r"digits\.mar does not exist; publish"):
        serve.archive(env)
    (tmp_path / "digits.mar").write_bytes(b"archive")
    files = {"digits.mar": {"sha256": hashlib.sha256(b"archive").hexdigest()}}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    path = serve.archive(env)
    line = serve.command({**env, "WORKERS": "2"}, path, Path("/home"), "/python")
    assert line[0] == "java" and line[-1] == "digits=digits.mar"
    assert line[line.index("-s") + 1] == str(tmp_path)
    (tmp_path / "digits.mar").write_bytes(b"damaged")
    with pytest.raises(serve.StartError, match="sha256 .* changed or"):
        serve.archive(env)


@pytest.mark.parametrize("workers", ["0", "two", "-1"])
def test_a_wrong_number_of_workers_is_named(serve: ModuleType, workers: str) -> None:
    with pytest.raises(serve.StartError, match="WORKERS is"):
        serve.command({"MODEL_NAME": "digits", "WORKERS": workers}, Path("/x"), Path("/"), "p")


@pytest.mark.parametrize("name", ["MODEL_NAME", "MODEL_VERSION"])
def test_a_missing_variable_is_named(serve: ModuleType, name: str) -> None:
    env = {"MODEL_NAME": "digits", "MODEL_VERSION": "1", name: ""}
    with pytest.raises(serve.StartError, match=f"{name} must be set"):
        serve.archive(env)


def test_management_is_on_loopback_and_cloud_keys_stay_out_of_workers() -> None:
    config = dict(
        line.split("=", 1)
        for line in (SERVE.parent / "config.properties").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert config["management_address"] == "http://127.0.0.1:8081"
    assert config["inference_address"] == "http://0.0.0.0:8080"
    assert "AWS" in config["blacklist_env_vars"]
