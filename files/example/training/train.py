"""Train the handwritten digits classifier, pass the gate, publish it to the model store.

An instance is 64 numbers from 0 to 16: an image of 8 by 8 pixels, row by row. A prediction is the
probability of each digit. Environment, last line and exit status: groundcrew.training_job. And
FRAMEWORK, what the version is for:

    sklearn (the default)  model.joblib, model.onnx where skl2onnx is installed, and the files from
                           which network.py's exports make the same network for other servers
    flask, custom          model.joblib, for a team's own Flask application or image
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
from groundcrew import objects, onnx_export, training_job
from groundcrew.errors import GroundcrewError
from groundcrew.training_job import Checkpoints, Job, Refused
from network import HOLDOUT, INK, NETWORK, Network, measure, save_holdout
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, InconsistentVersionWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

SIDE = 8
HOLDOUT_KEY = "data/digits/holdout.csv"
# The split never changes, whatever the seed, so that the accuracies of versions can be compared.
HOLDOUT_SEED = 20260101
HOLDOUT_SHARE = 0.2
CHANGED_COPIES = 14
HIDDEN = (128, 64)
# Learning rate and rounds of each phase; the small steps at the end settle it.
PHASES = ((3e-3, 10), (4e-4, 4))
# The export computes in float32, and so do the other model servers.
GOLDEN_TOLERANCE = 1e-4
FRAMEWORKS = ("sklearn", "flask", "custom")


@dataclass(frozen=True)
class Data:
    """Images (n, 64), float64 from 0 to 16, and digits (n,); ids name the held-out rows."""

    images: np.ndarray
    digits: np.ndarray
    holdout_images: np.ndarray
    holdout_digits: np.ndarray
    holdout_ids: list[str]
    sha256: str

    @property
    def rows(self) -> int:
        return len(self.images) + len(self.holdout_images)


def load_data() -> Data:
    """The UCI digits that come with scikit-learn, a fifth of each digit held out."""
    images, digits = load_digits(return_X_y=True)
    images = np.ascontiguousarray(images, dtype="<f8")
    digits = np.ascontiguousarray(digits, dtype="<i8")
    rows = np.arange(len(images))
    train, holdout = train_test_split(
        rows, test_size=HOLDOUT_SHARE, stratify=digits, random_state=HOLDOUT_SEED
    )
    holdout.sort()
    return Data(
        images=images[train],
        digits=digits[train],
        holdout_images=images[holdout],
        holdout_digits=digits[holdout],
        holdout_ids=[f"digit-{row:04d}" for row in holdout],
        sha256=hashlib.sha256(images.tobytes() + digits.tobytes()).hexdigest(),
    )


def changed_copies(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One slightly turned, slanted, scaled, moved and re-inked copy of each image, (n, 64).

    The bundled digits were written by 43 people on a tablet; what somebody draws with a mouse leans
    and sits a little differently. Pixels are enlarged four times first, which is the size at which
    the data set's authors counted them.
    """
    count, scale = len(images), 4
    large = images.reshape(count, SIDE, SIDE).repeat(scale, 1).repeat(scale, 2)
    large = ndimage.gaussian_filter(large, (0, 1.2, 1.2))
    middle = np.full(2, (SIDE * scale - 1) / 2)
    for index, image in enumerate(large):
        angle = np.radians(random.uniform(-12, 12))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        slant = np.array([[1, 0], [random.uniform(-0.15, 0.15), 1]])
        matrix = turn @ slant @ np.diag(1 / random.uniform(0.85, 1.12, 2))
        offset = middle - matrix @ (middle + random.uniform(-2.5, 2.5, 2))
        large[index] = ndimage.affine_transform(image, matrix, offset, order=1)
    small = large.reshape(count, SIDE, scale, SIDE, scale).mean((2, 4))
    ink = random.uniform(0.85, 1.5, (count, 1, 1))
    copies: np.ndarray = np.clip(small * ink, 0, INK).round().reshape(count, SIDE * SIDE)
    return copies


def train(
    images: np.ndarray,
    digits: np.ndarray,
    seed: int,
    checkpoints: Checkpoints,
    say: Callable[[str], None] = print,
) -> Pipeline:
    """A pipeline whose predict_proba gives ten probabilities, fitted on images and their copies.

    Goes on after the phase of the latest checkpoint; the result is the same as without a break.
    """
    random = np.random.default_rng(seed)
    copies = [changed_copies(images, random) for _ in range(CHANGED_COPIES)]
    features = np.concatenate([images, *copies])
    labels = np.tile(digits, CHANGED_COPIES + 1)
    # Fitted on the range that instances may have, not on what the data happens to have: every pixel is divided by 16.
    scale = MinMaxScaler().fit([[0.0] * features.shape[1], [INK] * features.shape[1]])
    classify = MLPClassifier(HIDDEN, alpha=0.01, batch_size=256, random_state=seed, warm_start=True)
    done = 0
    if latest := checkpoints.latest():
        # Each phase starts with an optimizer and random numbers of its own, so the weights are all.
        classify, done = joblib.load(latest.directory / "classify.joblib"), latest.step
    with warnings.catch_warnings():
        # So many rounds are enough: more take longer and predict no better.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for phase, (rate, rounds) in enumerate(PHASES[done:], done + 1):
            classify.set_params(learning_rate_init=rate, max_iter=rounds)
            classify.fit(scale.transform(features), labels)
            checkpoints.save(phase, functools.partial(_save, classify))
            say(f"phase {phase} of {len(PHASES)} is done, and kept as a checkpoint")
    return Pipeline([("scale", scale), ("classify", classify)])


