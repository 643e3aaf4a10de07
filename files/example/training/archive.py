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
from groundcrew.training_job import Job

HERE = Path(__file__).parent

T = TypeVar("T")


def write(job: Job, handler: str, write_model: Callable[[Path], None]) -> None:
    """Put <model>.mar into the job's directory.

    ``handler`` is the module here whose ``handle`` answers requests; ``write_model`` writes the
    model's files into a folder. Raises GroundcrewError in model-archiver's words.
    """
    with tempfile.TemporaryDirectory() as scratch:
        content = Path(scratch, "content")
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


def load(directory: Path, model: Callable[[Path], T]) -> T:
    """What ``model`` makes of the unpacked archive of a version. Raises GroundcrewError without one."""
    archives = list(directory.glob("*.mar"))
    if len(archives) != 1:
        raise GroundcrewError(f"{directory} has {len(archives)} archives (.mar), not one")
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(archives[0]) as archive:
            archive.extractall(unpacked)
        return model(Path(unpacked))
