"""Start the service: check what can be checked once, then hand the process to Granian."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from groundcrew import model_store
from groundcrew.errors import GroundcrewError

from .settings import Settings


def main() -> int:
    """Exit status 2 and one line on standard error when the service cannot start."""
    try:
        settings = Settings.from_environment(os.environ)
        # Workers check again; this check is one readable line instead of one traceback a worker.
        model_store.verify_directory(settings.directory)
    except GroundcrewError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if settings.workers > 1:
        metrics = Path(tempfile.gettempdir()) / "groundcrew-prediction-metrics"
        shutil.rmtree(metrics, ignore_errors=True)
        metrics.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    command = [
        "granian",
        "--interface=rsgi",
        "--no-ws",
        "--host=0.0.0.0",
        f"--port={settings.port}",
        f"--workers={settings.workers}",
        "--workers-kill-timeout=30",
        "--no-access-log",
        "--factory",
        "groundcrew_prediction.app:application",
    ]
    if settings.workers > 1:
        # A lone worker that dies ends the container; the engine's restart policy starts it again.
        command.insert(1, "--respawn-failed-workers")
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
