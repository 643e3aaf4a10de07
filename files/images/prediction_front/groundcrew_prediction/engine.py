"""Models in this process: something that turns an array of instances into one of predictions.

A scikit-learn model with an ONNX export is run by ONNX Runtime, which needs a tenth of the time of a
one-row prediction; without one scikit-learn itself is. Both give the same answers (the export was
compared on the whole test set when it was published, and the golden cases are on every start).
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from groundcrew import golden, model_store, onnx_export
from groundcrew.errors import GroundcrewError

from . import transform
from .contract import Signature, instances_of, to_array
from .transform import Array, Transform

SKLEARN_ARTIFACT = "model.joblib"
ONNX_ARTIFACT = onnx_export.ARTIFACT
_FEW = 256


@dataclass(frozen=True)
class Model:
    """A model version whose every checksum was right."""

    name: str
    version: str
    directory: Path
    framework: str
    manifest_sha256: str
    signature: Signature
    files: dict[str, str] = field(repr=False)
    golden: golden.Golden = field(repr=False)
    transform: Transform = field(repr=False)

    @property
    def what(self) -> str:
        return f"model {self.name} version {self.version}"


class Engine(Protocol):
    """A model in this process."""

    @property
    def model(self) -> Model: ...

    def predict(self, instances: Array) -> Array:
        """Predictions (n, *outputs) of instances (n, *shape). Not safe to call from two threads."""
        ...


def open_model(
    directory: Path, name: str, version: str, manifest_sha256: str | None = None
) -> Model:
    """What a model version says of itself, after every checksum was right.

    Raises GroundcrewError when one differs, or a part is malformed.
    """
    verified = model_store.verify_directory(directory)
    if manifest_sha256 is not None and verified.manifest_sha256 != manifest_sha256:
        raise GroundcrewError(
            f"{directory / model_store.MANIFEST} has sha256 {verified.manifest_sha256}, "
            f"{manifest_sha256} is expected; fetch the model version again"
        )
    manifest = verified.manifest
    files = {file: str(entry["sha256"]) for file, entry in manifest["files"].items()}
    code = _read(directory, transform.FILE, files) if transform.FILE in files else None
    return Model(
        name=name,
        version=version,
        directory=directory,
        framework=str(manifest["framework"]),
        manifest_sha256=verified.manifest_sha256,
        signature=Signature.from_manifest(manifest),
        files=files,
        golden=golden.load(directory / model_store.GOLDEN),
        transform=transform.load(directory / transform.FILE, code),
    )


def load(
    directory: Path, name: str, version: str, manifest_sha256: str | None = None
) -> OnnxEngine | SklearnEngine:
    """Load a scikit-learn model version.

    Unpickling runs code, so nothing is loaded whose sha256 the manifest does not have; the bytes
    that were hashed are the bytes that are loaded. Then the golden cases must come out right.
    Raises GroundcrewError when a checksum, the library's version or a golden case differs.
    """
    model = open_model(directory, name, version, manifest_sha256)
    if model.framework != "sklearn" or SKLEARN_ARTIFACT not in model.files:
        raise GroundcrewError(
            f"{directory} holds a {model.framework} model with files {sorted(model.files)}; this "
            f"image serves framework sklearn from {SKLEARN_ARTIFACT}"
        )
    exported = ONNX_ARTIFACT in model.files and _has_onnxruntime()
    engine: OnnxEngine | SklearnEngine = OnnxEngine(model) if exported else SklearnEngine(model)
    for number, case in enumerate(model.golden.cases):
        answer = engine.predict(to_array(instances_of(case["request"]), model.signature)).tolist()
        fault = golden_fault(model, number, {"predictions": answer})
        if fault:
            raise GroundcrewError(
                f"{fault}; the packages of this image differ from those that trained it"
            )
    return engine


def golden_fault(model: Model, number: int, answer: Any) -> str | None:
    """What is wrong with the answer to a golden case, None when nothing is."""
    case = model.golden.cases[number]
    faults = golden.compare(answer, case["response"], model.golden.tolerance)
    return f"{model.what} answers golden case {number} wrong: {faults[0]}" if faults else None


class OnnxEngine:
    """The ONNX export of a model, in ONNX Runtime."""

    def __init__(self, model: Model) -> None:
        self.model = model
        path = model.directory / ONNX_ARTIFACT
        data = _read(model.directory, ONNX_ARTIFACT, model.files)
        try:
            session = onnx_export.open_session(data)
        except Exception as error:
            import onnxruntime

            raise GroundcrewError(
                f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__} ({error}); "
                "publish it again with an opset that this version has, or serve it with a newer image"
            ) from error
        self._run = session.run
        self._input = session.get_inputs()[0].name
        # A classifier has its labels first; numbers are last.
        self._outputs = [session.get_outputs()[-1].name]

    def predict(self, instances: Array) -> Array:
        transform = self.model.transform
        rows = transform.preprocess(instances).reshape(len(instances), -1)
        (answer,) = self._run(self._outputs, {self._input: rows.astype(np.float32, copy=False)})
        return checked(self.model, transform.postprocess(answer))


class SklearnEngine:
    """A scikit-learn estimator."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._estimator = _unpickle(
            model.directory / SKLEARN_ARTIFACT,
            _read(model.directory, SKLEARN_ARTIFACT, model.files),
        )
        method = "predict" if model.signature.labels is None else "predict_proba"
        # Probabilities when the signature has labels, else the estimator's own prediction.
        self._predict = getattr(self._estimator, method, None)
        if not callable(self._predict):
            raise GroundcrewError(
                f"{model.directory / SKLEARN_ARTIFACT} holds a {type(self._estimator).__name__}, "
                f"which has no {method}; publish an estimator that has, or correct the signature's "
                "outputs"
            )

    def predict(self, instances: Array) -> Array:
        assert self._predict is not None
        transform = self.model.transform
        answer = self._predict(transform.preprocess(instances).reshape(len(instances), -1))
        return checked(self.model, transform.postprocess(np.asarray(answer)))


def checked(model: Model, predictions: Array) -> Array:
    """Predictions in the signature's shape. Raises ArithmeticError for NaN or infinity."""
    shaped = predictions.reshape(len(predictions), *model.signature.outputs)
    # Calling into NumPy costs more than it saves on one row.
    few = shaped.size <= _FEW
    if not (all(map(isfinite, shaped.ravel().tolist())) if few else np.isfinite(shaped).all()):
        raise ArithmeticError(f"{model.what} predicted NaN or infinity")
    return shaped


def _has_onnxruntime() -> bool:
    from importlib.util import find_spec

    return find_spec("onnxruntime") is not None


def _read(directory: Path, name: str, files: dict[str, str]) -> bytes:
    """The bytes of a file, hashed as they are in memory."""
    data = (directory / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != files[name]:
        raise GroundcrewError(
            f"{directory / name} has sha256 {digest}, the manifest expects {files[name]}"
        )
    return data


def _unpickle(path: Path, data: bytes) -> Any:
    import joblib
    import sklearn
    from sklearn.exceptions import InconsistentVersionWarning

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
