from __future__ import annotations

import numpy as np
import pytest
from groundcrew.errors import GroundcrewError
from groundcrew.onnx_export import export
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.tree import DecisionTreeRegressor

pytest.importorskip("skl2onnx")


def test_export_answers_as_scikit_learn(model, tmp_path):
    result = export(model, tmp_path, np.random.default_rng(0).uniform(0, 16, (200, 64)))
    assert result.reason is None
    assert result.difference is not None and result.difference < 1e-4
    assert (tmp_path / "model.onnx").stat().st_size > 0


def test_difference_is_refused_by_row_and_leaves_no_file(tmp_path):
    features = np.arange(8.0).reshape(-1, 1)
    tree = DecisionTreeRegressor().fit(features, features[:, 0] / 3 * 1e6)
    with pytest.raises(GroundcrewError, match=r"of 8 test instances differently .rows 1"):
        export(tree, tmp_path, features)
    assert not list(tmp_path.iterdir())


class Unknown(ClassifierMixin, BaseEstimator):
    def predict_proba(self, rows):
        return np.ones((len(rows), 1))


def test_what_cannot_be_converted_is_a_reason(tmp_path):
    result = export(Unknown(), tmp_path, np.zeros((3, 2)))
    assert result.difference is None
    assert "cannot convert" in str(result.reason)
    assert not list(tmp_path.iterdir())
