"""``python -m groundcrew_batch run``: one run of a batch job, described by the environment.

Progress goes to standard output; its last line is a JSON object with run, rows, predicted,
rejected, seconds, manifest_sha256 and latest. Exit status 2 and one line on standard error when
the run failed; 4 when it is complete but held back (the object then has held_back, the reason).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from types import FrameType

import pyarrow as pa
from groundcrew import objects
from groundcrew.errors import GroundcrewError

from .job import run
from .settings import Settings

HELD_BACK = 4


def main(arguments: list[str]) -> int:
    """Exit status of the program."""
    signal.signal(signal.SIGTERM, _stop)
    if arguments != ["run"]:
        print("usage: python -m groundcrew_batch run", file=sys.stderr)
        return 2
    # Arrow's own pool keeps what each thread has freed: a fifth more memory, and no faster.
    pa.set_memory_pool(pa.system_memory_pool())
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)

    try:
        settings = Settings.from_environment(os.environ)
        with objects.readable_errors(settings.bucket):
            result = run(settings, objects.open_client(), say)
    except GroundcrewError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    held_back = result.get("held_back")
    if held_back:
        print(
            f"error: run {settings.run_id} of {settings.job} is held back: {held_back}. LATEST still "
            f"names the run before; this one is whole, at predictions/{settings.job}/"
            f"{settings.run_id}/. When it is right, run the job again with RUN_ID={settings.run_id} "
            "and ACCEPT=true",
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps(result), flush=True)
    return HELD_BACK if held_back else 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # An exception, so that threads end in order; nothing has to be tidied up.
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
