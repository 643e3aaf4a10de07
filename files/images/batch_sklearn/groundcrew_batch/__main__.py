"""``python -m groundcrew_batch run``: one run of a batch job, described by the environment.

Progress goes to standard output; its last line is a JSON object with run, rows, predicted,
rejected, seconds, manifest_sha256 and latest. Exit status 2 and one line on standard error when
the run failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from types import FrameType

from groundcrew import objects
from groundcrew.errors import GroundcrewError

from .job import run
from .settings import Settings


def main(arguments: list[str]) -> int:
    """Exit status of the program."""
    signal.signal(signal.SIGTERM, _stop)
    if arguments != ["run"]:
        print("usage: python -m groundcrew_batch run", file=sys.stderr)
        return 2
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
    print(json.dumps(result), flush=True)
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # An exception, so that the copy of the input is removed on the way out.
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
