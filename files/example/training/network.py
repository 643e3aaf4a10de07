"""The digits network outside scikit-learn, and the jobs that publish it for other model servers.

train.py puts two files for them into a version: ``network.npz`` with the weights and
``holdout.npz`` with the held-out images and their digits. Needs NumPy only: each export runs beside
another framework, with the NumPy that it wants.

An export gives two functions::

    def write(network: Network, job: Job) -> None:
        ...  # write the artifact's files into job.directory

    def load(directory: Path) -> Predict:
        ...  # the answers of the artifact there, which may be an older version's

    if __name__ == "__main__":
        sys.exit(network.main("onnx", onnx.__version__, write, load))

The rest is done here: fetch the source version, write, compare with the source, pass the gate, add
transform.py, golden.json and the manifest, publish.

Environment: that of groundcrew.training_job, and SOURCE_MODEL and SOURCE_VERSION, the version of
train.py's to take the weights of.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from groundcrew import golden, model_store, training_job
from groundcrew.errors import GroundcrewError
from groundcrew.training_job import Job, Refused

NETWORK, HOLDOUT, TRANSFORM = "network.npz", "holdout.npz", "transform.py"
PIXELS, DIGITS, INK = 64, 10, 16.0
# float32 against the float64 of scikit-learn, whatever order the framework adds in.
TOLERANCE = 1e-4

# Runs in the prediction service, which loads it from the version's folder; its words are checksummed with the weights.
TRANSFORM_TEXT = f'''\
"""Feature work of this version: the network was trained on ink from 0 to 1, an instance has 0 to {INK:g}."""

import numpy as np


def preprocess(instances: np.ndarray) -> np.ndarray:
    return instances / {INK:g}
'''

# Probabilities (n, 10) for scaled images (n, 64), float32 from 0 to 1.
Predict = Callable[[np.ndarray], np.ndarray]
Write = Callable[["Network", Job], None]
Load = Callable[[Path], Predict]


@dataclass(frozen=True)
class Network:
    """Dense layers: ReLU after each but the last, softmax after that one.

    ``weights[i]`` is (inputs, outputs) and ``biases[i]`` (outputs,): outputs = inputs @ weights +
    biases. The first layer takes pixels divided by 16.
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def __post_init__(self) -> None:
        width = PIXELS
        for weights, biases in zip(self.weights, self.biases, strict=True):
            if weights.ndim != 2 or weights.shape[0] != width or biases.shape != weights.shape[1:]:
                raise GroundcrewError(
                    f"{NETWORK} has a layer with weights {weights.shape} and biases {biases.shape} "
                    f"where {width} numbers come in; train and publish the source model again"
                )
            width = weights.shape[1]
        if width != DIGITS:
            raise GroundcrewError(f"{NETWORK} ends in {width} numbers, not in {DIGITS}")

    def forward(self, scaled: np.ndarray) -> np.ndarray:
        """Probabilities (n, 10) for scaled images (n, 64)."""
        values = scaled
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = np.maximum(values @ weights + biases, 0)
        logits = values @ self.weights[-1] + self.biases[-1]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        answer: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return answer

    def as_float32(self) -> Network:
        """The same network in the precision of the model servers."""
        return Network(
            [array.astype(np.float32) for array in self.weights],
            [array.astype(np.float32) for array in self.biases],
        )

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {f"w{layer}": array for layer, array in enumerate(self.weights)}
        arrays |= {f"b{layer}": array for layer, array in enumerate(self.biases)}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Network:
        """Raises GroundcrewError when the layers do not fit each other."""
        with np.load(path, allow_pickle=False) as arrays:
            layers = range(len(arrays.files) // 2)
            try:
                return cls(
                    [arrays[f"w{layer}"] for layer in layers],
                    [arrays[f"b{layer}"] for layer in layers],
                )
            except KeyError as error:
                raise GroundcrewError(f"{path} lacks a layer: {error}") from error


@dataclass(frozen=True)
class Source:
    """A published version of train.py's, fetched and verified."""

    model: str
    version: str
    manifest: dict[str, Any]
    manifest_sha256: str
    network: Network
    cases: list[dict[str, Any]]
    holdout_images: np.ndarray  # (n, 64), from 0 to 16
    holdout_digits: np.ndarray  # (n,)


def save_holdout(path: Path, images: np.ndarray, digits: np.ndarray) -> None:
    """The held-out images (n, 64) and their digits (n,), for the gates of exports."""
    np.savez_compressed(path, images=images.astype(np.float32), digits=digits.astype(np.uint8))


def fetch_source(client: Any, bucket: str, env: Mapping[str, str]) -> Source:
    """The version that SOURCE_MODEL and SOURCE_VERSION name.

    Raises GroundcrewError when it is not in the store or holds no network.
    """
    model, version = training_job.required(env, "SOURCE_MODEL", "SOURCE_VERSION")
    with tempfile.TemporaryDirectory() as scratch:
        fetched = model_store.fetch(client, bucket, model, version, Path(scratch) / version)
        for name in (NETWORK, HOLDOUT):
            if name not in fetched.manifest["files"]:
                raise GroundcrewError(
                    f"{model} version {version} has no {name}, so it cannot be exported; "
                    "SOURCE_VERSION must be a version that train.py published"
                )
        with np.load(fetched.path / HOLDOUT, allow_pickle=False) as holdout:
            images, digits = holdout["images"], holdout["digits"]
        return Source(
            model=model,
            version=version,
            manifest=fetched.manifest,
            manifest_sha256=fetched.manifest_sha256,
            network=Network.load(fetched.path / NETWORK),
            cases=golden.load(fetched.path / model_store.GOLDEN).cases,
            holdout_images=images,
            holdout_digits=digits,
        )


def scaled(instances: Any) -> np.ndarray:
    """Instances (n, 64) from 0 to 16 as the network takes them, float32 from 0 to 1."""
    return (np.asarray(instances, dtype=np.float64) / INK).astype(np.float32)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference; infinite when the shapes differ or a number is none."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max())


def check(source: Source, predict: Predict) -> dict[str, float]:
    """The artifact's metrics on the held-out images.

    Raises Refused when it answers otherwise than the source, there or in the golden cases.
    """
    for number, case in enumerate(source.cases):
        answer = predict(scaled(case["request"]["instances"]))
        expected = np.asarray(case["response"]["predictions"])
        difference = largest_difference(np.asarray(answer), expected)
        if difference > TOLERANCE:
            raise _disagreement(source, f"in golden case {number}", difference)
    expected = source.network.forward(source.holdout_images / INK)
    answer = np.asarray(predict(scaled(source.holdout_images)))
    difference = largest_difference(answer, expected)
    if difference > TOLERANCE:
        raise _disagreement(source, "on the held-out images", difference)
    return {**measure(answer, source.holdout_digits), "largest_difference": difference}


def measure(answer: np.ndarray, digits: np.ndarray) -> dict[str, float]:
    """The metrics of answers (n, 10) to images of these digits (n,)."""
    likelihood = np.clip(answer[np.arange(len(answer)), digits], 1e-12, 1)
    return {
        "accuracy": float(np.mean(answer.argmax(axis=1) == digits)),
        "log_loss": float(-np.log(likelihood).mean()),
    }


def _disagreement(source: Source, where: str, difference: float) -> Refused:
    return Refused(
        f"its answers differ by {difference:.2g} from those of {source.model} version "
        f"{source.version} {where}; {TOLERANCE:g} is allowed. Nothing was published. "
        "Mend the export"
    )


def exporter(
    framework: str, framework_version: str, write: Write, load: Load
) -> training_job.Build:
    """The build of an export, for training_job.run."""

    def build(job: Job) -> dict[str, Any]:
        source = fetch_source(job.client, job.settings.bucket, os.environ)

        def evaluate(directory: Path) -> dict[str, float]:
            answer = load(directory)(scaled(source.holdout_images))
            return measure(np.asarray(answer), source.holdout_digits)

        job.say(f"fetched {source.model} version {source.version}")
        write(source.network.as_float32(), job)
        metrics = check(source, load(job.directory))
        job.say(
            f"wrote it for {framework}; accuracy {metrics['accuracy']:.4f} on the held-out images, "
            f"largest difference {metrics['largest_difference']:.1g} to the source"
        )
        job.gate(metrics, evaluate)
        (job.directory / TRANSFORM).write_text(TRANSFORM_TEXT)
        job.write_golden(source.cases, TOLERANCE)
        return {
            "framework": framework,
            "framework_version": framework_version,
            "signature": source.manifest["signature"],
            "data": source.manifest.get("data"),
            "seed": source.manifest.get("seed"),
            "derived_from": {
                "model": source.model,
                "version": source.version,
                "manifest_sha256": source.manifest_sha256,
            },
        }

    return build


def main(framework: str, framework_version: str, write: Write, load: Load) -> int:
    """The whole export; returns the exit status, see groundcrew.training_job."""
    return training_job.main(exporter(framework, framework_version, write, load))
