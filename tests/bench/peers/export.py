"""model.onnx beside train.py's model.joblib, as a training job publishes it. Usage: export.py FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[3] / "plugins/module_utils"))
from groundcrew import onnx_export

folder = Path(sys.argv[1])
forest = joblib.load(folder / "model.joblib")
rows = np.array(json.loads((folder / "cases.json").read_text())["rows"], dtype=np.float32)
exported = onnx_export.export(forest, folder, rows)
if exported.reason:
    sys.exit(exported.reason)
