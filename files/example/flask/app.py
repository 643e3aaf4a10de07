"""A team's own Flask application around its model, as an example.

POST /predict with {"instances": [[…], …]} answers {"predictions": [[…], …]}; GET /healthz answers
when the model is loaded. Environment: MODEL_NAME, MODEL_VERSION; MODEL_DIRECTORY
(/models/<name>/<version>) may be left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue

MODEL = "model.joblib"


def load(directory: Path) -> Any:
    """The model, when its checksum is the manifest's: unpickling runs what the file says."""
    expected = json.loads((directory / "manifest.json").read_bytes())["files"][MODEL]["sha256"]
    data = (directory / MODEL).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise RuntimeError(
            f"{directory / MODEL} has the sha256 {found}, manifest.json says {expected}: it was "
            "changed or damaged on this host. Remove the version's folder and deploy again"
        )
    return joblib.load(io.BytesIO(data))


def make(directory: Path) -> Flask:
    """The application for one version of a model."""
    model = load(directory)
    application = Flask(__name__)

    @application.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return {"status": "ok"}

    @application.post("/predict")
    def predict() -> ResponseReturnValue:
        body = request.get_json(force=True, silent=True)
        try:
            instances = np.array(body["instances"])
        except (TypeError, KeyError, ValueError):
            return jsonify(error='the body must be {"instances": [[...], ...]}'), 400
        if instances.ndim != 2 or instances.shape[1] != model.n_features_in_:
            return jsonify(error=f"an instance has {model.n_features_in_} numbers"), 400
        if instances.dtype.kind not in "iuf" or not np.isfinite(instances).all():
            return jsonify(error="instances must be finite numbers"), 400
        return jsonify(predictions=model.predict_proba(instances).tolist())

    return application


def directory() -> Path:
    name, version = os.environ["MODEL_NAME"], os.environ["MODEL_VERSION"]
    return Path(os.environ.get("MODEL_DIRECTORY") or f"/models/{name}/{version}")


# The server imports this name; tests import make().
if "MODEL_NAME" in os.environ:
    app = make(directory())
