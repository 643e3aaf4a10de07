"""Model engines: something that turns an array of instances into an array of predictions."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
import sklearn
from groundcrew import golden, model_store
from groundcrew.errors import GroundcrewError
from sklearn.exceptions import InconsistentVersionWarning

from .contract import Signature, read_instances

ARTIFACT = "model.joblib"


class Engine(Protocol):
    """What the service needs of a model, whatever the framework."""

    @property
    def model(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def framework(self) -> str: ...

    @property
    def manifest_sha256(self) -> str: ...

    @property
    def signature(self) -> Signature: ...

    def predict(self, instances: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Predictions (n, *outputs) of instances (n, *shape). Safe to call from several threads."""
        ...


@dataclass(frozen=True)
class SklearnEngine:
    """A scikit-learn estimator, loaded from a verified model version."""

    model: str
    version: str
    manifest_sha256: str
    signature: Signature
    estimator: Any
    framework: str = "sklearn"

    def predict(self, instances: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Probabilities when the signature has labels, else the estimator's own prediction."""
        rows = instances.reshape(len(instances), -1)
        labelled = self.signature.labels is not None
        answer = self.estimator.predict_proba(rows) if labelled else self.estimator.predict(rows)
        predictions = np.asarray(answer).reshape(len(rows), *self.signature.outputs)
        if predictions.dtype.kind == "f" and not np.isfinite(predictions).all():
            raise ArithmeticError(f"model {self.model} version {self.version} predicted NaN")
        return predictions


def load(
    directory: Path, model: str, version: str, manifest_sha256: str | None = None
) -> SklearnEngine:
    """Load a model version, after every checksum was right.

    Unpickling runs code, so nothing is unpickled whose sha256 the manifest does not have; the bytes
    that were hashed are the bytes that are unpickled. Then the golden cases must come out right.
    Raises GroundcrewError when a checksum, the framework's version or a golden case differs.
    """
    verified = model_store.verify_directory(directory)
    if manifest_sha256 is not None and verified.manifest_sha256 != manifest_sha256:
        raise GroundcrewError(
            f"{directory / model_store.MANIFEST} has sha256 {verified.manifest_sha256}, "
            f"{manifest_sha256} is expected; fetch the model version again"
        )
    manifest = verified.manifest
    if manifest["framework"] != "sklearn" or ARTIFACT not in manifest["files"]:
        raise GroundcrewError(
            f"{directory} holds a {manifest['framework']} model with files "
            f"{sorted(manifest['files'])}; this image serves framework sklearn from {ARTIFACT}"
        )
    signature = Signature.from_manifest(manifest)
    estimator = _unpickle(directory / ARTIFACT, manifest["files"][ARTIFACT]["sha256"])
    method = "predict" if signature.labels is None else "predict_proba"
    if not callable(getattr(estimator, method, None)):
        raise GroundcrewError(
            f"{directory / ARTIFACT} holds a {type(estimator).__name__}, which has no {method}; "
            "publish an estimator that has, or correct the signature's outputs"
        )
    engine = SklearnEngine(
        model=model,
        version=version,
        manifest_sha256=verified.manifest_sha256,
        signature=signature,
        estimator=estimator,
    )
    _check_golden(engine, golden.load(directory / model_store.GOLDEN))
    return engine


def _unpickle(path: Path, sha256: str) -> Any:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise GroundcrewError(f"{path} has sha256 {digest}, the manifest expects {sha256}")
    try:
        with warnings.catch_warnings():
            # scikit-learn promises nothing for models of another version; some differ silently.
            warnings.simplefilter("error", InconsistentVersionWarning)
            return joblib.load(io.BytesIO(data))
    except InconsistentVersionWarning as warning:
        raise GroundcrewError(
            f"{path} was trained with scikit-learn {warning.original_sklearn_version}, this image "
            f"has {sklearn.__version__}; train the model again, or serve it with the image of its "
            "time"
        ) from None
    except Exception as error:
        raise GroundcrewError(
            f"{path} cannot be loaded ({type(error).__name__}: {error}); the training image and "
            "this image must have the same packages"
        ) from error


def _check_golden(engine: SklearnEngine, cases: golden.Golden) -> None:
    for number, case in enumerate(cases.cases):
        body = json.dumps(case["request"]).encode()
        answer = engine.predict(read_instances(body, engine.signature)).tolist()
        faults = golden.compare({"predictions": answer}, case["response"], cases.tolerance)
        if faults:
            raise GroundcrewError(
                f"model {engine.model} version {engine.version} answers golden case {number} "
                f"wrong: {faults[0]}; the packages of this image differ from those that trained it"
            )
