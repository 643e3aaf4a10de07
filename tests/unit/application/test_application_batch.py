"""What the gallery asks of a run: the same as a plain loop over its rows would find."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from application_support import BUCKET, JOB, PROBABILITIES, MemoryStore, image, write_run
from digits_application.batch import DigitsRun, fallback
from groundcrew import batch_store
from groundcrew_application.reloader import Reloader
from hypothesis import given
from hypothesis import strategies as st

FIRST, SECOND = "20260131T040506Z", "20260201T040506Z"


def probabilities(row: int) -> list[float]:
    """Of a digit and with a confidence that depend on the row."""
    randomly = random.Random(row)
    shares = [randomly.random() ** 4 for _ in range(10)]
    return [share / sum(shares) for share in shares]


def loaded(memory: MemoryStore, **options: Any) -> Reloader[DigitsRun]:
    write_run(memory, FIRST, **options)
    reloader = Reloader(memory, BUCKET, JOB, DigitsRun.load)
    assert reloader.reload(), reloader.status().problem
    return reloader


def run_of(memory: MemoryStore, **options: Any) -> DigitsRun:
    current = loaded(memory, **options).current
    assert current is not None
    return current.value


@pytest.fixture(scope="module")
def run() -> DigitsRun:
    return run_of(MemoryStore(), rows=500, chunk=70, predict=probabilities)


def test_totals_and_items(memory: MemoryStore) -> None:
    run = run_of(memory)
    assert (run.rows, run.rejected, run.model_version) == (6, 1, "3")
    found = run.select()
    assert (found.matching, found.offset) == (5, 0)
    assert [item["id"] for item in found.items] == [f"row-{row}" for row in range(5)]
    assert found.items[0] == {
        "id": "row-0",
        "instance": image(0),
        "digit": 7,
        "probability": max(PROBABILITIES),
    }


def test_runs_without_instances(memory: MemoryStore) -> None:
    run = run_of(memory, instances=False)
    assert run.select().items[0]["instance"] is None
    assert run.prediction_of(image(0)) is None


def test_a_run_of_rejected_rows_alone(memory: MemoryStore) -> None:
    run = run_of(memory, rows=0)
    assert (run.rows, run.select().matching, run.select(digit=3).items) == (1, 0, [])


@given(
    digit=st.none() | st.integers(0, 9),
    minimum=st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    maximum=st.sampled_from([1.0, 0.9, 0.5, 0.25]),
    offset=st.integers(0, 520),
    limit=st.integers(1, 200),
)
def test_any_filter_and_page(
    run: DigitsRun, digit: int | None, minimum: float, maximum: float, offset: int, limit: int
) -> None:
    expected = []
    for row in range(500):
        shares = probabilities(row)
        confidence = max(shares)
        if (
            digit in (None, shares.index(confidence))
            and confidence >= minimum
            and (maximum >= 1 or confidence < maximum)
        ):
            expected.append(
                (f"row-{row}", shares.index(confidence), pytest.approx(confidence, abs=1e-6))
            )
    found = run.select(digit, minimum, maximum, offset, limit)
    assert found.matching == len(expected)
    page = [(item["id"], item["digit"], item["probability"]) for item in found.items]
    assert page == expected[offset : offset + limit]
    assert all(item["instance"] == image(int(item["id"][4:])) for item in found.items)


def test_of_equal_probabilities_the_lowest_digit(memory: MemoryStore) -> None:
    run = run_of(memory, predict=lambda row: [0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    assert run.select().items[0]["digit"] == 2


def test_the_same_image_is_the_fallback(memory: MemoryStore) -> None:
    reloader = loaded(memory, rows=10, predict=probabilities)
    given = fallback(reloader.current, image(8))
    assert given is not None and given.age_seconds is not None
    assert given.prediction == pytest.approx(probabilities(8), abs=1e-6)
    assert (given.version, given.age_seconds < 60) == ("3", True)
    assert fallback(reloader.current, [3.0] * 64) is None
    assert fallback(reloader.current, [0.5] * 64) is None
    assert fallback(None, image(8)) is None


def parquet_of(columns: dict[str, Any]) -> bytes:
    import io

    import pyarrow
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "columns",
    [
        {"id": ["a"]},
        {"predictions": [PROBABILITIES]},
        {"id": ["a"], "predictions": [[0.5, 0.5]]},
        {"id": ["a", "b"], "predictions": [PROBABILITIES, PROBABILITIES[:9]]},
        {"id": ["a"], "predictions": [[float("nan")] * 10]},
        {"id": ["a", "b"], "predictions": [PROBABILITIES, None]},
        {"id": ["a"], "predictions": [["x"] * 10]},
        {"id": ["a"], "predictions": ["x"]},
        {"id": ["a"], "predictions": [PROBABILITIES], "instance": [[1.0] * 63]},
        {"id": ["a"], "predictions": [[None] * 10]},
    ],
)
def test_runs_of_something_else_are_refused(memory: MemoryStore, columns: dict[str, Any]) -> None:
    writer = batch_store.BatchWriter(memory, BUCKET, JOB, FIRST)
    writer.add_part(0, parquet_of(columns), 1)
    writer.add_rejected(b"", 0)
    writer.finish({})
    reloader = Reloader(memory, BUCKET, JOB, DigitsRun.load)
    assert not reloader.reload()
    assert reloader.current is None and reloader.status().problem


def test_images_that_are_not_whole_numbers_are_shown_rounded(memory: MemoryStore) -> None:
    writer = batch_store.BatchWriter(memory, BUCKET, JOB, FIRST)
    columns = {"id": ["a"], "predictions": [PROBABILITIES], "instance": [[0.6] * 62 + [-3.0, 99.0]]}
    writer.add_part(0, parquet_of(columns), 1)
    writer.add_rejected(b"", 0)
    writer.finish({})
    reloader = Reloader(memory, BUCKET, JOB, DigitsRun.load)
    assert reloader.reload() and reloader.current
    run = reloader.current.value
    assert run.select().items[0]["instance"] == [1] * 62 + [0, 16]
    assert run.prediction_of([1.0] * 62 + [0.0, 16.0]) is None


def test_readers_see_whole_runs_during_a_swap(memory: MemoryStore) -> None:
    """Each run has as many rows as its number, so a mixed answer would show."""
    reloader = Reloader(memory, BUCKET, JOB, DigitsRun.load)
    write_run(memory, "20260101T000001Z", rows=1)
    assert reloader.reload()
    stop, wrong = threading.Event(), []

    def read() -> None:
        last = 0
        while not stop.is_set():
            current = reloader.current
            assert current is not None
            number = int(current.run_id[9:15])
            found = current.value.select(limit=100)
            if not (
                number >= last
                and found.matching == len(found.items) == number == current.value.rows - 1
            ):
                wrong.append((last, number, found.matching))
            last = number
            time.sleep(0.001)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(2, 40):
        write_run(memory, f"20260101T0000{number:02d}Z", rows=number)
        assert reloader.reload()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
