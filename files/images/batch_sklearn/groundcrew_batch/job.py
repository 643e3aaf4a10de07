"""One run: obtain the input, score it chunk by chunk, write the run, judge it, move LATEST."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from groundcrew import batch_store, model_store, objects
from groundcrew.errors import GroundcrewError
from groundcrew_prediction import engine
from groundcrew_prediction.engine import Engine, Model

from . import scoring
from .judgement import Tally, judge
from .patience import Patience, PatientClient
from .progress import Progress
from .rows import Block, Rejected, blocks
from .scoring import Chunk, Cutter, Scorer
from .settings import Settings
from .source import Input, obtain

REJECTED_SCHEMA = pa.schema(
    [("id", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("file", pa.string())]
)
# Another number whenever the same input and model would give other parts.
_FORMAT = 2
_MOST_REJECTED = 10_000
_MOST_LIST_NUMBERS = 2**31 - 1


def run(
    settings: Settings,
    client: Any,
    say: Callable[[str], None],
    patience: Patience | None = None,
) -> dict[str, Any]:
    """Run the job once; the result for the last line.

    A run id whose manifest is there already is only made LATEST, so a run that was killed at the
    very end can be repeated; one that was killed earlier keeps the chunks that are finished. The
    result has ``held_back``, the reason, when LATEST does not name the run because of its judgement.
    Raises GroundcrewError; LATEST then names what it named before.
    """
    patience = patience or Patience()
    store = PatientClient(client, patience)
    name = f"run {settings.run_id} of {settings.job}"
    found = batch_store.read_manifest(store, settings.bucket, settings.job, settings.run_id)
    if found is not None:
        say(f"{name} is complete already")
        return _complete(settings, store, *found)
    started = time.monotonic()
    started_at = objects.timestamp()
    loaded = engine.load(settings.model_directory, settings.model, settings.version)
    names = feature_names(loaded.model)
    chunk_rows = _chunk_rows(settings, loaded.model)
    say(f"loaded model {settings.model} version {settings.version} ({type(loaded).__name__})")
    writer = batch_store.BatchWriter(store, settings.bucket, settings.job, settings.run_id)
    with (
        _work_directory_errors(settings),
        obtain(client, settings.input, settings.work_directory, say, patience) as source,
    ):
        say(f"read {settings.input}, {source.size} bytes, sha256 {source.sha256}")
        identity = _identity(settings, loaded, source, chunk_rows, names)
        scored = _Run(settings, loaded, writer, identity, chunk_rows, say).score(source, names)
    _require_predictions(settings, scored.predicted, scored.rejected)
    before = _latest_manifest(settings, store, say)
    judged = judge(settings.limits, scored.tally, scored.predicted, scored.rejected, before)
    verdict = {"accepted" if settings.accept else "held_back": judged.reason}
    verdict = verdict if judged.reason else {}
    digest, latest = writer.finish(
        {
            "model_name": settings.model,
            "model_version": settings.version,
            "model_manifest_sha256": loaded.model.manifest_sha256,
            "input": {"uri": source.uri, "sha256": source.sha256, "size": source.size},
            "chunk_rows": chunk_rows,
            "include_instances": settings.include_instances,
            "started": started_at,
            "distribution": scored.tally.document(),
            "judgement": judged.figures,
            **verdict,
        }
    )
    kept = f", {scored.kept} chunks of an earlier attempt kept" if scored.kept else ""
    say(f"finished {name}{kept}")
    if not latest and "held_back" not in verdict:
        say(f"LATEST is not moved: it names a run later than {settings.run_id}")
    return {
        "run": settings.run_id,
        "rows": scored.predicted + scored.rejected,
        "predicted": scored.predicted,
        "rejected": scored.rejected,
        "seconds": round(time.monotonic() - started, 3),
        "manifest_sha256": digest,
        "latest": latest,
        **verdict,
    }


def _complete(
    settings: Settings, store: Any, manifest: dict[str, Any], digest: str
) -> dict[str, Any]:
    """What is left of a run whose manifest is written: LATEST, unless it is held back."""
    result: dict[str, Any] = {
        "run": settings.run_id,
        **{key: manifest.get(key) for key in ("rows", "predicted", "rejected")},
        "manifest_sha256": digest,
    }
    where = (store, settings.bucket, settings.job)
    reason = manifest.get("held_back")
    if reason and not settings.accept:
        try:
            pointer = batch_store.read_pointer(*where)
        except GroundcrewError:
            pointer = None
        accepted_before = pointer == batch_store.Latest(settings.run_id, digest)
        return {
            **result,
            "latest": accepted_before,
            "accepted" if accepted_before else "held_back": reason,
        }
    accepted = bool(reason or manifest.get("accepted"))
    latest = batch_store.move_latest(*where, settings.run_id, digest, accepted=accepted)
    return {**result, "latest": latest, **({"accepted": reason} if reason else {})}


def _latest_manifest(
    settings: Settings, store: Any, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The manifest of the run that this one would replace; None when there is none that can be read,
    or LATEST names a later run, which stays."""
    try:
        pointer = batch_store.read_pointer(store, settings.bucket, settings.job)
        if pointer is None or pointer.run_id > settings.run_id:
            return None
        found = batch_store.read_manifest(store, settings.bucket, settings.job, pointer.run_id)
    except GroundcrewError as error:
        say(f"nothing to compare this run with: {error}")
        return None
    if found is None or found[1] != pointer.manifest_sha256:
        say(f"nothing to compare this run with: run {pointer.run_id} is not what LATEST expects")
        return None
    return found[0]


