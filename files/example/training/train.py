"""Train the handwritten digits classifier, pass the gate, publish it to the model store.

An instance is 64 numbers from 0 to 16: an image of 8 by 8 pixels, row by row. A prediction is the
probability of each digit. Progress goes to standard output; its last line is a JSON object with
model, version, accuracy and manifest_sha256. Exit status: 0 published, 2 could not start or
publish (a version that is taken, for example), 3 refused by the gate.

Environment: MODEL_NAME, MODEL_VERSION and STORE_BUCKET; GATE_ACCURACY (0.95), SEED (0),
CODE_REVISION, IMAGE_DIGEST and CLAIM_OWNER (the host's name) may be left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import numpy as np
import sklearn
from groundcrew import model_store, objects
from groundcrew.errors import GroundcrewError
from scipy import ndimage
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, train_test_split
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

SIDE = 8
INK = 16.0
HOLDOUT_KEY = "data/digits/holdout.csv"
# The split never changes, whatever the seed, so that the accuracies of versions can be compared.
HOLDOUT_SEED = 20260101
HOLDOUT_SHARE = 0.25
CHANGED_COPIES = 3
FOLDS = 3
GOLDEN_TOLERANCE = 1e-6

REFUSED = 3


@dataclass(frozen=True)
class Settings:
    """What the environment says; see the module's docstring."""

    model: str
    version: str
    bucket: str
    gate_accuracy: float = 0.95
    seed: int = 0
    code_revision: str | None = None
    image_digest: str | None = None
    owner: str = ""

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Raises GroundcrewError that names the variable."""
        missing = [n for n in ("MODEL_NAME", "MODEL_VERSION", "STORE_BUCKET") if not env.get(n)]
        if missing:
            raise GroundcrewError(f"{', '.join(missing)} must be set in the job's environment")
        gate, seed = env.get("GATE_ACCURACY") or "0.95", env.get("SEED") or "0"
        try:
            gate_accuracy = float(gate)
        except ValueError:
            gate_accuracy = -1.0
        if not 0 <= gate_accuracy <= 1:
            raise GroundcrewError(f"GATE_ACCURACY is {gate!r}; it must be a number from 0 to 1")
        if not seed.isdecimal() or int(seed) >= 2**32:
            raise GroundcrewError(f"SEED is {seed!r}; it must be a whole number below 2^32")
        return cls(
            model=model_store.check_model(env["MODEL_NAME"]),
            version=model_store.check_version(env["MODEL_VERSION"]),
            bucket=env["STORE_BUCKET"],
            gate_accuracy=gate_accuracy,
            seed=int(seed),
            code_revision=env.get("CODE_REVISION") or None,
            image_digest=env.get("IMAGE_DIGEST") or None,
            owner=env.get("CLAIM_OWNER") or socket.gethostname(),
        )


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
    """The UCI digits that come with scikit-learn, a quarter of each digit held out."""
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


def train(images: np.ndarray, digits: np.ndarray, seed: int) -> Pipeline:
    """A pipeline whose predict_proba gives ten probabilities, fitted on images and their copies.

    The copies of an image stay in one fold, or the probabilities would be calibrated on images that
    the classifier has all but seen.
    """
    random = np.random.default_rng(seed)
    copies = [changed_copies(images, random) for _ in range(CHANGED_COPIES)]
    features = np.concatenate([images, *copies])
    labels = np.tile(digits, CHANGED_COPIES + 1)
    groups = np.tile(np.arange(len(images)), CHANGED_COPIES + 1)
    folds = list(GroupKFold(FOLDS).split(features, labels, groups))
    # One classifier a digit: SVC's own decision function for ten classes is a count of votes, too
    # coarse to be made into probabilities. ensemble=False: one set of them, not one a fold.
    classifier = OneVsRestClassifier(SVC(C=10, gamma=0.08))
    model = make_pipeline(
        MinMaxScaler(),
        CalibratedClassifierCV(classifier, method="temperature", ensemble=False, cv=folds),
    )
    return model.fit(features, labels)


def golden_cases(model: Pipeline, data: Data) -> dict[str, Any]:
    """The content of golden.json: one held-out image of each digit and the model's answer."""
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
    return {"cases": cases, "tolerance": GOLDEN_TOLERANCE}


