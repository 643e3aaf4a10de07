#!/usr/bin/python
"""Start a job of this host, and follow what it says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_job
short_description: Run a job by groundcrew-job and follow its log
description:
  - Without O(follow) it starts the job as a unit of the host's own, so that it goes on whatever becomes of the controller. A job that runs
    already is not started again, but followed; it fails if that run is not the one that O(arguments) ask for.
  - With O(follow) it waits for new lines of the log and returns them. Call it again with what it returned as RV(follow), until RV(running)
    is false.
options:
  id: {description: "Id of the job, such as training-digits.", type: str, required: true}
  arguments: {description: "Further arguments of C(groundcrew-job run).", type: list, elements: str, default: []}
  follow: {description: What the call before returned as RV(follow)., type: dict}
attributes:
  check_mode: {support: none}
  diff_mode: {support: none}
author: The Groundcrew contributors
"""

RETURN = r"""
follow: {description: For the next call., type: dict, returned: always}
running: {description: Whether the job runs still., type: bool, returned: always}
lines: {description: What the job said since the call before., type: list, elements: str, returned: always}
tail: {description: The last lines of its output., type: list, elements: str, returned: when it has ended}
exit_status: {description: How it ended., type: int, returned: when it has ended}
said: {description: How it ended, in words., type: str, returned: when it has ended}
"""

import fcntl
import json
import os
import time

from ansible.module_utils.basic import AnsibleModule

LOGS, LOCKS = "/var/log/groundcrew/jobs", "/run/groundcrew-jobs"
TAIL = 15


def running(job, unit_active):
    """Whether a process holds the job's lock, or is about to."""
    try:
        with open(f"{LOCKS}/{job}.lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        return True
    return unit_active()


def size_of(path):
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def read_entries(path, offset):
    """Whole lines of the log from offset on, and where the next begins."""
    entries = []
    if not os.path.exists(path):
        return entries, offset
    with open(path, "rb") as file:
        # A log that was rotated meanwhile begins anew.
        offset = offset if offset <= size_of(path) else 0
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
    return entries, offset


def call_seconds(age, silent):
    """How long a call collects lines of a job that is followed for so many seconds; silent: there were none yet.

    Each call is a task that includes the next one, and Ansible bears some 300 of them: the older, the rarer. A week is 230 calls.
    """
    return max(30.0 if silent else 1.0, 0.05 * age)


def is_that_run(module, unit, job, arguments):
    """Whether the unit that runs was started with these arguments."""
    status, shown, _error = module.run_command(
        ["systemctl", "show", "--property=ExecStart", "--value", unit]
    )
    return status == 0 and f" {' '.join(['run', job, *arguments])} ;" in shown


def main():
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "follow": {"type": "dict"},
        },
    )
    job, given = module.params["id"], module.params["follow"]
    log, unit = f"{LOGS}/{job}.log", f"groundcrew-run-{job}"

    def unit_active():
        status, _output, _error = module.run_command(["systemctl", "is-active", "--quiet", unit])
        return status == 0

    if given is None:
        begin, arguments = size_of(log), module.params["arguments"]
        first = {"offset": begin, "tail": [], "began": time.time()}
        if running(job, unit_active):
            if arguments and not is_that_run(module, unit, job, arguments):
                module.fail_json(
                    msg=f"{job} runs already, and not as asked ({' '.join(arguments)}), so nothing was started. "
                    "Say the command again when it has ended: groundcrew-job list on the host shows it."
                )
            module.exit_json(
                changed=False,
                running=True,
                follow=first,
                lines=[f"{job} runs already: it is followed"],
            )
        command = [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={unit}",
            "--property=KillMode=mixed",
        ]
        module.run_command([*command, "groundcrew-job", "run", job, *arguments], check_rc=True)
        module.exit_json(changed=True, running=True, follow=first, lines=[])

    offset, tail = int(given["offset"]), list(given["tail"])
    entries = []
    called = time.monotonic()
    age = max(0.0, time.time() - float(given["began"]))
    while True:
        # Asked before the log is read: what an ended job said is there by then.
        active = running(job, unit_active)
        more, offset = read_entries(log, offset)
        entries += more
        waited = time.monotonic() - called
        if not active or waited >= call_seconds(age, silent=not entries):
            break
        time.sleep(0.3)
    lines = [str(entry.get("message", "")) for entry in entries]
    output = [str(entry["message"]) for entry in entries if entry.get("event") == "output"]
    tail = [*tail, *output][-TAIL:]
    ended = given.get("ended")
    for entry in entries:
        if "duration_seconds" in entry:
            ended = {"exit_status": int(entry["exit_status"]), "said": str(entry["message"])}
    follow = {"offset": offset, "tail": tail, "ended": ended, "began": given["began"]}
    result = {"running": active, "lines": lines, "follow": follow}
    if not active:
        result.update({**ended, "tail": tail} if ended else silent_end(module, unit))
    module.exit_json(changed=False, **result)


def silent_end(module, unit):
    """It never came as far as its log: what it said is in the journal."""
    _status, journal, _error = module.run_command(
        ["journalctl", "--quiet", "--no-pager", "-o", "cat", "-n", "5", "-u", unit]
    )
    return {"exit_status": 1, "said": "it was killed, or never began", "tail": journal.splitlines()}


if __name__ == "__main__":
    main()