def feature_names(model: Model) -> list[str] | None:
    """``inputs.names`` of the model's signature, None without it. Raises GroundcrewError when it is
    no list of as many names as the model takes numbers."""
    path = model.directory / model_store.MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GroundcrewError(
            f"cannot read {path}: {error.strerror}; fetch the model version again"
        ) from error
    if hashlib.sha256(data).hexdigest() != model.manifest_sha256:
        raise GroundcrewError(f"{path} changed while the model was loaded; run the job again")
    names = json.loads(data)["signature"]["inputs"].get("names")
    if names is None:
        return None
    count = int(np.prod(model.signature.shape))
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) != len(names)
        or len(names) != count
    ):
        raise GroundcrewError(
            f"{path}: signature.inputs.names must be a list of {count} different names; publish the "
            "model with right ones, or without"
        )
    return names


def _chunk_rows(settings: Settings, model: Model) -> int:
    rows = settings.chunk_rows or scoring.chunk_rows(model.signature)
    widths = [int(np.prod(model.signature.outputs, dtype=int))]
    widths += [int(np.prod(model.signature.shape))] if settings.include_instances else []
    if rows * max(widths) > _MOST_LIST_NUMBERS:
        raise GroundcrewError(
            f"CHUNK_ROWS is {rows}; with {max(widths)} numbers a row one part holds at most "
            f"{_MOST_LIST_NUMBERS // max(widths)} rows"
        )
    return rows


