"""The ONNX export of a scikit-learn model, made when a version is published and believed only when it answers the same.

ONNX Runtime answers one row in a tenth of scikit-learn's time. skl2onnx converts in float32, so a tree's threshold may fall on the
other side of a number: the export is compared on every test instance there is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import GroundcrewError

ARTIFACT = "model.onnx"
# Ten times what rounding to float32 costs a probability, and a hundredth of what a person would notice.
TOLERANCE = 1e-4
_MOST_ROWS_NAMED = 10


@dataclass(frozen=True)
class Export:
    """Whether the estimator was exported: the largest absolute difference of an answer, or the reason why not."""

    difference: float | None
    reason: str | None = None


def open_session(data: bytes) -> Any:
    """An ONNX Runtime session that answers as the export was checked; what ONNX Runtime raises."""
    # Its builds tell their maker about models and machines unless this is set.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # More threads sum up in another order, so that a tree ensemble's labels differ now and then.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def export(
    estimator: Any, directory: Path, test_instances: Any, tolerance: float = TOLERANCE
) -> Export:
    """Write ``model.onnx`` for an estimator into a directory.

    test_instances: (n, features), all that there are. One that skl2onnx cannot convert is served by
    scikit-learn itself: a reason is returned and nothing is written. Raises GroundcrewError, and
    writes nothing, when an answer differs by more than ``tolerance`` or a label differs.
    """
    import numpy as np
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    instances = np.asarray(test_instances, dtype=np.float32)
    classifier = hasattr(estimator, "predict_proba")
    try:
        converted = skl2onnx.convert_sklearn(
            estimator,
            initial_types=[("instances", FloatTensorType([None, instances.shape[1]]))],
            # Probabilities as one array instead of a list of maps.
            options={id(estimator): {"zipmap": False}} if classifier else None,
        )
    except Exception as error:
        return Export(None, f"skl2onnx cannot convert it ({type(error).__name__}: {error})")
    data = converted.SerializeToString()
    session = open_session(data)
    found = session.run(None, {"instances": instances})
    # scikit-learn is asked with the numbers as they are: rounding them first would hide what it costs.
    exact = np.asarray(test_instances)
    expected = estimator.predict_proba(exact) if classifier else estimator.predict(exact)
    answer = np.asarray(found[-1], dtype=np.float64).reshape(np.shape(expected))
    differences = np.abs(answer - expected).reshape(len(instances), -1).max(axis=1)
    wrong = ~(differences <= tolerance)
    if classifier:
        wrong |= answer.argmax(axis=1) != np.asarray(expected).argmax(axis=1)
    rows = np.flatnonzero(wrong)
    if len(rows):
        named = ", ".join(str(row) for row in rows[:_MOST_ROWS_NAMED])
        raise GroundcrewError(
            f"the ONNX export answers {len(rows)} of {len(instances)} test instances differently "
            f"(rows {named}{', …' if len(rows) > _MOST_ROWS_NAMED else ''}; by up to "
            f"{differences.max():g}, {tolerance:g} is allowed); train on float32 numbers, or publish "
            f"without an export"
        )
    (directory / ARTIFACT).write_bytes(data)
    return Export(float(differences.max()))
