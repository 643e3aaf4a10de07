"""A store that fails, breaks off or changes, a full disk, and models that refuse rows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import boto3
import pytest
from batch_support import BUCKET, JOB, REPOSITORY, Job, write_model
from botocore.config import Config
from groundcrew import batch_store
from groundcrew.errors import GroundcrewError
from groundcrew_batch import source
from groundcrew_batch.patience import Patience
from groundcrew_batch.progress import INTERVAL_SECONDS, Progress
from sklearn.linear_model import LogisticRegression

FIRST, SECOND = "20260101T000000Z", "20260102T000000Z"
PATIENCE = Patience((0.0,) * 4, lambda _seconds: None)
# Larger than one block of a download.
DATA = b"id,a,b,c\n" + b"".join(b"row-%d,1,2,3\n" % n for n in range(200_000))


class Objects:
    """An S3 that answers GET alone, and after a plan: each entry is one answer, then all goes well.

    A number cuts the connection after so many bytes; a status refuses; "changed" puts another object
    in the place of this one.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects, self.plan = objects, list[Any]()
        self.ranges: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def handle(self) -> None:
                # The client gives a connection up when its answer broke off.
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.server.server_port}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(
                retries={"total_max_attempts": 1},
                read_timeout=0.3,
                s3={"addressing_style": "path"},
            ),
        )

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.lstrip("/").partition("?")
        if "list-type=2" in query:
            return self._list(request)
        fault = self.plan.pop(0) if self.plan else None
        self.ranges.append(request.headers.get("Range"))
        if fault == "changed":
            self.objects[path] += b"more,1,2,3\n"
            fault = None
        if isinstance(fault, str):
            status, code = fault.split()
            return self._error(request, int(status), code)
        data = self.objects.get(path)
        if data is None:
            return self._error(request, 404, "NoSuchKey")
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if request.headers.get("If-Match", etag) != etag:
            return self._error(request, 412, "PreconditionFailed")
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "bytes=0-")
        assert found is not None
        rest = data[int(found[1]) :]
        request.send_response(206 if request.headers.get("Range") else 200)
        request.send_header("Content-Length", str(len(rest)))
        request.send_header("ETag", etag)
        request.end_headers()
        request.wfile.write(rest[:fault])
        if fault is not None:
            request.wfile.flush()
            request.connection.shutdown(2)

    def _list(self, request: BaseHTTPRequestHandler) -> None:
        entries = "".join(
            f"<Contents><Key>{path.partition('/')[2]}</Key><Size>{len(data)}</Size></Contents>"
            for path, data in self.objects.items()
        )
        body = f"<ListBucketResult>{entries}</ListBucketResult>".encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _error(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def s3() -> Iterator[Objects]:
    made = Objects({f"{BUCKET}/in.csv": DATA})
    yield made
    made.server.shutdown()
    made.server.server_close()


URI = f"s3://{BUCKET}/in.csv"


def obtained(s3: Objects, folder: Path, uri: str = URI) -> bytes:
    with source.obtain(s3.client, uri, folder, patience=PATIENCE) as found:
        data = b""
        for file in found.files:
            with file.open() as stream:
                data += stream.read()
        assert found.size == len(data)
        if len(found.files) == 1:
            assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert list(folder.iterdir()) == []
    return data


@pytest.mark.parametrize(
    "plan",
    [
        ["500 InternalError"],
        ["503 SlowDown", "503 SlowDown", "500 InternalError"],
        [0],
        [1],
        [1 << 20],
        [2_000_000, 0, "503 SlowDown", 5, 100_000],
        # Each cut is further than the one before: more of them than one place would be given.
        [100_000] * 20,
    ],
)
def test_a_download_is_taken_up_where_it_broke_off(s3, tmp_path, plan):
    s3.plan += plan
    assert obtained(s3, tmp_path) == DATA
    assert not s3.plan
    starts = [int(re.sub(r"\D", "", found or "0")) for found in s3.ranges]
    assert starts == sorted(starts)


def test_a_store_that_stays_away_ends_the_run_with_what_came(s3, tmp_path):
    s3.plan += [500_000, *["503 SlowDown"] * 9]
    with pytest.raises(GroundcrewError, match=r"broke off after \d+ of \d+ bytes, 5 times"):
        obtained(s3, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_changes_in_the_middle_is_an_error(s3, tmp_path):
    s3.plan += [500_000, "changed"]
    with pytest.raises(GroundcrewError, match="in.csv changed while it was read"):
        obtained(s3, tmp_path)


def test_an_object_that_is_missing_or_forbidden_is_asked_for_once(s3, tmp_path):
    with pytest.raises(GroundcrewError, match="none.csv does not exist; correct INPUT"):
        obtained(s3, tmp_path, f"s3://{BUCKET}/none.csv")
    s3.plan += ["403 AccessDenied"]
    with pytest.raises(s3.client.exceptions.ClientError, match="AccessDenied"):
        obtained(s3, tmp_path)
    assert len(s3.ranges) == 2


def test_a_prefix_is_its_files_in_the_order_of_their_keys(s3, tmp_path):
    s3.objects = {
        f"{BUCKET}/day/{name}": name.encode() * 3
        for name in ("c/d.csv", "b.csv", "_SUCCESS", "a.parquet")
    }
    s3.plan += [2]
    assert obtained(s3, tmp_path, f"s3://{BUCKET}/day/") == b"a.parquet" * 3 + b"b.csv" * 3 + (
        b"c/d.csv" * 3
    )
    with source.obtain(s3.client, f"s3://{BUCKET}/day/", tmp_path) as found:
        assert [file.name for file in found.files] == ["a.parquet", "b.csv", "c/d.csv"]
        listed = [
            [f.name, f.size, hashlib.sha256(f.name.encode() * 3).hexdigest()] for f in found.files
        ]
        assert found.sha256 == hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        # Files lie one after the other in the copy, and each is only itself.
        with found.files[1].open() as stream:
            stream.seek(-2, os.SEEK_END)
            assert stream.read() == b"sv"
    s3.objects = {f"{BUCKET}/day/_SUCCESS": b""}
    with pytest.raises(GroundcrewError, match=r"no .csv or .parquet file below the input s3://"):
        obtained(s3, tmp_path, f"s3://{BUCKET}/day/")


def test_rows_of_a_prefix_are_rejected_with_their_file(client, model_directory):
    client.put_object(Bucket=BUCKET, Key="in/a.csv", Body=b"id,a,b,c\na1,1,2,3\na2,1,2,x\n")
    client.put_object(Bucket=BUCKET, Key="in/b.csv", Body=b"id,a,b,c\nb1,1,2\nb2,1,2,3\nb3,1,2,3\n")
    start = Job(client, model_directory)
    result = start(f"s3://{BUCKET}/in/", FIRST)
    assert (result["rows"], result["rejected"]) == (5, 2)
    assert start.ids(FIRST) == ["a1", "b2", "b3"]
    rejected = start.table(FIRST, batch_store.REJECTED)
    assert [(row["file"], row["row"]) for row in rejected] == [("a.csv", 2), ("b.csv", 1)]


@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
def test_a_store_that_throttles_writes_costs_time_alone(start, store, tmp_path, code):
    """Each operation fails twice before it is done."""
    path = tmp_path / "in.csv"
    path.write_bytes(DATA[:300].rpartition(b"\n")[0] + b"\n")
    start(str(path), FIRST)

    class Throttled:
        exceptions = store.exceptions

        def __getattr__(self, name: str) -> Any:
            left = 2

            def call(**keywords: Any) -> Any:
                nonlocal left
                left -= 1
                if left >= 0 and name != "get_paginator":
                    error = store.exceptions.ClientError(code)
                    error.response["ResponseMetadata"] = {"HTTPStatusCode": 503}
                    raise error
                left = 2
                return getattr(store, name)(**keywords)

            return call if name != "get_paginator" else getattr(store, name)

    start.client = Throttled()
    start(str(path), SECOND)
    start.client = store
    assert start.latest() == SECOND
    assert start.ids(SECOND) == start.ids(FIRST)


def test_a_full_disk_is_named_and_leaves_nothing(s3, start, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    real = source.tempfile.TemporaryFile

    class Full:
        def __init__(self, file: Any, room: int) -> None:
            self._file, self._room = file, room

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_details: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: Any) -> int:
            self._room -= len(data)
            if self._room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self._file.write(data))

    with monkeypatch.context() as patch:
        patch.setattr(
            source.tempfile, "TemporaryFile", lambda **keywords: Full(real(**keywords), 1_500_000)
        )
        with pytest.raises(
            GroundcrewError, match=r"cannot copy the input s3://.*No space left.*WORK_DIRECTORY"
        ):
            obtained(s3, work)
        # The rejected rows go there too.
        path = tmp_path / "in.csv"
        path.write_bytes(b"id,a,b,c\nx,1,2,3\ny,1,2\n")
        patch.setattr(
            source.tempfile, "TemporaryFile", lambda **keywords: Full(real(**keywords), 2)
        )
        with pytest.raises(GroundcrewError, match=r"WORK_DIRECTORY .* is full"):
            start(str(path), FIRST, work_directory=work)
    assert list(work.iterdir()) == []
    with pytest.raises(GroundcrewError, match="cannot copy the input .* No such file"):
        obtained(s3, tmp_path / "none")


def model(folder: Path, transform: str) -> Path:
    features = [[0.0, 0.0, 0.0], [16.0, 16.0, 16.0]] * 5
    fitted = LogisticRegression().fit(features, [0, 1] * 5)
    answer = fitted.predict_proba([[1.0, 2.0, 3.0]]).tolist()
    outputs = {"shape": [2], "labels": ["no", "yes"]}
    return write_model(folder / "tiny" / "1", fitted, answer, outputs, None, transform)


REFUSES = """
import numpy as np
def preprocess(instances):
    if (instances[:, 0] == 7).any():
        raise ValueError("seven is no good")
    return instances
def postprocess(predictions):
    return np.where(predictions < 0.005, np.nan, predictions)
"""


def test_rows_that_the_model_refuses_are_rejected_alone(store, tmp_path):
    start = Job(store, model(tmp_path, REFUSES))
    firsts = [1, 7, 2, 3, 7, 16, 4, 5, 6]
    lines = [f"r{n},{a},{a},{a}\n" for n, a in enumerate(firsts, 1)] + [
        "r10,1,1,x\n",
        "r11,1,1,1\n",
    ]
    (tmp_path / "in.csv").write_text("id,a,b,c\n" + "".join(lines))
    for run_id in (FIRST, SECOND):
        result = start(str(tmp_path / "in.csv"), run_id, include_instances=True)
        assert result["rows"] == 11
        rejected = start.table(run_id, batch_store.REJECTED)
        assert [(row["id"], row["row"]) for row in rejected] == [
            ("r2", 2),
            ("r5", 5),
            ("r6", 6),
            ("r10", 10),
        ]
        assert rejected[0]["reason"] == "the model refuses it: seven is no good"
        assert "predicted NaN or infinity" in rejected[2]["reason"]
        assert start.ids(run_id) == ["r1", "r3", "r4", "r7", "r8", "r9", "r11"]
        assert start.table(run_id, "part-00001.parquet")[0]["instance"] == [4, 4, 4]


def test_a_model_that_takes_nothing_or_breaks_ends_the_run(store, tmp_path):
    lines = "".join(f"r{n},7,7,7\n" for n in range(2000))
    (tmp_path / "in.csv").write_text("id,a,b,c\n" + lines)
    start = Job(store, model(tmp_path / "refuses", REFUSES))
    with pytest.raises(GroundcrewError, match="takes none of 1000 rows, .*seven is no good"):
        start(str(tmp_path / "in.csv"), FIRST, chunk_rows=2000)
    broken = (
        "def preprocess(instances):\n    return instances if instances[0, 0] == 1 else 1 / 0 + {}"
    )
    start = Job(store, model(tmp_path / "breaks", broken.replace("1 / 0 + {}", "None + 1")))
    with pytest.raises(GroundcrewError, match="model tiny version 1 fails: TypeError"):
        start(str(tmp_path / "in.csv"), FIRST)
    assert start.latest() is None


def test_a_model_that_is_removed_while_it_works_goes_on(start, tmp_path, monkeypatch):
    """What was loaded is in memory."""
    directory = model(tmp_path, "def preprocess(instances):\n    return instances\n")
    (tmp_path / "in.csv").write_bytes(b"id,a,b,c\nx,1,2,3\n")
    start.model_directory = directory
    real = source.obtain

    def obtain(*arguments: Any, **keywords: Any) -> Any:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        return real(*arguments, **keywords)

    monkeypatch.setattr("groundcrew_batch.job.obtain", obtain)
    assert start(str(tmp_path / "in.csv"), FIRST)["latest"]
    with pytest.raises(GroundcrewError, match="fetch the model version"):
        start(str(tmp_path / "in.csv"), SECOND)


def test_progress_is_a_line_every_few_seconds():
    now, lines = 0.0, list[str]()
    progress = Progress(lines.append, 1000, "scored", lambda: now)
    for _ in range(100):
        now += INTERVAL_SECONDS / 10
        progress.add(10, 100)
    assert len(lines) == 10
    assert lines[4] == "scored 50.0%: 5000 rows, 200 rows/s, 25 s left"
    progress = Progress(lines.append, 0, "copied", lambda: now)
    progress.expect(4_000_000)
    now += 10
    progress.add(1_000_000)
    assert lines[-1] == "copied 25.0%: 1000000 bytes, 0.1 MB/s, 30 s left"


PROGRAM = r"""
import re, sys
from pathlib import Path
from batch_support import FolderClient
from groundcrew import objects
objects.open_client = lambda: FolderClient(Path(sys.argv[1]))
from groundcrew_batch import __main__ as program
status = program.main(["run"])
# Not getrusage: its maximum is that of the process that started this one, if that was larger.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
sys.exit(status)
"""


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_million_rows_fit_into_little_memory(store, model_directory, tmp_path, suffix):
    """Three numbers a row here; `make bench bench=batch` measures thirty."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    count = 1_000_000
    numbers = np.arange(count) % 16
    table = pa.table({"id": np.arange(count), "a": numbers, "b": numbers, "c": numbers})
    write = pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table
    write(table, tmp_path / f"in.{suffix}")
    folders = (
        "plugins/module_utils",
        "files/images/prediction_front",
        "files/images/batch_sklearn",
    )
    paths = [*(str(REPOSITORY / folder) for folder in folders), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(store.folder)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "JOB": JOB,
            "MODEL_NAME": "tiny",
            "MODEL_VERSION": "1",
            "MODEL_DIRECTORY": str(model_directory),
            "STORE_BUCKET": BUCKET,
            "INPUT": str(tmp_path / f"in.{suffix}"),
            "RUN_ID": FIRST,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *_, result, megabytes = done.stdout.splitlines()
    assert json.loads(result)["predicted"] == count
    assert int(megabytes) < 500
