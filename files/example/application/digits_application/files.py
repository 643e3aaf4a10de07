"""Files of many rows, predicted in the background: a few at a time, in requests of a few hundred rows.

Everything is in this process's memory and bounded: so many files, each of so many bytes and rows, results for so long. A restart or a
new release forgets them; who uploaded one then hears that it is not there and uploads it again.
"""

from __future__ import annotations

import csv
import io
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from groundcrew_application.prediction import Answer, PredictionError

from digits_application.digits import digit_of
from digits_application.logs import log
from digits_application.rows import Rows

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
_LONGEST_PAUSE = 5.0  # seconds between two attempts


class Busy(Exception):
    """There are as many files as there may be."""


@dataclass
class Job:
    """One file. ``problem`` is what holds it up now, or what it failed of."""

    id: str
    rows: Rows | None  # until it has ended
    total: int
    state: str = WAITING
    done: int = 0
    problem: str | None = None
    result: bytes | None = None
    ended: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def document(self) -> dict[str, Any]:
        """What the API tells of it."""
        return {
            "id": self.id,
            "state": self.state,
            "rows": self.total,
            "done": self.done,
            "problem": self.problem,
        }


class FileJobs:
    """Predicts files in the order of their arrival, in one thread. Safe to use from many threads."""

    def __init__(
        self,
        ask: Callable[[list[list[float]], str], Answer],
        *,
        most_jobs: int = 8,
        batch_rows: int = 200,
        patience_seconds: float = 120.0,
        result_seconds: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
        predicted: Callable[[int], object] = lambda rows: None,
        ended: Callable[[str], object] = lambda state: None,
    ) -> None:
        """ask: predicts instances or raises PredictionError. most_jobs: files in memory, ended ones included. patience_seconds: without
        progress, then a file fails. predicted, ended: told rows and final states, for metrics."""
        self._ask = ask
        self._most_jobs = most_jobs
        self._batch_rows = batch_rows
        self._patience_seconds = patience_seconds
        self._result_seconds = result_seconds
        self._clock = clock
        self._predicted = predicted
        self._ended = ended
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}  # in the order of their arrival
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="files", daemon=True).start()

    def add(self, rows: Rows) -> Job:
        """Take a file. Raises Busy."""
        with self._lock:
            self._forget()
            ended = [job for job in self._jobs.values() if job.ended is not None]
            while len(self._jobs) >= self._most_jobs and ended:
                del self._jobs[ended.pop(0).id]
            if len(self._jobs) >= self._most_jobs:
                raise Busy(f"{self._most_jobs} files are in work already, try again in a moment")
            job = Job(secrets.token_hex(16), rows, len(rows))
            self._jobs[job.id] = job
        self._queue.put(job)
        return job

    def get(self, job_id: str) -> Job | None:
        """None when there is none, or not any more."""
        with self._lock:
            self._forget()
            return self._jobs.get(job_id)

    def cancel(self, job_id: str) -> bool:
        """End a file and forget it. Whether there was one."""
        with self._lock:
            job = self._jobs.pop(job_id, None)
        if job is None:
            return False
        job.cancelled.set()
        return True

    def _forget(self) -> None:
        now = self._clock()
        for job in list(self._jobs.values()):
            if job.ended is not None and now - job.ended > self._result_seconds:
                del self._jobs[job.id]

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            try:
                job.state = RUNNING
                job.result = self._predict(job)
                job.state = CANCELLED if job.result is None else DONE
            except PredictionError as error:
                job.state, job.problem = FAILED, str(error)
            except Exception:  # the next file shall not suffer
                log(logging.ERROR, "file failed", exc_info=True, file=job.id)
                job.state, job.problem = FAILED, "internal error"
            job.rows = None
            job.ended = self._clock()
            self._ended(job.state)
            log(
                logging.INFO,
                "file ended",
                file=job.id,
                state=job.state,
                rows=job.done,
                problem=job.problem,
            )

    def _predict(self, job: Job) -> bytes | None:
        """The result, None when it was cancelled. Raises PredictionError."""
        rows = job.rows
        assert rows is not None
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(["id", "digit", "probability", "model_version"])
        for start in range(0, job.total, self._batch_rows):
            instances = rows.instances(start, self._batch_rows)
            answer = self._patiently(job, instances, f"file-{job.id[:12]}-{start}")
            if answer is None:
                return None
            for row, prediction in enumerate(answer.predictions, start):
                digit = digit_of(prediction)
                writer.writerow(
                    [rows.id(row), digit, round(prediction[digit], 6), answer.version or ""]
                )
            job.done += len(instances)
            self._predicted(len(instances))
        return text.getvalue().encode()

    def _patiently(self, job: Job, instances: list[list[float]], request_id: str) -> Answer | None:
        """The answer, however many attempts it takes within the patience; None when the file was cancelled."""
        began, pause = self._clock(), 0.25
        while not job.cancelled.is_set():
            try:
                answer = self._ask(instances, request_id)
            except PredictionError as error:
                job.problem = str(error)
                if error.refused or self._clock() - began > self._patience_seconds:
                    raise
                pause = min(_LONGEST_PAUSE, max(pause * 2, error.retry_after_seconds or 0.0))
                job.cancelled.wait(pause)
                continue
            job.problem = None
            return answer
        return None