def _identity(
    settings: Settings, loaded: Engine, source: Input, chunk_rows: int, names: list[str] | None
) -> str:
    """A digest over everything that a part depends on, besides its number."""
    parts = {
        "format": _FORMAT,
        "input": source.sha256,
        "model": loaded.model.manifest_sha256,
        "engine": type(loaded).__name__,
        "names": names,
        "chunk_rows": chunk_rows,
        "include_instances": settings.include_instances,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _require_predictions(settings: Settings, predicted: int, rejected: int) -> None:
    # An empty input is far more often a broken export than a day without rows.
    if not predicted:
        raise GroundcrewError(
            f"the input {settings.input} has no row that can be scored ({rejected} rejected; see "
            f"predictions/{settings.job}/{settings.run_id}/{batch_store.REJECTED}); LATEST still "
            "names the run before. Correct the input and run the job again"
        )


@contextmanager
def _work_directory_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise GroundcrewError(
            f"WORK_DIRECTORY {settings.work_directory} is full ({error.strerror}); make space, or "
            "give the job another one"
        ) from error


@dataclass
class _Made:
    """What became of a chunk."""

    chunk: Chunk
    predicted: int
    predictions: np.ndarray[Any, Any]
    rejected: list[Rejected]
    kept: bool


class _Run:
    """Scores one input. Blocks are converted and chunks scored by threads; this one only orders,
    so that parts, rejected rows and figures are the same however many threads there are."""

    def __init__(
        self,
        settings: Settings,
        loaded: Engine,
        writer: batch_store.BatchWriter,
        identity: str,
        chunk_rows: int,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._writer, self._identity, self._say = settings, writer, identity, say
        self._signature, self._chunk_rows = loaded.model.signature, chunk_rows
        self._scorer = Scorer(loaded, settings.threads)
        self._there = writer.written_parts()
        self.tally = Tally(self._signature)
        self.predicted = self.rejected = self.kept = 0

    def score(self, source: Input, names: list[str] | None) -> _Run:
        """Write a part a chunk and the rejected rows."""
        progress = Progress(self._say, source.size, "scored")
        with tempfile.TemporaryFile(dir=self._settings.work_directory) as file:
            with (
                pyarrow.parquet.ParquetWriter(file, REJECTED_SCHEMA, compression="zstd") as rejects,
                # One more than processors: one waits for the store.
                ThreadPoolExecutor(self._settings.threads + 1) as pool,
            ):
                try:
                    for chunk in self._chunks(source, names, pool, rejects):
                        self._finish(chunk, rejects, progress)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            self._writer.add_rejected(_content(file), self.rejected)
        return self

    def _chunks(
        self, source: Input, names: list[str] | None, pool: ThreadPoolExecutor, rejects: Any
    ) -> Iterator[_Made]:
        """Chunks in their order, a few of them in work at a time."""
        cutter = Cutter(self._signature, self._chunk_rows)
        most = self._settings.threads + 1
        waiting: deque[Future[_Made]] = deque()
        for block, file in self._blocks(source, names, pool, most):
            for chunk in cutter.add(block, file):
                waiting.append(pool.submit(self._make, chunk))
                while len(waiting) > most:
                    yield waiting.popleft().result()
            self._write_rejected(cutter.rejected(_MOST_REJECTED), rejects)
        waiting.append(pool.submit(self._make, cutter.last()))
        while waiting:
            yield waiting.popleft().result()

    def _blocks(
        self, source: Input, names: list[str] | None, pool: ThreadPoolExecutor, most: int
    ) -> Iterator[tuple[Block, str | None]]:
        """Converted blocks in their order, with row numbers counted from the file's first row."""
        waiting: deque[tuple[Any, Future[Block]]] = deque()
        file, before = None, 0
        unread = blocks(source, self._signature, names)
        while True:
            while len(waiting) <= most:
                following = next(unread, None)
                if following is None:
                    break
                waiting.append((following.file, pool.submit(following.read)))
            if not waiting:
                return
            own, future = waiting.popleft()
            if own is not file:
                file, before = own, 0
            block = future.result().placed(own, before)
            before += block.rows
            yield block, own.name

    def _make(self, chunk: Chunk) -> _Made:
        """Keep or write the part of a chunk; in a thread of the pool."""
        rows = len(chunk)
        if not rows:
            return _Made(chunk, 0, np.empty((0, *self._signature.outputs)), [], False)
        if chunk.index in self._there:
            data = self._writer.keep_part(chunk.index, rows, self._identity)
            if data is not None:
                predictions = scoring.predictions_of(data, self._signature)
                return _Made(chunk, rows, predictions, [], True)
        predictions, kept, refused = self._scorer.score(chunk)
        data = scoring.part(chunk, predictions, kept, self._settings.include_instances)
        self._writer.add_part(chunk.index, data, len(kept), self._identity)
        return _Made(chunk, len(kept), predictions, refused, False)

    def _finish(self, made: _Made, rejects: Any, progress: Progress) -> None:
        if made.predicted:
            self.tally.add(made.chunk.index, made.predictions)
        self.predicted += made.predicted
        self.kept += made.kept
        rejected = made.chunk.rejected + made.rejected
        if made.rejected:
            rejected.sort(key=lambda one: (one.file or "", one.row))
        self._write_rejected(rejected, rejects)
        progress.add(made.chunk.size, made.chunk.rows)

    def _write_rejected(self, rejected: list[Rejected], rejects: Any) -> None:
        if not rejected:
            return
        self.rejected += len(rejected)
        columns = [[getattr(one, name) for one in rejected] for name in REJECTED_SCHEMA.names]
        rejects.write_table(pa.table(columns, schema=REJECTED_SCHEMA))


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
