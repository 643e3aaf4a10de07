"""What the environment says."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from groundcrew import batch_store, model_store
from groundcrew.errors import GroundcrewError


@dataclass(frozen=True)
class Settings:
    """One run of one job.

    JOB, MODEL_NAME, MODEL_VERSION, STORE_BUCKET and INPUT (s3://bucket/key or a path; .csv or
    .parquet) are required. MODEL_DIRECTORY is /models/<name>/<version> by default. OUTPUT, when
    given, must be predictions/<job>/. CHUNK_ROWS (10000) rows a part; INCLUDE_INSTANCES (false)
    writes the instances beside the predictions; RUN_ID is the present time in UTC by default;
    WORK_DIRECTORY (the temporary directory) holds a copy of the input while the job runs.
    """

    job: str
    model: str
    version: str
    model_directory: Path
    bucket: str
    input: str
    run_id: str
    chunk_rows: int = 10_000
    include_instances: bool = False
    work_directory: Path = Path(tempfile.gettempdir())

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Raises GroundcrewError that names the variable and its value."""
        required = ("JOB", "MODEL_NAME", "MODEL_VERSION", "STORE_BUCKET", "INPUT")
        missing = [name for name in required if not env.get(name)]
        if missing:
            raise GroundcrewError(f"{', '.join(missing)} must be set in the job's environment")
        job = batch_store.check_job(env["JOB"])
        model = model_store.check_model(env["MODEL_NAME"])
        version = model_store.check_version(env["MODEL_VERSION"])
        output = env.get("OUTPUT")
        if output and output.strip("/") != f"predictions/{job}":
            raise GroundcrewError(
                f"OUTPUT is {output!r}; readers look for this job's runs at predictions/{job}/"
            )
        chunk_rows = env.get("CHUNK_ROWS") or "10000"
        if not chunk_rows.isascii() or not chunk_rows.isdecimal() or not int(chunk_rows):
            raise GroundcrewError(
                f"CHUNK_ROWS is {chunk_rows!r}; it must be a whole number of 1 or more"
            )
        include = (env.get("INCLUDE_INSTANCES") or "false").lower()
        if include not in ("true", "false"):
            raise GroundcrewError(f"INCLUDE_INSTANCES is {include!r}; it must be true or false")
        return cls(
            job=job,
            model=model,
            version=version,
            model_directory=Path(env.get("MODEL_DIRECTORY") or f"/models/{model}/{version}"),
            bucket=env["STORE_BUCKET"],
            input=env["INPUT"],
            run_id=batch_store.check_run_id(env.get("RUN_ID") or batch_store.new_run_id()),
            chunk_rows=int(chunk_rows),
            include_instances=include == "true",
            work_directory=Path(env.get("WORK_DIRECTORY") or tempfile.gettempdir()),
        )
