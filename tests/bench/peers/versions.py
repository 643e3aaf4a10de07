"""Versions of the bench's model as the store gives them to hosts. Usage: versions.py FOLDER

From train.py's and export.py's files in FOLDER: onnx (the export beside the pipeline), sklearn (the
pipeline alone) and front (for what another server answers: the same probabilities whatever it is asked).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from groundcrew import model_store

CONSTANT = [0.25, 0.75]


def write_version(directory: Path, framework: str, row: list[float], answer: list[float]) -> None:
    """golden.json and the manifest for what lies in the directory."""
    case = {"request": {"instances": [row]}, "response": {"predictions": [answer]}}
    document = {"cases": [case], "tolerance": 1e-4}
    (directory / model_store.GOLDEN).write_text(json.dumps(document))
    files = {}
    for path in sorted(directory.iterdir()):
        digest, size = model_store.sha256_file(path)
        files[path.name] = {"sha256": digest, "size": size}
    manifest: dict[str, Any] = {
        "files": files,
        "framework": framework,
        "signature": {
            "inputs": {"shape": [len(row)], "dtype": "float32"},
            "outputs": {"shape": [2], "dtype": "float32", "labels": ["malignant", "benign"]},
        },
        "metrics": {},
    }
    (directory / model_store.MANIFEST).write_text(json.dumps(manifest))


def main() -> None:
    folder = Path(sys.argv[1])
    cases = json.loads((folder / "cases.json").read_text())
    row, answer = cases["rows"][0], cases["probabilities"][0]
    for name in ("onnx", "sklearn", "front"):
        directory = folder / name
        directory.mkdir()
        if name != "front":
            shutil.copy(folder / "model.joblib", directory)
        if name == "onnx":
            shutil.copy(folder / "model.onnx", directory)
        if name == "front":
            write_version(directory, "custom", row, CONSTANT)
        else:
            write_version(directory, "sklearn", row, answer)


if __name__ == "__main__":
    main()
