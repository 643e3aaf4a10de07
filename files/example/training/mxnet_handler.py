"""Multi Model Server's handler for an MXNet network.

Beside it: network-symbol.json and network-0000.params as SymbolBlock.imports reads them, with one
input ``data``, and signature.json, which says the input's shape (0 stands for any number of rows).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mms_request
import mxnet as mx
import numpy as np

SYMBOL, PARAMETERS, SIGNATURE = "network-symbol.json", "network-0000.params", "signature.json"


class Network:
    """The network on one processor."""

    def __init__(self, directory: Path) -> None:
        (entry,) = json.loads((directory / SIGNATURE).read_text())["inputs"]
        self.width = int(entry["data_shape"][1])
        with warnings.catch_warnings():
            # It warns that a symbol on disk does not say its input's type.
            warnings.filterwarnings("ignore", "Cannot decide type")
            self.block = mx.gluon.nn.SymbolBlock.imports(
                str(directory / SYMBOL), [entry["data_name"]], str(directory / PARAMETERS)
            )

    def predict(self, batch: np.ndarray) -> np.ndarray:
        result: np.ndarray = self.block(mx.nd.array(batch, dtype="float32")).asnumpy()
        return result


_network: Network | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes]:
    global _network
    if _network is None:
        _network = Network(Path(context.system_properties["model_dir"]))
    if data is None:
        return []
    return mms_request.answer(data, context, _network.width, _network.predict)
