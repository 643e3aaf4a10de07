"""Whether a run may replace the one that LATEST names.

A broken export, a wrong model version or a half-filled table gives a run that is complete and wrong.
Three figures tell most of them: how many rows were predicted, how many were rejected, and how the
answers are distributed, each compared with the run before. The distance of two distributions is their
total variation distance, half the sum of the absolute differences of their shares: 0 when they are
the same, 1 when no answer is in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from groundcrew_prediction.contract import Signature

Array = np.ndarray[Any, Any]

# The distribution of numbers is that of a sample: its error is far below any useful limit.
_SAMPLE_ROWS = 50_000
_SAMPLE_NUMBERS = 1_000_000
_MOST_COLUMNS = 64
_DECILES = np.arange(1, 10) / 10
_SEED = 20260101


@dataclass(frozen=True)
class Limits:
    """What a run must keep: 0 turns the first off, 1 the others."""

    minimum_rows_share: float = 0.5
    maximum_shift: float = 0.2
    maximum_rejected_share: float = 0.5


class Tally:
    """The distribution of a run's answers: of the label with the highest probability, or of each
    number (the first 64 of a prediction).

    Chunks may be added in any order and give the same.
    """

    def __init__(self, signature: Signature) -> None:
        width = int(np.prod(signature.outputs, dtype=int))
        labels = signature.labels
        self._labels = labels if labels is not None and len(labels) == width > 1 else None
        self._counts = np.zeros(width, np.int64)
        self._columns = min(width, _MOST_COLUMNS)
        self._keep = max(1, min(_SAMPLE_ROWS, _SAMPLE_NUMBERS // max(1, self._columns)))
        self._ranks = np.empty(0)
        self._sample = np.empty((0, self._columns))

    def add(self, index: int, predictions: Array) -> None:
        """The predictions (n, …) of chunk ``index``."""
        flat = predictions.reshape(len(predictions), -1)
        if self._labels is not None:
            self._counts += np.bincount(flat.argmax(axis=1), minlength=flat.shape[1])
            return
        # The rows with the lowest random numbers of all are a sample, whoever comes first.
        ranks = np.random.default_rng((_SEED, index)).random(len(flat))
        self._ranks = np.concatenate([self._ranks, ranks])
        self._sample = np.concatenate([self._sample, flat[:, : self._columns]])
        if len(self._ranks) > self._keep:
            order = np.argpartition(self._ranks, self._keep)[: self._keep]
            self._ranks, self._sample = self._ranks[order], self._sample[order]

    def document(self) -> dict[str, Any]:
        """The distribution for the manifest: counts of labels, or for each number its deciles
        (``edges``) and the shares of the answers below, at and between them."""
        if self._labels is not None:
            counts = self._counts.tolist()
            return {"kind": "labels", "counts": dict(zip(self._labels, counts, strict=True))}
        columns = []
        for values in self._sample.T:
            edges = np.unique(np.quantile(values, _DECILES, method="inverted_cdf"))
            columns.append({"edges": edges.tolist(), "shares": _shares(values, edges).tolist()})
        return {"kind": "numbers", "sampled": len(self._sample), "columns": columns}

    def shift(self, previous: Any) -> tuple[float, str] | None:
        """The distance from a manifest's distribution and what moved most; None when ``previous`` is
        none."""
        try:
            if previous["kind"] == "labels":
                before = {str(name): float(n) for name, n in previous["counts"].items()}
                return self._label_shift(before) if sum(before.values()) > 0 else None
            columns = [
                (np.array(column["edges"], float), np.array(column["shares"], float))
                for column in previous["columns"]
            ]
            if any(len(shares) != 2 * len(edges) + 1 for edges, shares in columns):
                return None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return self._number_shift(columns)

    def _label_shift(self, before: dict[str, float]) -> tuple[float, str]:
        if self._labels is None:
            return 1.0, "numbers instead of labels"
        now = dict(zip(self._labels, self._counts.tolist(), strict=True))
        old, new = sum(before.values()), max(1, sum(now.values()))
        moved = {
            name: now.get(name, 0) / new - before.get(name, 0) / old
            for name in [*now, *(name for name in before if name not in now)]
        }
        most = max(moved, key=lambda name: round(abs(moved[name]), 9))
        was = before.get(most, 0) / old
        detail = f"most of all {most!r}, from {was:.3f} to {now.get(most, 0) / new:.3f}"
        return sum(map(abs, moved.values())) / 2, detail

    def _number_shift(self, columns: list[tuple[Array, Array]]) -> tuple[float, str] | None:
        if self._labels is not None or len(columns) != self._columns:
            return 1.0, "answers of another form"
        shifts = [
            float(np.abs(_shares(values, edges) - shares).sum() / 2)
            for values, (edges, shares) in zip(self._sample.T, columns, strict=True)
        ]
        if not shifts or not len(self._sample):
            return None
        most = int(np.argmax(shifts))
        middle = float(np.median(self._sample[:, most]))
        edges = columns[most][0]
        was = float(edges[len(edges) // 2]) if len(edges) else middle
        which = f"number {most + 1} of each answer, " if len(shifts) > 1 else ""
        return shifts[most], f"{which}the middle one from about {was:g} to {middle:g}"


def _shares(values: Array, edges: Array) -> Array:
    """The shares of values below the first edge, at it, between it and the next, and so on.

    Places of their own for the edges tell apart answers that are always the same number.
    """
    places = np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
    return np.bincount(places, minlength=2 * len(edges) + 1) / max(1, len(values))


@dataclass(frozen=True)
class Judgement:
    """The figures, for the manifest, and why the run is held back, "" when it is not."""

    figures: dict[str, Any]
    reason: str


def judge(
    limits: Limits,
    tally: Tally,
    predicted: int,
    rejected: int,
    before: Mapping[str, Any] | None,
) -> Judgement:
    """Compare a run with ``before``, the manifest of the run that LATEST names, None without one."""
    rejected_share = rejected / max(1, predicted + rejected)
    figures: dict[str, Any] = {"rejected_share": round(rejected_share, 6)}
    faults = []
    if limits.maximum_rejected_share < 1 and rejected_share > limits.maximum_rejected_share:
        faults.append(
            f"{rejected} of {predicted + rejected} rows were rejected, a share of "
            f"{rejected_share:.3f}, and MAXIMUM_REJECTED_SHARE is {limits.maximum_rejected_share:g}"
        )
    if before is not None:
        run = figures["compared_with"] = str(before.get("run"))
        earlier = before.get("predicted")
        if isinstance(earlier, int) and earlier > 0:
            share = predicted / earlier
            figures["rows_share"] = round(share, 6)
            if share < limits.minimum_rows_share:
                faults.append(
                    f"{predicted} rows were predicted and {earlier} in run {run}, a share of "
                    f"{share:.3f}, and MINIMUM_ROWS_SHARE is {limits.minimum_rows_share:g}"
                )
        found = tally.shift(before.get("distribution"))
        if found is not None:
            # So that a shift of exactly the limit is one, whatever the last bit of a sum.
            shift, detail = round(found[0], 9), found[1]
            figures["shift"] = round(shift, 6)
            if limits.maximum_shift < 1 and shift > limits.maximum_shift:
                faults.append(
                    f"the answers are distributed otherwise than in run {run}, by {shift:.3f} "
                    f"({detail}), and MAXIMUM_SHIFT is {limits.maximum_shift:g}"
                )
    return Judgement(figures, "; ".join(faults))
