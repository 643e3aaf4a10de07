"""Our server with a constant instead of a model: what a model's prediction is compared with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from groundcrew import model_store
from groundcrew_prediction.app import create_app
from groundcrew_prediction.contract import Signature


class Constant:
    model, version, framework, manifest_sha256 = "forest", "1", "custom", ""

    def __init__(self):
        self.signature = Signature.from_manifest(
            model_store.verify_directory(Path(os.environ["MODEL_DIRECTORY"])).manifest
        )

    def predict(self, instances):
        return np.tile(np.array([0.25, 0.75], dtype=np.float32), (len(instances), 1))


def application():
    return create_app(Constant())
