"""The last batch run, kept in memory and replaced whenever a newer one is complete."""

from __future__ import annotations

import io
import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from groundcrew import batch_store, objects
from pyarrow import parquet

from digits_application.logs import log

ITEMS = 48


@dataclass(frozen=True)
class BatchRun:
    """What the page shows of a run: its totals and its first predictions."""

    run: str
    rows: int
    rejected: int
    model_version: str | None
    finished: datetime
    items: list[dict[str, Any]]  # id, instance (64 numbers or None), digit, probability

    @property
    def age_seconds(self) -> float:
        return max(0.0, (datetime.now(UTC) - self.finished).total_seconds())

    @classmethod
    def from_store(cls, run: batch_store.Run) -> BatchRun:
        """Raises an exception of pyarrow, or ValueError, TypeError or KeyError, when the run does
        not hold predictions of digits."""
        items: list[dict[str, Any]] = []
        for part in run.parts:
            rows = parquet.read_table(io.BytesIO(part)).slice(0, ITEMS - len(items)).to_pylist()
            items.extend(_item(row) for row in rows)
        return cls(
            run=run.run_id,
            rows=run.manifest["rows"],
            rejected=run.manifest["rejected"],
            model_version=run.manifest.get("model_version"),
            finished=objects.parse_timestamp(run.manifest["finished"]),
            items=items,
        )


def _item(row: dict[str, Any]) -> dict[str, Any]:
    probability = max(row["predictions"])
    return {
        "id": row["id"],
        "instance": row.get("instance"),
        "digit": row["predictions"].index(probability),
        "probability": probability,
    }


class BatchReloader:
    """Follows a job's LATEST in a thread of its own, so that no request ever waits for the store.

    ``current`` is the last good run, or None before the first one. A run that is missing, corrupt,
    truncated or older than ``current`` is logged and changes nothing.
    """

    def __init__(self, client: Any, bucket: str, job: str, poll_seconds: float) -> None:
        self.current: BatchRun | None = None
        self.failures = 0  # reloads that failed since the start
        self._store = (client, bucket, job)
        self._poll_seconds = poll_seconds
        self._problem = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="batch-reloader", daemon=True)

    def start(self) -> None:
        """Load the last run now and look for a newer one every ``poll_seconds``."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a load in progress is finished first."""
        self._stopped.set()
        self._thread.join()

    def reload(self) -> bool:
        """Load the run that LATEST names if it is newer. Returns whether ``current`` changed;
        never raises."""
        try:
            run = self._load_newer()
        except Exception as error:  # whatever is wrong with the store, the last good run stays
            self.failures += 1
            self._report(f"{type(error).__name__}: {error}")
            return False
        self._problem = ""
        if run is None:
            return False
        self.current = run
        log(logging.INFO, "batch run loaded", run=run.run, rows=run.rows)
        return True

    def _load_newer(self) -> BatchRun | None:
        latest = batch_store.read_pointer(*self._store)
        held = self.current
        if latest is None:
            if held:
                raise LookupError("LATEST is gone")
            return None
        if held and latest.run_id <= held.run:  # run ids sort by time
            if latest.run_id < held.run:
                raise LookupError(f"LATEST names run {latest.run_id}, which is older")
            return None
        return BatchRun.from_store(batch_store.read_run(*self._store, latest))

    def _report(self, problem: str) -> None:
        if problem != self._problem:  # once, not at every poll
            self._problem = problem
            kept = self.current.run if self.current else None
            log(logging.ERROR, "batch run not loaded", problem=problem, kept=kept)

    def _follow(self) -> None:
        while True:
            self.reload()
            if self._stopped.wait(self._poll_seconds):
                return