def holdout_csv(data: Data) -> bytes:
    """The held-out images as CSV with the header id,p0,…,p63; input of the batch example."""
    lines = [",".join(["id", *(f"p{pixel}" for pixel in range(SIDE * SIDE))])]
    for row, image in zip(data.holdout_ids, data.holdout_images, strict=True):
        lines.append(",".join([row, *(f"{value:g}" for value in image)]))
    return ("\n".join(lines) + "\n").encode()


def manifest(settings: Settings, data: Data, accuracy: float, loss: float) -> dict[str, Any]:
    """The manifest but for the files, which publishing adds."""
    return {
        "framework": "sklearn",
        "framework_version": sklearn.__version__,
        "signature": {
            "inputs": {"shape": [SIDE * SIDE], "dtype": "float64", "minimum": 0, "maximum": INK},
            "outputs": {"shape": [10], "labels": [str(digit) for digit in range(10)]},
        },
        "metrics": {"accuracy": accuracy, "log_loss": loss},
        "data": {
            "sha256": data.sha256,
            "rows": data.rows,
            "source": "sklearn.datasets.load_digits",
            "holdout_rows": len(data.holdout_images),
            "holdout_key": HOLDOUT_KEY,
        },
        "image": settings.image_digest,
        "code_revision": settings.code_revision,
        "seed": settings.seed,
    }


def run(settings: Settings, client: Any) -> dict[str, Any] | None:
    """Train and publish; the result for the last line, or None when the gate refused the model.

    The version is claimed before anything is computed, and given back when nothing is published.
    """
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)

    name = f"{settings.model} version {settings.version}"
    held = model_store.claim(
        client, settings.bucket, settings.model, settings.version, settings.owner
    )
    say(f"claimed {name} in s3://{settings.bucket}")
    published = False
    try:
        data = load_data()
        say(f"loaded {data.rows} images, {len(data.holdout_images)} of them held out")
        model = train(data.images, data.digits, settings.seed)
        probabilities = model.predict_proba(data.holdout_images)
        accuracy = float(np.mean(probabilities.argmax(axis=1) == data.holdout_digits))
        loss = float(log_loss(data.holdout_digits, probabilities))
        say(f"trained; accuracy {accuracy:.4f} on the held-out images, log loss {loss:.4f}")
        if accuracy < settings.gate_accuracy:
            _print_refusal(name, accuracy, settings.gate_accuracy)
            return None
        objects.put(client, settings.bucket, HOLDOUT_KEY, holdout_csv(data))
        say(f"wrote the held-out images to s3://{settings.bucket}/{HOLDOUT_KEY}")
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            joblib.dump(model, directory / "model.joblib", compress=3)
            (directory / model_store.GOLDEN).write_bytes(objects.to_json(golden_cases(model, data)))
            details = manifest(settings, data, accuracy, loss)
            digest = model_store.publish(client, settings.bucket, held, directory, details)
        published = True
        say(f"published {name}")
    finally:
        if not published:
            model_store.release(client, settings.bucket, held)
    return {
        "model": settings.model,
        "version": settings.version,
        "accuracy": round(accuracy, 4),
        "manifest_sha256": digest,
    }


def _print_refusal(name: str, accuracy: float, gate: float) -> None:
    print(
        f"error: {name} is refused: accuracy {accuracy:.4f} on the held-out images is below the "
        f"gate of {gate:g}. Nothing was published. Mend the data or the training, or lower "
        "GATE_ACCURACY if that is accurate enough",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    signal.signal(signal.SIGTERM, _stop)
    try:
        settings = Settings.from_environment(os.environ)
        with objects.readable_errors(settings.bucket):
            result = run(settings, objects.open_client())
    except GroundcrewError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if result is None:
        return REFUSED
    print(json.dumps(result), flush=True)
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # An exception, so that the claim is given back on the way out.
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
