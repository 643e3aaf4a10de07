"""The digits network for Multi Model Server with ONNX Runtime; see network.py.

Publishes <MODEL_NAME>.mar, which holds model.onnx and its handler.
"""

from __future__ import annotations

import sys
from pathlib import Path

import archive
import network
import onnx
import onnx_handler
import onnxruntime
from groundcrew.training_job import Job
from network import DIGITS, PIXELS, Network, Predict
from onnx import TensorProto, helper, numpy_helper

# Old enough for any ONNX Runtime of the last years.
OPSET, IR_VERSION = 17, 8


def graph(source: Network) -> onnx.ModelProto:
    """data (n, 64) float32 in, probabilities (n, 10) out."""
    nodes, initializers, values = [], [], "data"
    last = len(source.weights) - 1
    for layer, (weights, biases) in enumerate(zip(source.weights, source.biases, strict=True)):
        initializers += [
            numpy_helper.from_array(weights, f"w{layer}"),
            numpy_helper.from_array(biases, f"b{layer}"),
        ]
        nodes.append(helper.make_node("Gemm", [values, f"w{layer}", f"b{layer}"], [f"sum{layer}"]))
        if layer < last:
            nodes.append(helper.make_node("Relu", [f"sum{layer}"], [f"layer{layer}"]))
            values = f"layer{layer}"
        else:
            nodes.append(helper.make_node("Softmax", [f"sum{layer}"], ["probabilities"], axis=1))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", PIXELS])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", DIGITS])],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def write(source: Network, job: Job) -> None:
    def write_model(directory: Path) -> None:
        onnx.save(graph(source), directory / onnx_handler.MODEL)

    archive.write(job, "onnx_handler", write_model)


def load(directory: Path) -> Predict:
    return archive.load(directory, onnx_handler.Network).predict


if __name__ == "__main__":
    sys.exit(network.main("onnx", onnxruntime.__version__, write, load))
