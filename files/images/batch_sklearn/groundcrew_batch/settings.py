"""What the environment says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from groundcrew import batch_store, model_store
from groundcrew.errors import GroundcrewError

from .judgement import Limits


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """One run of one job.

    JOB, MODEL_NAME, MODEL_VERSION, STORE_BUCKET and INPUT are required. INPUT is s3://bucket/key,
    file:///path or a path, of a .csv or .parquet file, or of all of them below a prefix that ends
    in /. MODEL_DIRECTORY is /models/<name>/<version> by default. OUTPUT, when given, must be
    predictions/<job>/. CHUNK_ROWS rows a part, by default as many as hold 1.5 million numbers, at
    most 50,000. INCLUDE_INSTANCES (false) writes the instances beside the predictions. RUN_ID is
    the present time in UTC by default. WORK_DIRECTORY (the temporary directory) holds a copy of an
    input from S3 while the job runs. THREADS (the processors there are) work at a time.

    MINIMUM_ROWS_SHARE (0.5), MAXIMUM_SHIFT (0.2) and MAXIMUM_REJECTED_SHARE (0.5) are what a run
    must keep before LATEST names it; ACCEPT (false) lets LATEST name it all the same.
    """

    job: str
    model: str
    version: str
    model_directory: Path
    bucket: str
    input: str
    run_id: str
    chunk_rows: int | None = None
    include_instances: bool = False
    work_directory: Path = Path(tempfile.gettempdir())
    threads: int = field(default_factory=processors)
    limits: Limits = field(default_factory=Limits)
    accept: bool = False

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
        return cls(
            job=job,
            model=model,
            version=version,
            model_directory=Path(env.get("MODEL_DIRECTORY") or f"/models/{model}/{version}"),
            bucket=env["STORE_BUCKET"],
            input=env["INPUT"],
            run_id=batch_store.check_run_id(env.get("RUN_ID") or batch_store.new_run_id()),
            chunk_rows=_count(env, "CHUNK_ROWS"),
            include_instances=_truth(env, "INCLUDE_INSTANCES"),
            work_directory=Path(env.get("WORK_DIRECTORY") or tempfile.gettempdir()),
            threads=_count(env, "THREADS") or processors(),
            limits=Limits(
                minimum_rows_share=_share(env, "MINIMUM_ROWS_SHARE", Limits.minimum_rows_share),
                maximum_shift=_share(env, "MAXIMUM_SHIFT", Limits.maximum_shift),
                maximum_rejected_share=_share(
                    env, "MAXIMUM_REJECTED_SHARE", Limits.maximum_rejected_share
                ),
            ),
            accept=_truth(env, "ACCEPT"),
        )


def _count(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise GroundcrewError(f"{name} is {text!r}; it must be a whole number of 1 or more")
    return int(text)


def _truth(env: Mapping[str, str], name: str) -> bool:
    text = (env.get(name) or "false").lower()
    if text not in ("true", "false"):
        raise GroundcrewError(f"{name} is {text!r}; it must be true or false")
    return text == "true"


def _share(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    # Also false for NaN.
    if not 0 <= share <= 1:
        raise GroundcrewError(f"{name} is {text!r}; it must be a number from 0 to 1")
    return share
