"""Starts jobs and kills them, for test_kills.py: one process for each line of standard input.

Processes are forked, with everything imported before: what is killed is the job, not the start of
Python. Lines are "<model version> <seconds until it is killed, or never>"; the answer is the status
that it ended with.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from groundcrew import objects, training_job
from groundcrew.training_job import Job


def build(job: Job) -> dict[str, Any]:
    job.gate({"accuracy": 0.9})
    for number in range(3):
        # Of this job alone, so that files of two would be noticed.
        (job.directory / f"part-{number}").write_text(f"{os.getpid()} {number}\n" * 50)
    job.write_golden([{"request": {"instances": []}, "response": {}}], 0.0)
    return {"framework": "custom", "signature": {}, "process": os.getpid()}


def main() -> None:
    bucket = sys.argv[1]
    client = objects.open_client()
    for line in sys.stdin:
        version, until = line.split()
        process = os.fork()
        if process == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = 1
            try:
                gate = training_job.Gate(minimum=0.5)
                settings = training_job.Settings(
                    "digits", version, bucket, gate, owner="training-1"
                )
                training_job.run(settings, client, build)
                status = 0
            finally:
                os._exit(status)
        if until != "never":
            time.sleep(float(until))
            # Until it is waited for, its id is nobody else's.
            os.kill(process, signal.SIGKILL)
        print(os.waitpid(process, 0)[1], flush=True)


if __name__ == "__main__":
    main()
