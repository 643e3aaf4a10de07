"""The archive (.mar) that Multi Model Server serves: a model's files and its handler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from groundcrew.errors import GroundcrewError
from job import Job

HERE = Path(__file__).parent

T = TypeVar("T")


def write(
    job: Job,
    handler: str,
    write_model: Callable[[Path], None],
    load: Callable[[Path], T],
) -> T:
    """Put <model>.mar into the job's directory; returns what ``load`` makes of the unpacked archive.

    ``handler`` is the module here whose ``handle`` answers requests; ``write_model`` writes the
    model's files into a folder. Raises GroundcrewError in model-archiver's words.
    """
    with tempfile.TemporaryDirectory() as scratch:
        content, unpacked = Path(scratch, "content"), Path(scratch, "unpacked")
        content.mkdir()
        write_model(content)
        for module in ("mms_request", handler):
            shutil.copy(HERE / f"{module}.py", content)
        done = subprocess.run(
            [
                Path(sys.executable).with_name("model-archiver"),
                *("--model-name", job.settings.model),
                *("--model-path", content),
                *("--handler", f"{handler}:handle"),
                *("--export-path", job.directory),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        path = job.directory / f"{job.settings.model}.mar"
        if done.returncode != 0 or not path.is_file():
            raise GroundcrewError(f"model-archiver makes no {path.name}: {done.stderr.strip()}")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(unpacked)
        return load(unpacked)
