"""Publish the digits network as a TensorFlow SavedModel, for TensorFlow Serving.

Its signature serving_default takes ``instances``, float32 (n, 64) from 0 to 1, and gives
``probabilities``, float32 (n, 10). Environment, last line and exit status: network.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import network
import numpy as np
import tensorflow as tf
from groundcrew.training_job import Job
from network import DIGITS, PIXELS, Network, Predict


class Digits(tf.Module):  # type: ignore[misc]
    """The network's layers as variables, so that the SavedModel has the usual layout."""

    def __init__(self, layers: Network) -> None:
        super().__init__()
        self.weights = [tf.Variable(array) for array in layers.weights]
        self.biases = [tf.Variable(array) for array in layers.biases]

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec([None, PIXELS], tf.float32, name="instances")]
    )
    def predict(self, instances: tf.Tensor) -> dict[str, tf.Tensor]:
        values = instances
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = tf.nn.relu(values @ weights + biases)
        logits = values @ self.weights[-1] + self.biases[-1]
        return {"probabilities": tf.ensure_shape(tf.nn.softmax(logits), [None, DIGITS])}


def write(layers: Network, job: Job) -> None:
    module = Digits(layers)
    tf.saved_model.save(module, str(job.directory), signatures={"serving_default": module.predict})


def load(directory: Path) -> Predict:
    loaded = tf.saved_model.load(str(directory))
    serve = loaded.signatures["serving_default"]

    def predict(images: np.ndarray) -> np.ndarray:
        answer: np.ndarray = serve(instances=tf.constant(images))["probabilities"].numpy()
        return answer

    return predict


if __name__ == "__main__":
    sys.exit(network.main("tensorflow", tf.__version__, write, load))
