"""The last batch run as the gallery asks for it: columns in memory, filtered by digit and confidence.

A million rows take about 120 MB: an image is 64 bytes, its prediction 40. Everything here that takes time happens in pyarrow, in one
thread and without the interpreter, so a run that is loaded leaves requests alone; a loop over its rows would not.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from groundcrew_application.prediction import Fallback
from groundcrew_application.reloader import Incoming, Loaded
from pyarrow import parquet

from digits_application.digits import CLASSES, INK, PIXELS

ITEMS = 48
_IMAGE = pa.binary(PIXELS)


@dataclass(frozen=True)
class Part:
    """One part of a run: rows in order. pixels: an image a row, 64 bytes; None when the job does not include instances."""

    ids: pa.Array
    predictions: pa.Array  # FixedSizeList<float32>[10]
    pixels: pa.Array | None


@dataclass(frozen=True)
class Selection:
    """A page of the rows that a filter leaves."""

    matching: int
    offset: int
    items: list[dict[str, Any]]  # id, instance (64 numbers or None), digit, probability


@dataclass(frozen=True)
class DigitsRun:
    """A run: its totals, and its predictions as columns."""

    rows: int
    rejected: int
    model_version: str | None
    parts: list[Part]
    digit: pa.ChunkedArray  # uint8
    probability: pa.ChunkedArray  # float32, of that digit
    exact: bool  # pixels are what the model was given, not rounded

    @classmethod
    def load(cls, incoming: Incoming) -> DigitsRun:
        """Raises an exception of pyarrow, or ValueError or KeyError, when the run does not hold predictions of digits."""
        parts, digits, probabilities, exact = [], [], [], True
        for data in incoming.parts():
            part, digit, probability, as_given = _read(data)
            parts.append(part)
            digits.append(digit)
            probabilities.append(probability)
            exact = exact and as_given
        version = incoming.manifest.get("model_version")
        return cls(
            rows=incoming.manifest["rows"],
            rejected=incoming.manifest["rejected"],
            model_version=None if version is None else str(version),
            parts=parts,
            digit=pa.chunked_array(digits, pa.uint8()),
            probability=pa.chunked_array(probabilities, pa.float32()),
            exact=exact,
        )

    def select(
        self,
        digit: int | None = None,
        minimum: float = 0.0,
        maximum: float = 1.0,
        offset: int = 0,
        limit: int = ITEMS,
    ) -> Selection:
        """Rows of a digit (None: all) whose probability is at least minimum and, unless that is 1, below maximum, in order."""
        mask = None
        for wanted in (
            None if digit is None else pc.equal(self.digit, pa.scalar(digit, pa.uint8())),
            None
            if minimum <= 0
            else pc.greater_equal(self.probability, pa.scalar(minimum, pa.float32())),
            None if maximum >= 1 else pc.less(self.probability, pa.scalar(maximum, pa.float32())),
        ):
            if wanted is not None:
                mask = wanted if mask is None else pc.and_(mask, wanted)
        if mask is None:
            matching = len(self.digit)
            rows = list(range(offset, min(offset + limit, matching)))
        else:
            found = pc.indices_nonzero(mask)
            matching = len(found)
            rows = found.slice(offset, limit).to_pylist()
        return Selection(matching, offset, [self._item(row) for row in rows])

    def prediction_of(self, instance: list[float]) -> list[float] | None:
        """What the run predicted for the same image, None when it is not in it."""
        if not self.exact or any(value != int(value) for value in instance):
            return None
        wanted = pa.scalar(bytes(map(int, instance)), _IMAGE)
        for part in self.parts:
            if part.pixels is not None:
                row = pc.index(part.pixels, wanted).as_py()
                if row >= 0:
                    return _predictions(part, row)
        return None

    @cached_property
    def _starts(self) -> list[int]:
        starts, start = [], 0
        for part in self.parts:
            starts.append(start)
            start += len(part.ids)
        return starts

    def _item(self, row: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._starts, row) - 1
        part, index = self.parts[number], row - self._starts[number]
        return {
            "id": part.ids[index].as_py(),
            "instance": None if part.pixels is None else list(part.pixels[index].as_py()),
            "digit": self.digit.chunk(number)[index].as_py(),
            "probability": round(self.probability.chunk(number)[index].as_py(), 6),
        }


def fallback(loaded: Loaded[DigitsRun] | None, instance: list[float]) -> Fallback | None:
    """What the last batch run predicted for the same image, for when the prediction service does not answer."""
    prediction = loaded.value.prediction_of(instance) if loaded else None
    if loaded is None or prediction is None:
        return None
    return Fallback(prediction, loaded.value.model_version, loaded.age_seconds)


def _predictions(part: Part, row: int) -> list[float]:
    return [round(value, 6) for value in part.predictions[row].as_py()]


def _read(data: bytes) -> tuple[Part, pa.Array, pa.Array, bool]:
    """A part, its digits, their probabilities, and whether its pixels are whole numbers."""
    file = parquet.ParquetFile(pa.BufferReader(data))
    columns = [
        name for name in ("id", "predictions", "instance") if name in file.schema_arrow.names
    ]
    # One thread: the reloader's, which gives way to requests.
    table = file.read(columns=columns, use_threads=False)
    probabilities = _flat(table, "predictions", CLASSES)
    if not pc.all(pc.is_finite(probabilities), min_count=0).as_py():
        raise ValueError("predictions hold NaN or infinity")
    predictions = pa.FixedSizeListArray.from_arrays(probabilities.cast(pa.float32()), CLASSES)
    shares = [pc.list_element(predictions, digit) for digit in range(CLASSES)]
    largest = pc.max_element_wise(*shares)
    # From the last to the first, so that of equal ones the lowest is left.
    digits = pa.repeat(pa.scalar(CLASSES - 1, pa.uint8()), len(predictions))
    for digit in reversed(range(CLASSES - 1)):
        this = pa.scalar(digit, pa.uint8())
        digits = pc.if_else(pc.equal(shares[digit], largest), this, digits)
    pixels, exact = None, True
    if "instance" in columns:
        pixels, exact = _images(_flat(table, "instance", PIXELS))
    ids = _array(table, "id").cast(pa.string())
    return Part(ids, predictions, pixels), digits, largest, exact


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    )


def _flat(table: pa.Table, name: str, length: int) -> pa.Array:
    """All numbers of a column of lists of one length. Raises ValueError when one has another."""
    lists = _array(table, name)
    lengths = pc.min_max(pc.list_value_length(lists)).as_py()
    values = lists.flatten()
    if lists.null_count or values.null_count or (len(lists) and set(lengths.values()) != {length}):
        raise ValueError(f"{name} must be lists of {length} numbers, without gaps")
    return values


def _images(pixels: pa.Array) -> tuple[pa.Array, bool]:
    exact = True
    try:
        numbers = pixels.cast(pa.uint8())
    except pa.ArrowInvalid:
        # Good enough to look at.
        exact = False
        bounded = pc.min_element_wise(pc.max_element_wise(pc.round(pixels), 0), INK)
        numbers = bounded.cast(pa.uint8())
    data = numbers.buffers()[1] if len(numbers) else pa.py_buffer(b"")
    return pa.FixedSizeBinaryArray.from_buffers(_IMAGE, len(numbers) // PIXELS, [None, data]), exact
