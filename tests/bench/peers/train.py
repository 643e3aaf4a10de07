"""The model of the bench, trained with a peer's own packages. Usage: train.py FOLDER

Writes model.joblib and cases.json: rows with the probabilities that scikit-learn itself gives for them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

ROWS = 64

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
data = load_breast_cancer()
forest = RandomForestClassifier(n_estimators=100, random_state=0).fit(
    data.data[ROWS:], data.target[ROWS:]
)
joblib.dump(forest, folder / "model.joblib")
rows = data.data[:ROWS]
cases = {"rows": rows.tolist(), "probabilities": forest.predict_proba(rows).tolist()}
(folder / "cases.json").write_text(json.dumps(cases))
