"""Runs that are killed anywhere and started again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import batch_support
import pyarrow.parquet
import pytest
from batch_support import BUCKET, JOB, FolderClient, Job
from groundcrew_batch import __main__ as program
from groundcrew_batch import job as job_module
from groundcrew_prediction.engine import SklearnEngine

BEFORE, RUN = "20260101T000000Z", "20260102T000000Z"
KILLS = 80
ROWS = 40


class Killed(BaseException):
    """What stands for the end of the process."""


class Mortal:
    """A client that lives for so many operations; the last one happens, or does not."""

    exceptions = FolderClient.exceptions

    def __init__(self, client: FolderClient, operations: int, happens: bool) -> None:
        self._client, self._left, self._happens = client, operations, happens

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._left -= 1
            if self._left < 0 or (self._left == 0 and not self._happens):
                raise Killed
            answer = real(*arguments, **keywords)
            if self._left == 0:
                raise Killed
            return answer

        return call


@pytest.fixture
def input_file(tmp_path: Path) -> str:
    """Forty rows, every seventh of which cannot be scored."""
    lines = [f"r{n},{n % 16},1,{'x' if n % 7 == 0 else 3}\n" for n in range(1, ROWS + 1)]
    path = tmp_path / "in.csv"
    path.write_text("id,a,b,c\n" + "".join(lines))
    return str(path)


EXPECTED = [f"r{n}" for n in range(1, ROWS + 1) if n % 7]
REJECTED = [n for n in range(1, ROWS + 1) if n % 7 == 0]


@contextmanager
def counted() -> Iterator[list[int]]:
    """The numbers of rows that the model was asked, a prediction each; not those of the golden case."""
    asked: list[int] = []
    real = SklearnEngine.predict

    def predict(self: SklearnEngine, instances: Any) -> Any:
        if instances.tolist() != [[1, 2, 3]]:
            asked.append(len(instances))
        return real(self, instances)

    patch = pytest.MonkeyPatch()
    patch.setattr(SklearnEngine, "predict", predict)
    try:
        yield asked
    finally:
        patch.undo()


def check(start: Job, run_id: str = RUN) -> None:
    """Every row once, in the order of the input, and LATEST names the run."""
    assert start.latest() == run_id
    assert start.ids(run_id) == EXPECTED
    assert [row["row"] for row in start.table(run_id, "rejected.parquet")] == REJECTED
    manifest = start.manifest(run_id)
    assert (manifest["rows"], manifest["predicted"]) == (ROWS, len(EXPECTED))


def rows_there(store: FolderClient, run_id: str) -> int:
    """The rows of the parts that are in the store."""
    parts = [
        path for path in store.folder.iterdir() if f"{run_id}|part-" in path.name and path.is_file()
    ]
    return sum(int(json.loads(path.read_bytes().partition(b"\n")[0])["rows"]) for path in parts)


@pytest.mark.parametrize("happens", [True, False])
def test_a_run_that_ends_at_any_operation_is_finished_by_the_next(
    start, store, input_file, happens
):
    """Each operation on the store is once the last one."""
    operations = 0
    alive = False
    while not alive:
        operations += 1
        run_id = f"20260102T{operations:06d}Z"
        mortal = Job(Mortal(store, operations, happens), start.model_directory)
        latest = start.latest()
        try:
            mortal(input_file, run_id, threads=1)
            alive = True
        except Killed:
            # The last operation moves LATEST.
            assert start.latest() in (latest, run_id)
        there = 0 if alive else rows_there(store, run_id)
        complete = (store.folder / f"predictions|{JOB}|{run_id}|manifest.json").exists()
        with counted() as asked:
            start(input_file, run_id, threads=1)
        assert sum(asked) == (0 if complete else len(EXPECTED) - there)
        check(start, run_id)
    assert operations > 15


@pytest.mark.parametrize("seed", range(60))
def test_runs_that_end_many_times_score_no_finished_chunk_again(start, store, input_file, seed):
    chance = random.Random(seed)
    changes = {"chunk_rows": chance.choice([2, 3, 5, 7]), "threads": chance.randint(1, 3)}
    for _attempt in range(chance.randint(1, 5)):
        there = rows_there(store, RUN)
        mortal = Mortal(store, chance.randint(1, 30), chance.random() < 0.5)
        with counted() as asked:
            try:
                Job(mortal, start.model_directory)(input_file, RUN, **changes)
            except Killed:
                assert start.latest() in (None, RUN)
        assert sum(asked) <= len(EXPECTED) - there
    there = rows_there(store, RUN)
    complete = (store.folder / f"predictions|{JOB}|{RUN}|manifest.json").exists()
    with counted() as asked:
        start(input_file, RUN, **changes)
    assert sum(asked) == (0 if complete else len(EXPECTED) - there)
    check(start)


def test_processes_that_are_killed_are_finished_by_the_next(
    start, store, input_file, model_directory, tmp_path
):
    """SIGKILL after a random time, over and over; a reader sees a complete run after each."""
    chance = random.Random(0)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [sys.executable, batch_support.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(run_id: str, seconds: float | None) -> int:
            given = {
                "job": JOB,
                "model": "tiny",
                "version": "1",
                "model_directory": str(model_directory),
                "bucket": BUCKET,
                "input": input_file,
                "run_id": run_id,
                "chunk_rows": 4,
                "threads": 2,
                "work_directory": str(work),
                "folder": str(store.folder),
            }
            server.stdin.write(json.dumps(given) + "\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            if seconds is not None:
                # The random moment is what is tested; nothing is waited for.
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
            server.stdin.write("\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        work = tmp_path / "work"
        work.mkdir()
        assert run("20260101T000001Z", None) == 0
        began = time.monotonic()
        assert run("20260101T000002Z", None) == 0
        # On a busy machine a whole run may take long; most kills must come in the middle.
        whole = min(0.05, time.monotonic() - began)
        killed = 0
        number = 0
        while killed < KILLS:
            number += 1
            run_id = f"20260103T{number:06d}Z"
            for _attempt in range(chance.randint(1, 4)):
                latest = start.latest()
                killed += 1
                run(run_id, chance.uniform(0, whole))
                assert start.latest() in (latest, run_id)
            there = rows_there(store, run_id)
            assert there <= len(EXPECTED)
            assert run(run_id, None) == 0
            check(start, run_id)
        assert list(work.iterdir()) == []
        server.stdin.close()


@pytest.mark.parametrize(
    "changes",
    [{"chunk_rows": 5}, {"include_instances": True}, {"input": "other"}, {"model": "other"}],
)
def test_parts_of_another_input_model_or_form_are_written_again(
    start, store, input_file, number_model, changes
):
    mortal = Job(Mortal(store, 9, True), start.model_directory)
    with pytest.raises(Killed):
        mortal(input_file, RUN, threads=1)
    assert rows_there(store, RUN)
    if changes.pop("input", None):
        path = Path(input_file)
        path.write_text(path.read_text().replace("r1,1,", "r1,2,"))
    if changes.pop("model", None):
        start.model_directory = number_model
    with counted() as asked:
        start(input_file, RUN, **changes)
    assert sum(asked) == len(EXPECTED)
    check(start)


def test_a_part_that_is_not_what_it_was_is_written_again(start, store, input_file):
    with pytest.raises(Killed):
        Job(Mortal(store, 9, True), start.model_directory)(input_file, RUN, threads=1)
    path = store.folder / f"predictions|{JOB}|{RUN}|part-00000.parquet"
    head, _, data = path.read_bytes().partition(b"\n")
    path.write_bytes(head + b"\n" + data[:-5] + b"x" + data[-4:])
    start(input_file, RUN)
    check(start)


def test_the_same_parts_however_many_threads(start, store, input_file):
    start(input_file, BEFORE, threads=1)
    start(input_file, RUN, threads=4)
    files = start.manifest(BEFORE)["files"]
    assert len(files) > 5
    assert files == start.manifest(RUN)["files"]


def test_a_finished_run_is_never_changed(start, store, input_file):
    start(input_file, RUN)
    before = {
        path.name: hashlib.sha256(path.read_bytes()).digest() for path in store.folder.iterdir()
    }
    Path(input_file).write_text("id,a,b,c\nz,1,2,3\n")
    start(input_file, RUN, chunk_rows=1)
    after = {
        path.name: hashlib.sha256(path.read_bytes()).digest() for path in store.folder.iterdir()
    }
    assert before == after


def test_a_clock_that_went_back_never_moves_latest_back(start, input_file):
    start(input_file, RUN)
    result = start(input_file, BEFORE)
    assert not result["latest"]
    assert "held_back" not in result
    assert start.latest() == RUN


def test_sigterm_ends_the_program(client, model_directory, input_file, monkeypatch):
    values = {
        "JOB": JOB,
        "MODEL_NAME": "tiny",
        "MODEL_VERSION": "1",
        "MODEL_DIRECTORY": str(model_directory),
        "STORE_BUCKET": BUCKET,
        "INPUT": input_file,
        "RUN_ID": RUN,
        "CHUNK_ROWS": "2",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)

    def stop(*_arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(job_module._Run, "_finish", stop)
            with pytest.raises(SystemExit, match="143"):
                program.main(["run"])
        assert program.main(["run"]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    key = f"predictions/{JOB}/{RUN}/rejected.parquet"
    data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert pyarrow.parquet.read_table(pyarrow.BufferReader(data)).num_rows == len(REJECTED)
