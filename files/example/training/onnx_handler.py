"""Multi Model Server's handler for an ONNX network: model.onnx beside it, (n, width) float32 in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mms_request
import numpy as np
import onnxruntime

MODEL = "model.onnx"


class Network:
    """The network in ONNX Runtime, on one thread: more workers are what uses more processors."""

    def __init__(self, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(directory / MODEL), options, providers=["CPUExecutionProvider"]
        )
        (self.input,) = self.session.get_inputs()
        self.width = int(self.input.shape[1])

    def predict(self, batch: np.ndarray) -> np.ndarray:
        result: np.ndarray = self.session.run(None, {self.input.name: batch})[0]
        return result


_network: Network | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes]:
    global _network
    if _network is None:
        _network = Network(Path(context.system_properties["model_dir"]))
    if data is None:
        return []
    return mms_request.answer(data, context, _network.width, _network.predict)
