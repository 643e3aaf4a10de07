"""Our server with a constant in the place of a model: what every model's cost is compared with (Granian, RSGI)."""

from __future__ import annotations

import os

import numpy as np
from groundcrew_prediction import engine
from groundcrew_prediction.app import Application
from groundcrew_prediction.serving import Direct
from groundcrew_prediction.settings import Settings
from groundcrew_prediction.transform import Array


class Constant:
    def __init__(self, model: engine.Model) -> None:
        self.model = model
        self.answer = np.array([[0.25, 0.75]], dtype=np.float32)

    def predict(self, instances: Array) -> Array:
        return np.repeat(self.answer, len(instances), axis=0)


def application() -> Application:
    settings = Settings.from_environment(os.environ)
    model = engine.open_model(settings.directory, settings.model, settings.version)
    return Application(Direct(Constant(model)), settings)
