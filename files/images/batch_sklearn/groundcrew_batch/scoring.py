"""Chunks of rows, what the model answers to them, and the Parquet files that hold the answers."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from groundcrew.errors import GroundcrewError
from groundcrew_prediction.contract import BadRequest, Signature
from groundcrew_prediction.engine import Engine, OnnxEngine
from groundcrew_prediction.transform import Transform

from .rows import Block, Rejected

Array = np.ndarray[Any, Any]

_CHUNK_NUMBERS = 1_500_000
_MOST_CHUNK_ROWS = 50_000
# A model that takes none of so many rows is at fault, not the rows.
_FIRST_ROWS = 1_000
# What may be the fault of one row: preprocess refused it, the model's own checks did, the answer
# is no number.
_ROW_FAULTS = (BadRequest, ValueError, ArithmeticError)


def chunk_rows(signature: Signature) -> int:
    """Rows a part: what keeps its instances at 12 MB, however wide they are."""
    return max(1, min(_MOST_CHUNK_ROWS, _CHUNK_NUMBERS // int(np.prod(signature.shape))))


@dataclass
class Chunk:
    """Rows that become one part. ``numbers`` are their row numbers in ``files``, one file a block
    of rows; ``rejected`` are rows among them that no model is asked about."""

    index: int
    values: Array
    ids: list[pa.Array] = field(default_factory=list)
    numbers: list[Array] = field(default_factory=list)
    files: list[tuple[str | None, int]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    size: int = 0
    rows: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.ids))

    def places(self) -> Iterator[tuple[str | None, int]]:
        """The file and the row number of each row."""
        names = (name for name, count in self.files for _ in range(count))
        return zip(names, np.concatenate(self.numbers).tolist(), strict=True)


class Cutter:
    """Cuts blocks into chunks of exactly ``rows`` rows, but for the last."""

    def __init__(self, signature: Signature, rows: int) -> None:
        self._signature, self._rows, self._count = signature, rows, 0
        self._chunk = self._next(0)

    def _next(self, index: int) -> Chunk:
        # Reserved, not used: the kernel gives a page when it is written.
        values = np.empty((self._rows, int(np.prod(self._signature.shape))), self._signature.dtype)
        self._count = 0
        return Chunk(index, values)

    def add(self, block: Block, name: str | None) -> Iterator[Chunk]:
        """The chunks that this block of a file completes."""
        self._chunk.size += block.size
        self._chunk.rows += block.rows
        rejected = deque(block.rejected)
        start = 0
        while start < len(block.values):
            end = min(len(block.values), start + self._rows - self._count)
            taken = end - start
            self._chunk.values[self._count : self._count + taken] = block.values[start:end]
            self._chunk.ids.append(block.ids.slice(start, taken))
            self._chunk.numbers.append(block.numbers[start:end])
            self._chunk.files.append((name, taken))
            self._count += taken
            start = end
            if self._count == self._rows:
                done = self._chunk
                self._chunk = self._next(done.index + 1)
                while rejected and rejected[0].row < block.numbers[end - 1]:
                    done.rejected.append(rejected.popleft())
                yield done
        self._chunk.rejected += rejected

    def rejected(self, most: int) -> list[Rejected]:
        """Take the rejected rows out of the unfinished chunk when they are more than ``most``: a file
        of nothing else must not fill the memory."""
        found = self._chunk.rejected
        if len(found) <= most:
            return []
        self._chunk.rejected = []
        return found

    def last(self) -> Chunk:
        """What is left, perhaps no row."""
        self._chunk.values = self._chunk.values[: self._count]
        return self._chunk


class Scorer:
    """Asks the model, from several threads.

    ONNX Runtime answers several threads at a time. Everything else is asked by one at a time, for
    nobody knows what a team's transform or estimator shares; scikit-learn's own forests then use
    ``threads`` by themselves.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        self._engine, self._threads = engine, threads
        together = isinstance(engine, OnnxEngine) and engine.model.transform == Transform()
        self._turn: AbstractContextManager[Any] = nullcontext() if together else threading.Lock()

    def score(self, chunk: Chunk) -> tuple[Array, Array, list[Rejected]]:
        """Predictions (n, …), the positions of the rows they are of, and the rows that the model
        refuses. Raises GroundcrewError when it is the model that fails."""
        instances = chunk.values.reshape(-1, *self._engine.model.signature.shape)
        with self._turn, joblib.parallel_config(backend="threading", n_jobs=self._threads):
            answers: list[tuple[int, int, Array]] = []
            refused: list[tuple[int, str]] = []
            self._ask(instances, 0, len(instances), answers, refused)
        if not refused:
            return answers[0][2], np.arange(len(instances)), []
        ids = pa.concat_arrays(chunk.ids)
        places = list(chunk.places())
        rejected = []
        for position, reason in refused:
            file, number = places[position]
            rejected.append(Rejected(ids[position].as_py(), number, reason, file))
        answers.sort(key=lambda answer: answer[0])
        kept = np.setdiff1d(np.arange(len(instances)), [position for position, _ in refused])
        shape = (0, *self._engine.model.signature.outputs)
        found = [answer for *_, answer in answers] or [np.empty(shape)]
        return np.concatenate(found), kept, rejected

    def _ask(
        self,
        instances: Array,
        start: int,
        end: int,
        answers: list[tuple[int, int, Array]],
        refused: list[tuple[int, str]],
    ) -> None:
        """Halve the rows until those that the model refuses stand alone."""
        try:
            answers.append((start, end, self._engine.predict(instances[start:end])))
            return
        except _ROW_FAULTS as error:
            reason = f"the model refuses it: {str(error)[:200]}"
        except Exception as error:
            raise GroundcrewError(
                f"{self._engine.model.what} fails: {type(error).__name__}: {error}; publish a "
                "version that works and run the job with it"
            ) from error
        if end - start == 1:
            refused.append((start, reason))
            if not answers and len(refused) >= _FIRST_ROWS:
                raise GroundcrewError(
                    f"{self._engine.model.what} takes none of {len(refused)} rows, the first one "
                    f"because {refused[0][1]!r}; correct the input, or publish a version that works"
                )
            return
        middle = (start + end) // 2
        self._ask(instances, start, middle, answers, refused)
        self._ask(instances, middle, end, answers, refused)


