"""model.onnx beside train.py's model.joblib, as a training job publishes it. Usage: export.py FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib
import numpy as np
from skl2onnx import to_onnx

folder = Path(sys.argv[1])
forest = joblib.load(folder / "model.joblib")
rows = np.array(json.loads((folder / "cases.json").read_text())["rows"], dtype=np.float32)
# Probabilities as an array, not as a list of dictionaries.
exported = to_onnx(forest, rows[:1], options={id(forest): {"zipmap": False}})
(folder / "model.onnx").write_bytes(exported.SerializeToString())
