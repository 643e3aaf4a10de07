#!/usr/bin/env python3
"""Batch prediction against pandas and scikit-learn in one process, in one run on this machine.

Usage: batch.py [REPETITIONS [ROWS]]     writes build/bench/batch.json, prints a table, ratios and the targets

A million rows of 30 numbers (six digits), a forest of 100 trees of depth 10. The peer is what articles show: read_csv or read_parquet,
predict_proba, to_csv or to_parquet. Both read the same file, which the kernel has in memory; the peer writes a file, ours writes a run
into an S3 (moto, a process beside it), so that ours pays for more. Each figure is the wall time of a whole process, its start included,
and the most memory that it and its children had at a time. Repetitions are interleaved, figures are medians; every answer of ours is
compared with the peer's. Ours uses every processor, the peer mostly one: other work on the machine costs ours more.
The exit status tells whether everything ran and answered right; a target that is not met is printed and changes nothing.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import joblib
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from load import BenchError, medians, table
from serving import BUILD, IMAGES, PEERS, REPOSITORY, TOLERANCE, end, free_ports, run
from sklearn.ensemble import RandomForestClassifier

sys.path[:0] = [str(REPOSITORY / "plugins/module_utils"), str(PEERS)]

from groundcrew import batch_store, onnx_export  # noqa: E402
from versions import write_version  # noqa: E402

REPORT = BUILD / "batch.json"
COLUMNS = 30
TREES, DEPTH = 100, 10
BUCKET = "bench"
START_SECONDS = 30
CSV_TARGET, PARQUET_TARGET, MEMORY_TARGET_MB = 3.0, 1.5, 500
# A virtual environment and the lock files it is made of.
VENVS = {
    "batch": [IMAGES / "sklearn/requirements.txt", IMAGES / "batch_sklearn/requirements.txt"],
    "pandas": [REPOSITORY / "requirements/bench_pandas.txt"],
}
PYTHONPATH = ":".join(
    map(
        str,
        (
            REPOSITORY / "plugins/module_utils",
            IMAGES / "prediction_front",
            IMAGES / "batch_sklearn",
        ),
    )
)
PEER = """
import sys
import joblib
import pandas as pd
model, source, target = sys.argv[1:]
model = joblib.load(model)
csv = source.endswith(".csv")
rows = pd.read_csv(source) if csv else pd.read_parquet(source)
answers = model.predict_proba(rows.drop(columns="id").to_numpy())
result = pd.DataFrame({"id": rows["id"], "no": answers[:, 0], "yes": answers[:, 1]})
result.to_csv(target, index=False) if csv else result.to_parquet(target, index=False)
"""
PANDAS = "pandas + scikit-learn"
ONNX, SKLEARN = "Groundcrew, ONNX export", "Groundcrew, scikit-learn"
FORMATS = ("csv", "parquet")


# -- what is measured with ------------------------------------------------------------------------


def make_venv(name: str, locks: Sequence[Path], folder: Path) -> None:
    print(f"bench | virtual environment: {name}", flush=True)
    uv, venv = Path(sys.prefix) / "bin/uv", BUILD / "venvs" / name
    if not (venv / "bin/python").exists():
        run([uv, "venv", "--quiet", "--python", "3.11", venv])
    # One file, for sync removes what it does not find in it.
    lock = folder / f"{name}.txt"
    lock.write_text("".join(path.read_text() for path in locks))
    variables = {"VIRTUAL_ENV": str(venv)}
    run([uv, "pip", "sync", "--quiet", "--compile-bytecode", "--require-hashes", lock], **variables)


def make_model(folder: Path) -> None:
    """The forest, with an export (folder onnx) and without (folder sklearn), as the store gives them to hosts."""
    print(f"bench | a forest of {TREES} trees of depth {DEPTH}", flush=True)
    random = np.random.default_rng(0)
    rows = random.normal(size=(20_000, COLUMNS)).round(6).astype(np.float32)
    labels = rows[:, :5].sum(axis=1) + random.normal(size=len(rows)) > 0
    forest = RandomForestClassifier(TREES, max_depth=DEPTH, random_state=0, n_jobs=-1)
    forest.fit(rows, labels)
    # What a team writes: nobody sets it, and then one processor predicts.
    forest.n_jobs = None
    answer = forest.predict_proba(rows[:1])[0].tolist()
    for name in ("sklearn", "onnx"):
        directory = folder / name
        directory.mkdir()
        joblib.dump(forest, directory / "model.joblib")
        if name == "onnx" and (reason := onnx_export.export(forest, directory, rows).reason):
            raise BenchError(reason)
        write_version(directory, "sklearn", rows[0].tolist(), answer)


def make_input(folder: Path, count: int) -> None:
    print(f"bench | {count} rows of {COLUMNS} numbers as CSV and as Parquet", flush=True)
    random = np.random.default_rng(1)
    names = ["id", *(f"x{number}" for number in range(COLUMNS))]
    schema = pa.schema([("id", pa.string()), *((name, pa.float64()) for name in names[1:])])
    plain = pyarrow.csv.WriteOptions(quoting_style="needed")
    with (
        pyarrow.csv.CSVWriter(folder / "in.csv", schema, write_options=plain) as text,
        pyarrow.parquet.ParquetWriter(folder / "in.parquet", schema) as columns,
    ):
        for start in range(0, count, 100_000):
            size = min(100_000, count - start)
            ids = pa.array([f"row-{number}" for number in range(start, start + size)])
            numbers = [random.normal(size=size).round(6) for _ in names[1:]]
            rows = pa.table([ids, *numbers], schema=schema)
            text.write(rows)
            columns.write(rows)


@contextmanager
def store() -> Iterator[str]:
    """The address of an empty S3 with the bucket."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    process = psutil.Popen(
        [str(Path(sys.prefix) / "bin/moto_server"), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise BenchError(f"moto did not listen within {START_SECONDS} s") from None
                time.sleep(0.1)
        client(address).create_bucket(Bucket=BUCKET)
        yield address
    finally:
        end(process)


KEYS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def client(address: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=address,
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


# -- runs -----------------------------------------------------------------------------------------


def measured(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Wall and processor seconds of a process, and the most memory of it and its children together."""
    with tempfile.TemporaryFile("w+") as log:
        started, used = time.monotonic(), os.times()
        process = psutil.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        most = 0
        try:
            while process.poll() is None:
                most = max(most, tree_memory(process))
                try:
                    process.wait(0.05)
                except psutil.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                end(process)
        seconds, after = time.monotonic() - started, os.times()
        if process.returncode != 0:
            log.seek(0)
            raise BenchError(
                f"{command[:3]} ended with {process.returncode}:\n{log.read()[-4000:]}"
            )
    processor = after.children_user + after.children_system
    processor -= used.children_user + used.children_system
    return {"seconds": seconds, "processor_seconds": processor, "memory_mb": most / 1e6}


def tree_memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its children now; 0 when it has ended."""
    try:
        return sum(
            int(each.memory_info().rss) for each in [process, *process.children(recursive=True)]
        )
    except psutil.NoSuchProcess:
        return 0


class Bench:
    def __init__(self, folder: Path, address: str, rows: int) -> None:
        self.folder, self.address, self.rows = folder, address, rows
        self._number = 0

    def pandas(self, form: str) -> dict[str, float]:
        paths = ("sklearn/model.joblib", f"in.{form}", f"out.{form}")
        python = str(BUILD / "venvs/pandas/bin/python")
        command = [python, "-c", PEER, *(str(self.folder / path) for path in paths)]
        return measured(command, {})

    def groundcrew(self, form: str, model: str) -> dict[str, float]:
        """One run of a job of its own, then its answers against the peer's."""
        self._number += 1
        job = f"bench-{self._number}"
        python = str(BUILD / "venvs/batch/bin/python")
        environment = {
            **KEYS,
            "AWS_ENDPOINT_URL": self.address,
            "PYTHONPATH": PYTHONPATH,
            "JOB": job,
            "MODEL_NAME": "forest",
            "MODEL_VERSION": "1",
            "MODEL_DIRECTORY": str(self.folder / model),
            "STORE_BUCKET": BUCKET,
            "INPUT": str(self.folder / f"in.{form}"),
            "RUN_ID": "20260101T000000Z",
            "WORK_DIRECTORY": str(self.folder),
        }
        figures = measured([python, "-m", "groundcrew_batch", "run"], environment)
        self.compare(job, form)
        return figures

    def compare(self, job: str, form: str) -> None:
        """Every row must be answered once, in order, and as the peer answers it."""
        found = batch_store.read_latest(client(self.address), BUCKET, job)
        if found is None:
            raise BenchError(f"{job} wrote no run")
        parts = [pyarrow.parquet.read_table(io.BytesIO(part)) for part in found.parts]
        ours = pa.concat_tables(parts).combine_chunks()
        path = self.folder / f"out.{form}"
        theirs = pyarrow.csv.read_csv(path) if form == "csv" else pyarrow.parquet.read_table(path)
        same = ours["id"].to_pylist() == theirs["id"].to_pylist() and len(ours) == self.rows
        if not same:
            raise BenchError(f"{job} has other rows than {path.name}")
        answers = np.asarray(ours["predictions"].combine_chunks().flatten()).reshape(-1, 2)
        wanted = np.column_stack([theirs["no"].to_numpy(), theirs["yes"].to_numpy()])
        far = float(np.abs(answers - wanted).max())
        if far > TOLERANCE:
            raise BenchError(f"{job} answers otherwise than scikit-learn, by {far}")


def main() -> int:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    # So that a stopped bench ends its processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    BUILD.mkdir(parents=True, exist_ok=True)
    rounds: dict[str, list[dict[str, float]]] = {}
    # On the disk of the repository: a temporary folder may be memory.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as name, store() as address:
        folder = Path(name)
        for venv, locks in VENVS.items():
            make_venv(venv, locks, folder)
        make_model(folder)
        make_input(folder, count)
        bench = Bench(folder, address, count)
        works: dict[str, Callable[[str], dict[str, float]]] = {
            # First: its answers are what the others are compared with.
            PANDAS: bench.pandas,
            ONNX: lambda form: bench.groundcrew(form, "onnx"),
            SKLEARN: lambda form: bench.groundcrew(form, "sklearn"),
        }
        for number in range(repetitions):
            for form in FORMATS:
                for what, work in works.items():
                    figures = work(form)
                    figures["rows_per_second"] = count / figures["seconds"]
                    rounds.setdefault(f"{what}, {form}", []).append(figures)
                    print(
                        f"{number + 1}/{repetitions}  {what}, {form}: {figures['seconds']:.1f} s, "
                        f"{figures['memory_mb']:.0f} MB",
                        flush=True,
                    )
    report(rounds, count)
    return 0


# -- report ---------------------------------------------------------------------------------------


def report(rounds: Mapping[str, list[dict[str, float]]], count: int) -> None:
    found = {name: medians(listed) for name, listed in rounds.items()}
    ratios = {
        f"{PANDAS} / {name}, {form}": round(
            found[f"{PANDAS}, {form}"]["seconds"] / found[f"{name}, {form}"]["seconds"], 3
        )
        for form in FORMATS
        for name in (ONNX, SKLEARN)
    }
    csv, parquet = (ratios[f"{PANDAS} / {ONNX}, {form}"] for form in FORMATS)
    memory = max(
        figures["memory_mb"]
        for name, listed in rounds.items()
        for figures in listed
        if not name.startswith(PANDAS)
    )
    checks: list[tuple[str, float, bool]] = [
        (f"CSV: at least {CSV_TARGET:g} times as fast as {PANDAS}", csv, csv >= CSV_TARGET),
        (
            f"Parquet: at least {PARQUET_TARGET:g} times as fast",
            parquet,
            parquet >= PARQUET_TARGET,
        ),
        (f"memory: less than {MEMORY_TARGET_MB} MB", memory, memory < MEMORY_TARGET_MB),
    ]
    packages = {
        name: run([BUILD / "venvs" / name / "bin/python", "-c", PACKAGES]).split() for name in VENVS
    }
    document = {
        "ok": all(met for *_, met in checks),
        "checks": [{"name": n, "ok": met, "detail": f"{v:.2f}"} for n, v, met in checks],
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
        "rows": count,
        "columns": COLUMNS,
        "model": f"RandomForestClassifier({TREES}, max_depth={DEPTH})",
        "packages": packages,
        "medians": found,
        "rounds": rounds,
        "ratios": ratios,
    }
    REPORT.write_text(json.dumps(document, indent=1) + "\n")
    rows = [["", "seconds", "processor s", "rows/s", "memory MB"]]
    for name, figures in found.items():
        times = [f"{figures['seconds']:.2f}", f"{figures['processor_seconds']:.2f}"]
        rows.append(
            [name, *times, f"{figures['rows_per_second']:.0f}", f"{figures['memory_mb']:.0f}"]
        )
    print("\n" + table(rows))
    print("\n    ratio of seconds")
    for name, value in ratios.items():
        print(f"{value:9.2f}  {name}")
    print("\ntargets")
    for name, value, met in checks:
        print(f"{value:9.2f}  {'met    ' if met else 'NOT MET'}  {name}")
    print(
        f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; every figure: {REPORT}"
    )


PACKAGES = """
from importlib.metadata import distributions
print(*sorted(f"{each.metadata['Name']}=={each.version}" for each in distributions()))
"""


if __name__ == "__main__":
    sys.exit(main())