def _save(classify: MLPClassifier, directory: Path) -> None:
    joblib.dump(classify, directory / "classify.joblib")


def evaluate(directory: Path, data: Data) -> dict[str, float]:
    """The metrics of another version on the held-out images."""
    if (directory / NETWORK).exists():
        answer = Network.load(directory / NETWORK).forward(data.holdout_images / INK)
    else:
        with warnings.catch_warnings():
            # What another scikit-learn makes of this file is not what it serves.
            warnings.simplefilter("error", InconsistentVersionWarning)
            model = joblib.load(directory / "model.joblib")
        answer = model.predict_proba(data.holdout_images)
    return measure(answer, data.holdout_digits)


def golden_cases(model: Pipeline, data: Data) -> list[dict[str, Any]]:
    """One held-out image of each digit and the model's answer."""
    cases = []
    for digit in range(10):
        instance = data.holdout_images[np.argmax(data.holdout_digits == digit)]
        answer = model.predict_proba(instance.reshape(1, -1))
        cases.append(
            {
                "request": {"instances": [instance.tolist()]},
                "response": {"predictions": answer.tolist()},
            }
        )
    return cases


def holdout_csv(data: Data) -> bytes:
    """The held-out images as CSV with the header id,p0,…,p63; input of the batch example."""
    lines = [",".join(["id", *(f"p{pixel}" for pixel in range(SIDE * SIDE))])]
    for row, image in zip(data.holdout_ids, data.holdout_images, strict=True):
        lines.append(",".join([row, *(f"{value:g}" for value in image)]))
    return ("\n".join(lines) + "\n").encode()


def write_artifact(job: Job, framework: str, model: Pipeline, data: Data) -> None:
    """The files of one version besides golden.json. Raises Refused when an export is wrong."""
    joblib.dump(model, job.directory / "model.joblib", compress=3)
    if framework != "sklearn":
        return
    classify = model.named_steps["classify"]
    Network(classify.coefs_, classify.intercepts_).save(job.directory / NETWORK)
    save_holdout(job.directory / HOLDOUT, data.holdout_images, data.holdout_digits)
    try:
        exported = onnx_export.export(
            model, job.directory, np.concatenate([data.images, data.holdout_images])
        )
    except ImportError as error:
        job.say(f"no ONNX export, scikit-learn itself will serve: {error}")
    except GroundcrewError as error:
        raise Refused(f"{error}. Nothing was published") from error
    else:
        job.say(
            f"no ONNX export, scikit-learn itself will serve: {exported.reason}"
            if exported.difference is None
            else f"exported to ONNX; largest difference {exported.difference:.1g}"
        )


def build(job: Job) -> dict[str, Any]:
    """Train into the job's directory; returns the manifest but for the files."""
    framework = os.environ.get("FRAMEWORK") or "sklearn"
    if framework not in FRAMEWORKS:
        raise GroundcrewError(
            f"FRAMEWORK is {framework!r}; it must be one of {', '.join(FRAMEWORKS)}"
        )
    if job.data is not None:
        raise GroundcrewError(
            f"DATA is {job.data.source}, and the digits come with scikit-learn; leave DATA empty"
        )
    data = load_data()
    # Fewer images make a worse model, for learning curves and for trying out what notices a worse one.
    rows = int(os.environ.get("TRAINING_ROWS") or len(data.images))
    data = replace(data, images=data.images[:rows], digits=data.digits[:rows])
    job.say(f"loaded {data.rows} images, {len(data.holdout_images)} of them held out")
    checkpoints = job.checkpoints(rows=rows, sklearn=sklearn.__version__)
    if latest := checkpoints.latest():
        job.say(f"goes on after phase {latest.step} of {len(PHASES)}")
    model = train(data.images, data.digits, job.settings.seed, checkpoints, job.say)
    metrics = measure(model.predict_proba(data.holdout_images), data.holdout_digits)
    job.say(
        f"trained; accuracy {metrics['accuracy']:.4f} on the held-out images, log loss "
        f"{metrics['log_loss']:.4f}"
    )
    job.gate(metrics, lambda directory: evaluate(directory, data))
    write_artifact(job, framework, model, data)
    job.write_golden(golden_cases(model, data), GOLDEN_TOLERANCE)
    objects.put(job.client, job.settings.bucket, HOLDOUT_KEY, holdout_csv(data))
    job.say(f"wrote the held-out images to s3://{job.settings.bucket}/{HOLDOUT_KEY}")
    return {
        "framework": framework,
        "framework_version": sklearn.__version__,
        "signature": {
            "inputs": {"shape": [SIDE * SIDE], "dtype": "float64", "minimum": 0, "maximum": INK},
            "outputs": {"shape": [10], "labels": [str(digit) for digit in range(10)]},
        },
        "data": {
            "sha256": data.sha256,
            "rows": data.rows,
            "source": "sklearn.datasets.load_digits",
            "holdout_rows": len(data.holdout_images),
            "holdout_key": HOLDOUT_KEY,
        },
        "seed": job.settings.seed,
    }


if __name__ == "__main__":
    sys.exit(training_job.main(build))
