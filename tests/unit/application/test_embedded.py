"""A model in the application's own process, from a real model version; and what it needs to be imported."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import joblib
import pytest
from application_support import image
from digits_application.digits import check_prediction
from groundcrew import onnx_export
from groundcrew.errors import GroundcrewError
from groundcrew_application.embedded import EmbeddedModel
from groundcrew_application.prediction import Hooks, PredictionError
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

REPOSITORY = Path(__file__).parents[3]
SOURCES = ("plugins/module_utils", "files/application", "files/images/prediction_front")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model version with an ONNX export, as the store gives it."""
    folder = tmp_path_factory.mktemp("models") / "digits" / "4"
    folder.mkdir(parents=True)
    data = load_digits()
    model = LogisticRegression(max_iter=50, tol=0.5).fit(data.data[:400] / 16, data.target[:400])
    joblib.dump(model, folder / "model.joblib")
    assert onnx_export.export(model, folder, data.data[:50]).reason is None
    request = data.data[:1]
    case = {
        "request": {"instances": request.tolist()},
        "response": {"predictions": model.predict_proba(request).tolist()},
    }
    (folder / "golden.json").write_text(json.dumps({"cases": [case], "tolerance": 1e-4}))
    files = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        files[path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    signature = {
        "inputs": {"shape": [64], "dtype": "float64", "minimum": 0, "maximum": 16},
        "outputs": {"shape": [10], "labels": [str(digit) for digit in range(10)]},
    }
    manifest = {"files": files, "framework": "sklearn", "signature": signature, "metrics": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_it_predicts_and_says_that_it_is_embedded(directory: Path) -> None:
    sources: list[str] = []

    class Told(Hooks):
        def answered(self, source: str, seconds: float) -> None:
            sources.append(source)

    model = EmbeddedModel(directory, check=check_prediction, hooks=Told())
    assert (model.name, model.version, model.answered_seconds_ago) == ("digits", "4", None)
    answer = model.predict(image(1), "r")
    assert (answer.source, answer.version, answer.problem) == ("embedded", "4", None)
    assert sum(answer.predictions[0]) == pytest.approx(1, abs=1e-5)
    assert {"queue", "model", "total"} == set(answer.timing_ms)
    assert answer.latency_ms == pytest.approx(answer.timing_ms["total"])
    assert sources == ["embedded"] and model.answered_seconds_ago is not None
    assert len(model.ask([image(1)] * 3, "r").predictions) == 3


def test_from_many_threads(directory: Path) -> None:
    model = EmbeddedModel(directory)
    expected = [model.predict(image(row), "r").predictions for row in range(8)]
    found: dict[int, list[Any]] = {}

    def ask(row: int) -> None:
        for _ in range(20):
            found[row] = model.predict(image(row), "r").predictions

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[row] for row in range(8)] == expected


def test_refusals(directory: Path) -> None:
    model = EmbeddedModel(directory)
    with pytest.raises(PredictionError, match=r"instances\[0\] has 2 values") as caught:
        model.predict([1.0, 2.0], "r")
    assert caught.value.refused

    def check(prediction: Any) -> None:
        raise ValueError("three probabilities")

    with pytest.raises(PredictionError, match="did not give three probabilities"):
        EmbeddedModel(directory, check=check).predict(image(1), "r")


def test_versions_that_cannot_be_embedded(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(GroundcrewError, match="expected"):
        EmbeddedModel(directory, manifest_sha256="0" * 64)
    with pytest.raises(GroundcrewError, match="version 'models' is not valid"):
        EmbeddedModel(tmp_path / "digits" / "models")
    with pytest.raises(GroundcrewError):
        EmbeddedModel(tmp_path / "digits" / "9")


def run(blocked: tuple[str, ...], directory: Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from groundcrew_application.embedded import EmbeddedModel\n"
        "print(EmbeddedModel(Path(sys.argv[1])).predict([1.0] * 64, 'r').source)\n"
    )
    path = ":".join(str(REPOSITORY / folder) for folder in SOURCES)
    return subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_onnx_export_needs_neither_scikit_learn_nor_its_server(directory: Path) -> None:
    done = run(("sklearn", "joblib", "scipy", "flask", "aiohttp", "granian", "orjson"), directory)
    assert done.stdout == "embedded\n", done.stderr


def test_a_version_without_an_export_needs_scikit_learn(directory: Path, tmp_path: Path) -> None:
    without = tmp_path / "digits" / "5"
    without.mkdir(parents=True)
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["files"]["model.onnx"]
    for name in manifest["files"]:
        (without / name).write_bytes((directory / name).read_bytes())
    (without / "manifest.json").write_text(json.dumps(manifest))
    done = run(("joblib",), without)
    assert "has no model.onnx, and this image lacks joblib; publish it with" in done.stderr


def test_an_image_without_it_says_which_one_has_it(directory: Path) -> None:
    done = run(("groundcrew_prediction",), directory)
    assert "this image lacks groundcrew_prediction; name the image" in done.stderr
