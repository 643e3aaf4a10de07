"""One run: obtain the input, score it chunk by chunk, write the run, move LATEST."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from groundcrew import batch_store, objects
from groundcrew.errors import GroundcrewError
from groundcrew_prediction import engine
from groundcrew_prediction.engine import Engine

from .settings import Settings
from .source import Chunk, Input, Rejected, chunks, obtain

REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("row", pa.int64()), ("reason", pa.string())])


def run(settings: Settings, client: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the job once; the result for the last line.

    A run id whose manifest is there already is only made LATEST, so a run that was killed at the
    very end can be repeated. Raises GroundcrewError; LATEST then names what it named before.
    """
    name = f"run {settings.run_id} of {settings.job}"
    digest = batch_store.finished(client, settings.bucket, settings.job, settings.run_id)
    if digest is not None:
        say(f"{name} is complete already")
        latest = batch_store.move_latest(
            client, settings.bucket, settings.job, settings.run_id, digest
        )
        return {"run": settings.run_id, "manifest_sha256": digest, "latest": latest}
    started = time.monotonic()
    started_at = objects.timestamp()
    loaded = engine.load(settings.model_directory, settings.model, settings.version)
    say(f"loaded model {settings.model} version {settings.version}")
    with tempfile.TemporaryDirectory(dir=settings.work_directory) as scratch:
        source = obtain(client, settings.input, Path(scratch))
        say(f"read {settings.input}, {source.size} bytes, sha256 {source.sha256}")
        writer = batch_store.BatchWriter(client, settings.bucket, settings.job, settings.run_id)
        predicted, rejected = _score(settings, loaded, source, writer, Path(scratch), say)
    _require_predictions(settings, predicted, rejected)
    digest, latest = writer.finish(
        {
            "model_name": settings.model,
            "model_version": settings.version,
            "model_manifest_sha256": loaded.model.manifest_sha256,
            "input": {"uri": source.uri, "sha256": source.sha256, "size": source.size},
            "chunk_rows": settings.chunk_rows,
            "include_instances": settings.include_instances,
            "started": started_at,
        }
    )
    say(f"finished {name}" + ("" if latest else ", but LATEST names a later run"))
    return {
        "run": settings.run_id,
        "rows": predicted + rejected,
        "predicted": predicted,
        "rejected": rejected,
        "seconds": round(time.monotonic() - started, 3),
        "manifest_sha256": digest,
        "latest": latest,
    }


def _require_predictions(settings: Settings, predicted: int, rejected: int) -> None:
    # An empty input is far more often a broken export than a day without rows.
    if not predicted:
        raise GroundcrewError(
            f"the input {settings.input} has no row that can be scored ({rejected} rejected; see "
            f"predictions/{settings.job}/{settings.run_id}/{batch_store.REJECTED}); LATEST still "
            "names the run before. Correct the input and run the job again"
        )


def _score(
    settings: Settings,
    engine: Engine,
    source: Input,
    writer: batch_store.BatchWriter,
    scratch: Path,
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Write a part a chunk and the rejected rows; how many rows were predicted and rejected."""
    predicted = rejected = 0
    path = scratch / batch_store.REJECTED
    with pyarrow.parquet.ParquetWriter(path, REJECTED_SCHEMA) as rejects:
        for index, chunk in enumerate(chunks(source, engine.model.signature, settings.chunk_rows)):
            begun = time.monotonic()
            writer.add_part(index, _part(engine, chunk, settings.include_instances), len(chunk.ids))
            rejects.write_table(_rejected_table(chunk.rejected))
            predicted += len(chunk.ids)
            rejected += len(chunk.rejected)
            seconds = time.monotonic() - begun
            say(
                f"chunk {index}: {len(chunk.ids)} rows predicted, {len(chunk.rejected)} rejected "
                f"in {seconds:.2f} s; {predicted + rejected} rows so far"
            )
    writer.add_rejected(path, rejected)
    return predicted, rejected


def _part(engine: Engine, chunk: Chunk, include_instances: bool) -> bytes:
    """A Parquet file with the columns id, predictions and, when asked for, instance."""
    columns = {"id": pa.array(chunk.ids, pa.string())}
    if chunk.ids:
        columns["predictions"] = _lists(engine.predict(chunk.instances))
    else:
        columns["predictions"] = pa.array([], pa.list_(pa.float64()))
    if include_instances:
        columns["instance"] = _lists(chunk.instances)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _lists(array: np.ndarray[Any, Any]) -> pa.Array:
    """An array (n, …) as n lists of float64."""
    flat = np.ascontiguousarray(array.reshape(len(array), -1), dtype=np.float64)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat.reshape(-1)))


def _rejected_table(rejected: list[Rejected]) -> pa.Table:
    rows = [{"id": one.id, "row": one.row, "reason": one.reason} for one in rejected]
    return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)
