"""What a team writes first: Flask around predict_proba."""

from __future__ import annotations

import os

import joblib
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
model = joblib.load(os.environ["MODEL_FILE"])


@app.post("/predict")
def predict() -> Response:
    return jsonify(predictions=model.predict_proba(request.get_json()["instances"]).tolist())
