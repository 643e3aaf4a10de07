"""Files in the background: progress, patience, bounds."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from application_support import PROBABILITIES, wait_until
from digits_application.files import CANCELLED, DONE, FAILED, Busy, FileJobs, Job
from digits_application.rows import NAMES, Rows, read
from groundcrew_application.prediction import Answer, PredictionError


def rows_of(count: int) -> Rows:
    lines = [",".join(["id", *NAMES])]
    lines += [",".join([f"row {row}", *["3"] * 64]) for row in range(count)]
    return read("\n".join(lines).encode(), 10_000)


class Service:
    """Predicts; fails with what is in ``errors`` first, waits while ``gate`` is closed."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()
        self.sizes: list[int] = []

    def ask(self, instances: list[list[float]], request_id: str) -> Answer:
        assert self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        self.sizes.append(len(instances))
        return Answer([PROBABILITIES] * len(instances), version="3")


@pytest.fixture
def service() -> Service:
    return Service()


def ended(job: Job) -> str:
    wait_until(lambda: job.ended is not None, "the file to end")
    return job.state


def test_a_file_in_batches(service: Service) -> None:
    jobs = FileJobs(service.ask, batch_rows=200)
    job = jobs.add(rows_of(450))
    assert ended(job) == DONE
    assert service.sizes == [200, 200, 50]
    assert (job.done, job.total, job.problem, job.rows) == (450, 450, None, None)
    assert job.result is not None
    lines = job.result.decode().splitlines()
    assert lines[0] == "id,digit,probability,model_version"
    assert lines[1] == "row 0,7,0.91,3" and len(lines) == 451
    assert jobs.get(job.id) is job
    assert job.document() == {
        "id": job.id,
        "state": "done",
        "rows": 450,
        "done": 450,
        "problem": None,
    }


def test_it_waits_for_a_service_that_is_away(service: Service) -> None:
    service.errors = [PredictionError(503, "away"), PredictionError(504, "late")]
    job = FileJobs(service.ask).add(rows_of(3))
    wait_until(lambda: job.problem is not None, "the problem to be told")
    assert ended(job) == DONE
    assert job.problem is None


def test_it_gives_up_in_the_end(service: Service) -> None:
    service.errors = [PredictionError(503, "away")] * 100
    job = FileJobs(service.ask, patience_seconds=0.1).add(rows_of(3))
    assert ended(job) == FAILED
    assert (job.problem, job.result) == ("away", None)


def test_a_refusal_or_a_bug_ends_it_at_once_and_not_the_next_one(service: Service) -> None:
    states: list[str] = []
    jobs = FileJobs(service.ask, ended=states.append)
    service.errors = [PredictionError(502, "no such thing", answered=400), ValueError("bug")]
    refused, broken, good = (jobs.add(rows_of(1)) for _ in range(3))
    assert (ended(refused), ended(broken), ended(good)) == (FAILED, FAILED, DONE)
    assert (refused.problem, broken.problem) == ("no such thing", "internal error")
    wait_until(lambda: len(states) == 3, "the metrics")


def test_files_are_bounded_and_ended_ones_make_room(service: Service) -> None:
    jobs = FileJobs(service.ask, most_jobs=2)
    service.gate.clear()
    first, second = jobs.add(rows_of(1)), jobs.add(rows_of(1))
    with pytest.raises(Busy, match="2 files are in work"):
        jobs.add(rows_of(1))
    service.gate.set()
    assert (ended(first), ended(second)) == (DONE, DONE)
    third = jobs.add(rows_of(1))
    assert jobs.get(first.id) is None and jobs.get(second.id) is second
    assert ended(third) == DONE


def test_results_expire(service: Service) -> None:
    now = 0.0
    jobs = FileJobs(service.ask, result_seconds=60, clock=lambda: now)
    job = jobs.add(rows_of(1))
    assert ended(job) == DONE
    now = 59.0
    assert jobs.get(job.id) is job
    now = 61.0
    assert jobs.get(job.id) is None


def test_cancel(service: Service) -> None:
    jobs = FileJobs(service.ask)
    service.errors = [PredictionError(503, "away", retry_after_seconds=60.0)] * 3
    job = jobs.add(rows_of(1))
    wait_until(lambda: job.problem is not None, "the first attempt")
    started = time.monotonic()
    assert jobs.cancel(job.id)
    assert ended(job) == CANCELLED
    assert time.monotonic() - started < 4
    assert not jobs.cancel(job.id) and jobs.get(job.id) is None


def test_ids_are_not_guessable(service: Service) -> None:
    jobs = FileJobs(service.ask)
    ids: set[Any] = {jobs.add(rows_of(1)).id for _ in range(8)}
    assert len(ids) == 8 and all(len(one) == 32 for one in ids)
