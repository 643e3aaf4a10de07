"""The same model version in the application's own process, for where a hop costs more than it gives.

It needs the package groundcrew_prediction, and ONNX Runtime (or scikit-learn, for a version without model.onnx) in the image; they are
imported only here. docs/your-own-application.md says when not to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from groundcrew import model_store
from groundcrew.errors import GroundcrewError

from .prediction import EMBEDDED, Answer, Hooks, PredictionError


class EmbeddedModel:
    """Predicts as a PredictionClient does; safe to use from many threads, one predicts at a time."""

    def __init__(
        self,
        directory: Path,
        *,
        manifest_sha256: str | None = None,
        check: Callable[[Any], object] = lambda prediction: None,
        hooks: Hooks | None = None,
    ) -> None:
        """directory: /models/<name>/<version>. check: as for a PredictionClient.

        Raises GroundcrewError when the version is not whole, its golden predictions do not come out right, or this image lacks what
        it needs.
        """
        name, version = (
            model_store.check_model(directory.parent.name),
            model_store.check_version(directory.name),
        )
        try:
            from groundcrew_prediction import contract, engine
        except ImportError as error:
            raise GroundcrewError(
                f"a model cannot be embedded, this image lacks {error.name}; name the image application_digits_embedded, or "
                "install groundcrew_prediction, numpy and onnxruntime in yours"
            ) from error
        self._contract = contract
        try:
            self._engine = engine.load(directory, name, version, manifest_sha256)
        except ImportError as error:
            raise GroundcrewError(
                f"model {name} version {version} has no model.onnx, and this image lacks {error.name}; publish it with an ONNX "
                "export, or install scikit-learn of the training image's version in yours"
            ) from error
        self._lock = threading.Lock()
        self._check = check
        self._hooks = hooks or Hooks()
        self._answered: float | None = None
        self.name, self.version = name, version
        self.problem: str | None = (
            None  # as a PredictionClient has; a model in this process has none
        )

    @property
    def answered_seconds_ago(self) -> float | None:
        """Since the model last predicted; None: never."""
        return None if self._answered is None else time.perf_counter() - self._answered

    def predict(self, instance: Any, request_id: str) -> Answer:
        """Predict one instance. Raises PredictionError, ``refused``, when the model cannot be given it."""
        answer = self.ask([instance], request_id)
        self._hooks.answered(EMBEDDED, answer.latency_ms / 1000)
        return answer

    def ask(self, instances: Sequence[Any], request_id: str) -> Answer:
        """Predict instances. Raises PredictionError."""
        began = time.perf_counter()
        try:
            array = self._contract.to_array(
                self._contract.instances_of({"instances": list(instances)}),
                self._engine.model.signature,
            )
            with self._lock:
                locked = time.perf_counter()
                predictions = self._engine.predict(array).tolist()
        except self._contract.BadRequest as error:
            raise PredictionError(502, f"the model refuses it: {error}", answered=400) from error
        except ArithmeticError as error:
            raise PredictionError(502, str(error)) from error
        try:
            for prediction in predictions:
                self._check(prediction)
        except (ValueError, TypeError) as error:
            raise PredictionError(502, f"the model did not give {error}") from error
        self._answered = ended = time.perf_counter()
        return Answer(
            predictions=predictions,
            source=EMBEDDED,
            version=self.version,
            latency_ms=(ended - began) * 1000,
            timing_ms={
                "queue": (locked - began) * 1000,
                "model": (ended - locked) * 1000,
                "total": (ended - began) * 1000,
            },
        )
