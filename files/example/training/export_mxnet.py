"""The digits network for Multi Model Server with MXNet; see network.py.

Publishes <MODEL_NAME>.mar, which holds the symbol, its parameters, their signature and the handler.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import archive
import mxnet as mx
import mxnet_handler
import network
from groundcrew.training_job import Job
from network import PIXELS, Network, Predict


def symbol(source: Network) -> mx.sym.Symbol:
    """data (n, 64) float32 in, probabilities (n, 10) out."""
    values = mx.sym.Variable("data")
    last = len(source.weights) - 1
    for layer, biases in enumerate(source.biases):
        values = mx.sym.FullyConnected(values, num_hidden=len(biases), name=f"layer{layer}")
        if layer < last:
            values = mx.sym.Activation(values, act_type="relu", name=f"relu{layer}")
    return mx.sym.softmax(values, axis=1, name="probabilities")


def write(source: Network, job: Job) -> None:
    def write_model(directory: Path) -> None:
        symbol(source).save(str(directory / mxnet_handler.SYMBOL))
        parameters = {}
        for layer, (weights, biases) in enumerate(zip(source.weights, source.biases, strict=True)):
            # MXNet keeps them as (outputs, inputs).
            parameters[f"arg:layer{layer}_weight"] = mx.nd.array(weights.T, dtype="float32")
            parameters[f"arg:layer{layer}_bias"] = mx.nd.array(biases, dtype="float32")
        mx.nd.save(str(directory / mxnet_handler.PARAMETERS), parameters)
        signature = {"inputs": [{"data_name": "data", "data_shape": [0, PIXELS]}]}
        (directory / mxnet_handler.SIGNATURE).write_text(json.dumps(signature))

    archive.write(job, "mxnet_handler", write_model)


def load(directory: Path) -> Predict:
    return archive.load(directory, mxnet_handler.Network).predict


if __name__ == "__main__":
    sys.exit(network.main("mxnet", mx.__version__, write, load))