def part(chunk: Chunk, predictions: Array, kept: Array, include_instances: bool) -> bytes:
    """A Parquet file with the columns id, predictions and, when asked for, instance."""
    ids = pa.concat_arrays(chunk.ids) if chunk.ids else pa.array([], pa.string())
    values = chunk.values
    if len(kept) < len(chunk):
        ids, values = ids.take(pa.array(kept)), values[kept]
    columns = {"id": ids, "predictions": _lists(predictions)}
    if include_instances:
        columns["instance"] = _lists(values)
    sink = io.BytesIO()
    # Neither ids nor probabilities repeat often enough for a dictionary.
    pyarrow.parquet.write_table(pa.table(columns), sink, use_dictionary=False)
    return sink.getvalue()


def predictions_of(data: bytes, signature: Signature) -> Array:
    """The predictions (n, …) of a part that was written before."""
    column = pyarrow.parquet.read_table(io.BytesIO(data), columns=["predictions"]).column(0)
    flat = np.asarray(pa.concat_arrays(column.chunks).flatten()) if len(column) else np.empty(0)
    return flat.reshape(len(column), *signature.outputs)


def _lists(array: Array) -> pa.Array:
    """An array (n, …) as n lists of float64."""
    width = int(np.prod(array.shape[1:], dtype=int))
    flat = np.ascontiguousarray(array.reshape(len(array), width), dtype=np.float64)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat.reshape(-1)))
