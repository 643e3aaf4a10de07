"""S3 over a folder, so that processes share a store without a server, and what the tests ask of a run.

Run as a program it forks one run of a job for each line of its standard input, so that a test can kill
hundreds of them: everything is imported once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
BUCKET = "groundcrew-test-store"
JOB = "nightly"


class FolderClient:
    """The few operations of S3 that a run uses, over a folder; writes are atomic, as S3's are."""

    class exceptions:
        class ClientError(Exception):
            def __init__(self, code: str) -> None:
                super().__init__(code)
                self.response = {"Error": {"Code": code}}

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / key.replace("/", "|")

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        try:
            stored = self._path(Key).read_bytes()
        except FileNotFoundError:
            raise self.exceptions.ClientError("NoSuchKey") from None
        head, _, data = stored.partition(b"\n")
        return {
            "Body": io.BytesIO(data),
            "ContentLength": len(data),
            "ETag": hashlib.md5(stored).hexdigest(),
            "Metadata": json.loads(head),
        }

    def put_object(
        self,
        Bucket: str,
        Key: str,
        Body: bytes,
        Metadata: dict[str, str],
        IfMatch: str | None = None,
        IfNoneMatch: str | None = None,
    ) -> dict[str, Any]:
        path = self._path(Key)
        there = path.exists()
        # Two runs of one test never write at a time.
        if (IfNoneMatch and there) or (
            IfMatch and (not there or self.get_object(Bucket, Key)["ETag"] != IfMatch)
        ):
            raise self.exceptions.ClientError("PreconditionFailed")
        stored = json.dumps(Metadata).encode() + b"\n" + Body
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
            file.write(stored)
        os.rename(file.name, path)
        return {"ETag": hashlib.md5(stored).hexdigest()}

    def get_paginator(self, _name: str) -> FolderClient:
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        keys = [
            path.name.replace("|", "/")
            for path in self.folder.iterdir()
            if not path.name.startswith(".")
        ]
        return [{"Contents": [{"Key": key} for key in sorted(keys) if key.startswith(Prefix)]}]


def write_model(
    directory: Path,
    model: Any,
    answer: list[Any],
    outputs: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    transform: str = "",
    export: bool = False,
) -> Path:
    """A model version that takes three numbers from 0 to 16, and answers ``answer`` to [1, 2, 3]."""
    import joblib
    from groundcrew import onnx_export

    directory.mkdir(parents=True)
    joblib.dump(model, directory / "model.joblib")
    if export:
        assert onnx_export.export(model, directory, [[1.0, 2.0, 3.0]]).reason is None
    case = {"request": {"instances": [[1.0, 2.0, 3.0]]}, "response": {"predictions": answer}}
    golden = {"cases": [case], "tolerance": 1e-6}
    (directory / "golden.json").write_text(json.dumps(golden))
    if transform:
        (directory / "transform.py").write_text(transform)
    files = {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in directory.iterdir()
    }
    fixed = {"shape": [3], "dtype": "float64", "minimum": 0, "maximum": 16}
    signature = {"inputs": {**fixed, **(inputs or {})}, "outputs": outputs}
    manifest = {"files": files, "framework": "sklearn", "signature": signature, "metrics": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


class Job:
    """Runs of one job on one store."""

    def __init__(self, client: Any, model_directory: Path) -> None:
        self.client, self.model_directory = client, model_directory
        self.said: list[str] = []

    def __call__(self, given: str, run_id: str, **changes: Any) -> dict[str, Any]:
        from groundcrew_batch.job import run
        from groundcrew_batch.patience import Patience
        from groundcrew_batch.settings import Settings

        chosen = {
            "job": JOB,
            "model": "tiny",
            "version": "1",
            "model_directory": self.model_directory,
            "bucket": BUCKET,
            "input": given,
            "run_id": run_id,
            "chunk_rows": 4,
            **changes,
        }
        patience = Patience((0.0,) * 4, lambda _seconds: None)
        return run(Settings(**chosen), self.client, self.said.append, patience)

    def table(self, run_id: str, name: str) -> list[dict[str, Any]]:
        """The rows of one file of a run."""
        import pyarrow.parquet

        key = f"predictions/{JOB}/{run_id}/{name}"
        data = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        return rows

    def manifest(self, run_id: str) -> dict[str, Any]:
        key = f"predictions/{JOB}/{run_id}/manifest.json"
        document: dict[str, Any] = json.loads(
            self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        )
        return document

    def latest(self) -> str | None:
        """The run that LATEST names, verified with everything in it."""
        from groundcrew import batch_store

        found = batch_store.read_latest(self.client, BUCKET, JOB)
        return found.run_id if found else None

    def ids(self, run_id: str) -> list[str]:
        """The ids of every predicted row, in their order."""
        names = sorted(name for name in self.manifest(run_id)["files"] if name.startswith("part-"))
        return [row["id"] for name in names for row in self.table(run_id, name)]


def serve() -> None:
    """For each line {settings of a run} print the process id and, after another line, its exit status:
    the id is nobody else's until then."""
    # What unpickling a model would import, in every child again.
    import sklearn.linear_model  # noqa: F401
    from groundcrew_batch.job import run
    from groundcrew_batch.settings import Settings

    while line := sys.stdin.readline():
        given = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                folder = Path(given.pop("folder"))
                given["model_directory"] = Path(given["model_directory"])
                given["work_directory"] = Path(given["work_directory"])
                run(Settings(**given), FolderClient(folder), lambda _text: None)
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    sys.path[:0] = [
        str(REPOSITORY / folder)
        for folder in (
            "plugins/module_utils",
            "files/images/prediction_front",
            "files/images/batch_sklearn",
        )
    ]
    serve()
