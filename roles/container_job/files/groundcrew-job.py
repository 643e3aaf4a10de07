#!/usr/bin/python3
"""Runs the jobs of this host, each in its container or its Conda environment.

    groundcrew-job list                    the jobs, when they run next, how they ran last
    groundcrew-job run JOB                 run it now, with its output on this terminal
        --date DAY                         as on that day; --from DAY --to DAY for each time in a range
        --again                            even where such a run is complete already
        --accept                           although it is held back
    groundcrew-job follow JOB              the log of the present or the last run, as it grows
    groundcrew-job cron JOB                what /etc/cron.d says: run it if a time has come, be quiet
    groundcrew-job catch-up                at boot: what was cut off, and what was due meanwhile
    groundcrew-job stop-when-idle --minutes N   switch the host off when nobody needs it
    groundcrew-job deploy                  pull the images of scheduled jobs; --run-now also runs every job
                                           that has not succeeded as it is declared now; --check only tells

A job is /etc/groundcrew/jobs/<job>.json. One run at a time; a run that fails is repeated, and all of
it ends after the job's timeout. What happened is in three places: /var/log/groundcrew/jobs/<job>.log
(JSON lines), /var/lib/groundcrew/jobs/<job>.json (the last run and the last success), and the textfile
of the node exporter.

Exit status: 0 success; 75 the job is running already; 124 the timeout passed; 128 + n stopped by
signal n; 125 Docker could not run the container; 64 wrong use; 78 the job cannot be run as it is
declared; else the job's own.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

# What the role puts there; in the repository the package is where Ansible has it.
sys.path.append("/usr/local/lib/groundcrew")

from groundcrew import schedule
from groundcrew.schedule import filled, moment_of, run_id

SPECS = Path("/etc/groundcrew/jobs")
STATES = Path("/var/lib/groundcrew/jobs")
LOGS = Path("/var/log/groundcrew/jobs")
LOCKS = Path("/run/groundcrew-jobs")
SEEN = LOCKS / "somebody-was-logged-in"
# The user of our images; where jobs run in Conda environments, the host has it too.
USER, USER_NAME = 10001, "groundcrew-jobs"

OVERLAP, TIMEOUT, USAGE, CONFIGURATION = 75, 124, 64, 78
# What the job gets between SIGTERM and SIGKILL.
STOP_SECONDS = 10
HEARTBEAT_SECONDS = 30
# What a job only notes: a commit, or another version that serves, makes no checkpoint worthless.
NOTES = ("CODE_REVISION", "LIVE_VERSION")
# Others hold a job's lock for a moment, to see whether it runs.
PROBE_SECONDS = 1
# How often a run that the host cut off is taken up again.
RESUMES = 3

# Metric name after groundcrew_job_, what it says, and where it is in the state.
METRICS = (
    ("declared_timestamp_seconds", "Since when this host has the job.", ("declared",)),
    ("late_after_seconds", "How old a last success may be.", ("late_after_seconds",)),
    ("last_start_timestamp_seconds", "When the last run started.", ("started",)),
    ("running", "1 while a run lasts.", ("running",)),
    ("heartbeat_timestamp_seconds", "When the last run was last seen alive.", ("heartbeat",)),
    ("last_exit_status", "Exit status of the last run; 0 is success.", ("exit_status",)),
    ("last_duration_seconds", "How long the last run took.", ("duration_seconds",)),
    ("last_success_timestamp_seconds", "When a run last succeeded.", ("success", "finished")),
    ("last_rows", "Rows of the input of the last success.", ("success", "rows")),
    ("last_rejected_rows", "Rows that the last success could not score.", ("success", "rejected")),
)


class Refused(Exception):
    """The job cannot be run as it is declared; the message says what to do."""


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> None:
    # Once: a second signal must not interrupt the cleaning up.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    raise Stopped(number)


# -- what is kept --------------------------------------------------------------------------------


def write_atomically(path: Path, text: str, mode: int) -> None:
    """Readers see the old file or the new one; the exporter does not read the temporary name."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.rename(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def metrics_text(spec: dict[str, Any], state: dict[str, Any]) -> str:
    """The textfile of a job, in Prometheus' text format; what is not known is left out."""
    lines = []
    for name, help_text, keys in METRICS:
        value: Any = state
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            full = f"groundcrew_job_{name}"
            lines += [
                f"# HELP {full} {help_text}",
                f"# TYPE {full} gauge",
                f'{full}{{family="{spec["family"]}",job="{spec["name"]}"}} {value}',
            ]
    return "\n".join(lines) + "\n"


def load_spec(job: str) -> dict[str, Any]:
    """The declaration of a job. Raises Refused when there is none, or it cannot be read."""
    path = SPECS / f"{job}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(all_jobs()) or "none"
        raise Refused(f"this host has no job '{job}'. Jobs here: {known}.") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read ({error}). Deploy the jobs again.") from error


def all_jobs() -> list[str]:
    """Names of the jobs that are declared on this host."""
    return sorted(path.stem for path in SPECS.glob("*.json"))


def load_state(job: str) -> dict[str, Any]:
    """What is known of earlier runs; nothing when the file is missing or broken."""
    try:
        return dict(json.loads((STATES / f"{job}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def keep(spec: dict[str, Any], state: dict[str, Any], shown: dict[str, Any] | None = None) -> None:
    """Write the state and the metrics (of ``shown``). Raises OSError."""
    STATES.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(STATES / f"{spec['id']}.json", json.dumps(state, indent=2) + "\n", 0o600)
    textfile = Path(spec["textfile"])
    textfile.parent.mkdir(parents=True, exist_ok=True)
    more = {
        "late_after_seconds": spec.get("late_after_seconds"),
        "running": int(bool(state.get("started")) and state.get("exit_status") is None),
    }
    write_atomically(textfile, metrics_text(spec, {**(shown or state), **more}), 0o644)


def timestamp() -> str:
    """Now, as RFC 3339 in UTC with milliseconds."""
    now = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}Z"


class Log:
    """The job's log: one JSON object a line. Echoed to standard error unless quiet."""

    def __init__(self, job: str, quiet: bool) -> None:
        self.job, self.run, self._quiet = job, "", quiet
        self.tail: list[str] = []

    def event(self, name: str, message: str, **details: Any) -> None:
        self._write({"event": name, "message": message, **details})
        self._echo(f"groundcrew-job: {self.job}: {message}")

    def output(self, line: str) -> None:
        self.tail = [*self.tail[-14:], line]
        self._write({"event": "output", "message": line})
        self._echo(line)

    def _write(self, entry: dict[str, Any]) -> None:
        run = {"run": self.run} if self.run else {}
        line = json.dumps({"time": timestamp(), "job": self.job, **run, **entry}) + "\n"
        try:
            handle = os.open(
                LOGS / f"{self.job}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640
            )
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as error:
            # A full disk is no reason to stop; the journal has what cron's command says.
            print(
                f"groundcrew-job: {self.job}: cannot write the log: {error}: {line}",
                end="",
                file=sys.stderr,
            )

    def _echo(self, text: str) -> None:
        if not self._quiet:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(job: str, wait_seconds: float = 0) -> Iterator[bool]:
    """Whether this process alone runs the job. The lock ends with the process, however it ends."""
    LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with open(LOCKS / f"{job}.lock", "w", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.5)
            else:
                yield True
                return


# -- when a job has to run -----------------------------------------------------------------------


def overdue(spec: dict[str, Any], state: dict[str, Any], now: datetime) -> datetime | None:
    """The last time at which the job was due, when it has not been started for it; else None.

    Compared for equality, not order: a clock that was years ahead for a moment must not keep
    every later run from starting.
    """
    if not spec.get("schedule"):
        return None
    due = schedule.previous(spec["schedule"], spec["timezone"], now)
    if due is None or state.get("due") == run_id(due) or due.timestamp() < state.get("declared", 0):
        return None
    # A run by hand, after the time, was that run.
    last = moment_of((state.get("success") or {}).get("run"))
    return None if last is not None and due <= last <= now else due


def reason(spec: dict[str, Any], state: dict[str, Any]) -> str:
    """Why a deployment has to run this job, "" when it has not."""
    success = state.get("success")
    identity = spec["identity"]
    if not success:
        return "it has not succeeded on this host yet"
    changed = [key for key in identity if success.get(key) != identity[key]]
    return f"since its last success other: {', '.join(changed)}" if changed else ""


# -- engines -------------------------------------------------------------------------------------


def container_command(spec: dict[str, Any], environment: dict[str, str], work: Path) -> list[str]:
    """`docker run …` for one attempt.

    The host's network, because an instance profile answers at the first hop only.
    """
    arguments = ["docker", "run", "--rm", "--init", "--name", spec["id"]]
    arguments += ["--label", f"groundcrew.job={spec['id']}", "--network", "host"]
    arguments += ["--user", f"{USER}:{USER}", "--read-only", "--tmpfs", "/tmp"]
    arguments += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    arguments += [
        "--memory",
        spec["memory"],
        "--memory-swap",
        spec["memory"],
        "--pids-limit",
        "1024",
    ]
    if spec.get("cpus"):
        arguments += ["--cpus", str(spec["cpus"])]
    if spec.get("gpus"):
        arguments += ["--gpus", str(spec["gpus"])]
    if spec.get("env_file"):
        arguments += ["--env-file", spec["env_file"]]
    arguments += [f"--env={name}={value}" for name, value in environment.items()]
    for mount in spec["mounts"]:
        arguments += [
            "--mount",
            f"type=bind,source={mount['source']},target={mount['target']},readonly",
        ]
    arguments += ["--mount", f"type=bind,source={work},target=/work"]
    return [*arguments, spec["image"], *spec["command"]]


def conda_command(spec: dict[str, Any], environment: dict[str, str], work: Path) -> list[str]:
    """`systemd-run …` for one attempt: what a container would confine, the service manager does."""
    settings = {
        "User": USER_NAME,
        "Group": USER_NAME,
        "MemoryMax": spec["memory"].upper(),
        "MemorySwapMax": "0",
        "TasksMax": "1024",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "ReadWritePaths": str(work),
        "WorkingDirectory": spec.get("directory") or str(work),
        "TimeoutStopSec": str(STOP_SECONDS),
        **({"EnvironmentFile": spec["env_file"]} if spec.get("env_file") else {}),
        **({"CPUQuota": f"{round(spec['cpus'] * 100)}%"} if spec.get("cpus") else {}),
    }
    arguments = ["systemd-run", "--unit", spec["id"], "--quiet", "--collect", "--wait", "--pipe"]
    arguments += [f"--property={name}={value}" for name, value in settings.items()]
    arguments += [f"--setenv={name}={value}" for name, value in environment.items()]
    return [
        *arguments,
        f"{spec['conda_environment']}/bin/{spec['command'][0]}",
        *spec["command"][1:],
    ]


def _quiet(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def remove_left(spec: dict[str, Any]) -> None:
    """End what an attempt left running, also of a run that was killed: only the lock's holder
    gets here."""
    name = spec["id"]
    if spec.get("conda_environment"):
        _quiet("systemctl", "stop", f"{name}.service")
        return
    found = _quiet("docker", "ps", "--all", "--quiet", "--filter", f"name=^/{name}$")
    if found.returncode == 0 and found.stdout.strip():
        _quiet("docker", "stop", "--time", str(STOP_SECONDS), name)
        _quiet("docker", "rm", "--force", name)


def host_goes_down() -> bool:
    """Whether the host is being switched off. In the last moments there is no manager left to ask."""
    said = _quiet("systemctl", "is-system-running").stdout.strip()
    return said not in ("initializing", "starting", "running", "degraded", "maintenance")


# -- one run -------------------------------------------------------------------------------------


def made_by_file(work: Path) -> Path:
    """Says whose a job's directory is; beside it, for both may be on a volume that outlives the machine."""
    return work.with_name(f"{work.name}.made-by")


class Run:
    """One run of a job, its attempts included. The caller holds the lock."""

    def __init__(
        self,
        spec: dict[str, Any],
        log: Log,
        due: datetime | None = None,
        run: str = "",
        extra: dict[str, str] | None = None,
    ) -> None:
        self.spec, self.log, self.job = spec, log, str(spec["id"])
        self.due = due
        # One id for all attempts: what they have done already is not done again.
        self.run = run or run_id(due or datetime.now(timezone.utc))
        self.extra = extra or {}
        self.result: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self.follows = 0

    def __call__(self) -> int:
        started, clock = int(time.time()), time.monotonic()
        before = load_state(self.job)
        self.log.run = self.run
        cut_off = bool(before.get("started")) and before.get("exit_status") is None
        if cut_off:
            self.log.event(
                "interrupted",
                f"run {before.get('run')} was killed before it could tell how it ended",
            )
        self.state = {
            **{key: before[key] for key in ("success", "declared", "due") if before.get(key)},
            **({"due": run_id(self.due)} if self.due else {}),
            "run": self.run,
            "started": started,
            "heartbeat": started,
            "exit_status": None,
            "resumes": before.get("resumes", 0) + 1 if cut_off and before["run"] == self.run else 0,
            # Whoever takes up what was cut off has to be told as much.
            "extra": self.extra,
        }
        # Until this run has ended, the metrics tell how the one before ended.
        self.before = {key: before.get(key) for key in ("exit_status", "duration_seconds")}
        self._keep()
        self.log.event(
            "started", f"run {self.run} of {self.spec['what']}", owner=self.spec["owner"]
        )
        status = 1
        try:
            status = self._attempts(clock + self.spec["timeout_seconds"])
        except Refused as error:
            status = CONFIGURATION
            self.log.event("refused", str(error))
        except Stopped as stopped:
            status = 128 + stopped.number
            remove_left(self.spec)
            self.log.event("stopped", f"stopped by {signal.Signals(stopped.number).name}")
        finally:
            finished = int(time.time())
            duration = round(time.monotonic() - clock, 3)
            ended = status == 0 or str(status) in self.spec["statuses"]
            if not ended and host_goes_down():
                # As if it had been killed: the next boot takes it up where it was.
                self.log.event("interrupted", "the host goes down; taken up when it is back")
            else:
                self.before = {}
                self.state.update(exit_status=status, finished=finished, duration_seconds=duration)
            if status == 0 and not self._of_the_past(before.get("success")):
                told = ("rows", "rejected", "version")
                self.state["success"] = {
                    **{key: value for key, value in self.result.items() if key in told},
                    **self.spec["identity"],
                    "run": self.run,
                    "finished": finished,
                }
            self._keep()
            self.log.event(
                "finished" if status == 0 else "failed",
                "succeeded" if status == 0 else self._failure(status),
                exit_status=status,
                duration_seconds=duration,
                result=self.result,
            )
        return status

    def _of_the_past(self, success: dict[str, Any] | None) -> bool:
        """Whether a later run has succeeded before this one: a backfill does not make a job that is
        late look well."""
        mine, last = moment_of(self.run), moment_of((success or {}).get("run"))
        return bool(mine and last and mine < last <= datetime.now(timezone.utc))

    def _failure(self, status: int) -> str:
        meaning = self.spec["statuses"].get(str(status))
        return (
            f"{meaning} (exit status {status})" if meaning else f"failed with exit status {status}"
        )

    def _keep(self) -> None:
        # The job was taken out of the inventory while it ran: nobody would remove these files.
        if not (SPECS / f"{self.job}.json").exists():
            return
        try:
            keep(self.spec, self.state, {**self.state, **self.before})
        except OSError as error:
            self.log.event("unrecorded", f"cannot record the state or the metrics: {error}")

    def _attempts(self, deadline: float) -> int:
        for needed in self.spec["needs"]:
            if not Path(needed["path"]).exists():
                raise Refused(f"{needed['path']} does not exist; {needed['mend']}")
        attempts = 1 + int(self.spec["retries"])
        # Until an attempt has ended: somebody who stops it takes nothing from the one after.
        status = 1
        work = self._work()
        try:
            for attempt in range(1, attempts + 1):
                status = self._attempt(deadline, work, attempt)
                if status == TIMEOUT:
                    self.log.event(
                        "timeout",
                        f"not done after {self.spec['timeout_seconds']} s (timeout_minutes)",
                    )
                # Some endings would come again, such as a model that the gate refused.
                if status in (0, TIMEOUT) or str(status) in self.spec["statuses"]:
                    return status
                self.log.event(
                    "attempt_failed",
                    f"attempt {attempt} of {attempts} ended with exit status {status}",
                    attempt=attempt,
                    exit_status=status,
                )
                delay = float(self.spec["retry_delay_seconds"])
                if attempt == attempts or time.monotonic() + delay >= deadline:
                    return status
                time.sleep(delay)
            return status
        finally:
            # What a later run takes up, such as checkpoints, stays until one has come to its end.
            if not self.spec["keep_work"] or status == 0 or str(status) in self.spec["statuses"]:
                shutil.rmtree(work, ignore_errors=True)
                made_by_file(work).unlink(missing_ok=True)

    def _work(self) -> Path:
        """The job's own directory, on disk: /tmp is memory, and counts against the job's limit.

        What an earlier run left, such as checkpoints, is for the same job alone: with another image,
        command or environment it would be taken up by something that it does not belong to.
        """
        work = Path(self.spec["work"])
        parts = {key: self.spec.get(key) for key in ("image", "conda_environment", "command")}
        parts["env"] = {key: text for key, text in self.spec["env"].items() if key not in NOTES}
        maker = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        made_by = made_by_file(work)
        known = made_by.read_text() if made_by.exists() else ""
        if not self.spec["keep_work"] or known != maker:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.spec["keep_work"] and known != maker:
            write_atomically(made_by, maker, 0o600)
        os.chown(work, USER, USER)
        # A run that finds something is no first attempt.
        self.follows = int(any(work.iterdir()))
        return work

    def _attempt(self, deadline: float, work: Path, attempt: int) -> int:
        self.result, self.log.tail = {}, []
        remove_left(self.spec)
        inside = str(work) if self.spec.get("conda_environment") else "/work"
        due = self.due or moment_of(self.run) or datetime.now(timezone.utc)
        environment = {
            **{
                name: filled(text, due, self.spec["timezone"])
                for name, text in self.spec["env"].items()
            },
            "RUN_ID": self.run,
            "ATTEMPT": str(attempt + self.follows),
            "WORK_DIRECTORY": inside,
            **({"CHECKPOINT_DIRECTORY": inside} if self.spec["keep_work"] else {}),
            **self.extra,
        }
        command = conda_command if self.spec.get("conda_environment") else container_command
        # A session of its own: Ctrl-C reaches this process, which then stops the job.
        process = subprocess.Popen(
            command(self.spec, environment, work),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        try:
            while True:
                left = deadline - time.monotonic()
                try:
                    return process.wait(max(0.0, min(left, HEARTBEAT_SECONDS)))
                except subprocess.TimeoutExpired:
                    if left <= HEARTBEAT_SECONDS:
                        remove_left(self.spec)
                        return TIMEOUT
                self.state["heartbeat"] = int(time.time())
                self._keep()
        finally:
            # After a signal the caller ends the job; its words are worth a moment.
            reader.join(2)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            self.log.output(line)
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict):
                    self.result = parsed


# -- commands ------------------------------------------------------------------------------------


def run_now(job: str, arguments: argparse.Namespace) -> int:
    """Run a job by hand: now, for a day, or for every time it was due in a range."""
    spec = load_spec(job)
    log = Log(job, quiet=False)
    extra = {"ACCEPT": "true"} if arguments.accept else {}
    first, last = arguments.date or arguments.first, arguments.date or arguments.last
    with locked(job, PROBE_SECONDS) as mine:
        if not mine:
            log.event("overlap", "it is running already; this run is left out", exit_status=OVERLAP)
            return OVERLAP
        if first is None:
            state = load_state(job)
            if not was_cut_off(state):
                return Run(spec, log, extra=extra)()
            log.event("resumed", f"run {state['run']} was cut off: it is taken up")
            return Run(spec, log, run=state["run"], extra={**(state.get("extra") or {}), **extra})()
        now = datetime.now(timezone.utc)
        for due in times_of(spec, first, last or first, now):
            run = run_id(due)
            if arguments.again:
                run += f"-r{now:%Y%m%d%H%M%S}"
            # Of another day: that it ran says nothing of the time that was due last.
            if status := Run(spec, log, None, run, extra)():
                return status
    return 0


def times_of(spec: dict[str, Any], first: date, last: date, now: datetime) -> list[datetime]:
    """Every time a job was due from day to day, in its zone. Raises Refused."""
    if not spec.get("schedule"):
        raise Refused(f"{spec['id']} has no schedule, so no run of it belongs to a day.")
    times = [
        moment
        for moment in schedule.due_times(spec["schedule"], spec["timezone"], first, last)
        if moment <= now
    ]
    if not times:
        raise Refused(
            f"{spec['id']} was not due from {first} to {last}: its schedule is "
            f"'{spec['schedule']}' ({spec['timezone']})."
        )
    if len(times) > 1 and not any("{date}" in text for text in spec["env"].values()):
        raise Refused(
            f"{spec['id']} would read the same input for each of {len(times)} runs; write {{date}} "
            "into its input, such as data/digits/{date}.csv, and deploy the jobs."
        )
    return times


def run_by_cron(job: str) -> int:
    """Run a job if a time has come for which it was not started yet."""
    spec = load_spec(job)
    now = datetime.now(timezone.utc)
    if overdue(spec, load_state(job), now) is None:
        return 0
    # Jobs of one minute, here and on other hosts, need not start in one second.
    time.sleep(random.uniform(0, float(spec["jitter_seconds"])))
    log = Log(job, quiet=True)
    with locked(job, PROBE_SECONDS) as mine:
        if not mine:
            log.event("overlap", "it is running already; this run is left out", exit_status=OVERLAP)
            return OVERLAP
        # Another process may have been faster.
        due = overdue(spec, load_state(job), now)
        return Run(load_spec(job), log, due)() if due else 0


def catch_up() -> int:
    """Take up what was cut off, a bounded number of times, and start what was due meanwhile."""
    worst = 0
    for job in all_jobs():
        spec, log = load_spec(job), Log(job, quiet=False)
        with locked(job) as mine:
            state = load_state(job)
            if not mine or not state:
                continue
            due = overdue(spec, state, datetime.now(timezone.utc))
            if due:
                worst = max(worst, Run(spec, log, due)())
            elif was_cut_off(state):
                worst = max(worst, Run(spec, log, **again(state))())
            elif state.get("started") and state.get("exit_status") is None:
                log.event("given_up", f"run {state['run']} was cut off {RESUMES + 1} times")
                keep(spec, {**state, "exit_status": 1, "finished": int(time.time())})
    return worst


def deploy(start: bool, check: bool, family: str, known: dict[str, Any]) -> int:
    """Bring images and, with start, a first success of every job. Prints one JSON object.

    known: job to what the store says of its last success, for a host that has forgotten.
    """
    report: dict[str, Any] = {"changed": False, "failed": [], "actions": []}
    for job in all_jobs():
        spec = load_spec(job)
        if family and spec["family"] != family:
            continue
        state = load_state(job)
        if not check and (not state.get("declared") or not Path(spec["textfile"]).exists()):
            # A job that is declared now is not late for the times before.
            state = {**state, "declared": state.get("declared") or int(time.time())}
            success = known.get(job)
            if success and not state.get("success"):
                state["success"] = success
                if due := moment_of(success["run"]):
                    state["declared"] = int(due.timestamp())
            keep(spec, state)
        why = ""
        if start:
            with locked(job) as free:
                pass
            told = state if not check else {"success": known.get(job), **state}
            why, _ = wanted(spec, told, free)
        image = spec.get("image")
        # Nobody watches a scheduled run. Who starts one by hand sees Docker pull the image, and a host
        # that comes back to jobs that are done needs to wait for no image.
        needed = why or spec.get("schedule")
        if image and needed and _quiet("docker", "image", "inspect", image).returncode:
            pulled = None if check else _quiet("docker", "pull", "--quiet", image)
            if pulled is not None and pulled.returncode:
                fault = pulled.stderr.strip() or f"exit status {pulled.returncode}"
                report["failed"].append(f"{job}: cannot pull {image}: {fault}")
                continue
            report["changed"] = True
            report["actions"].append(f"{job}: {'would pull' if check else 'pulled'} {image}")
        if not why:
            continue
        if check:
            report["changed"] = True
            report["actions"].append(f"{job}: would run, {why}")
            continue
        # An interrupted deployment, or cron, may be at it: its outcome counts.
        with locked(job, wait_seconds=float(spec["timeout_seconds"])) as mine:
            why, how = wanted(spec, load_state(job), mine)
            if not mine:
                report["failed"].append(
                    f"{job}: another run of it has not ended for {spec['timeout_seconds']} s"
                )
            elif why:
                log = Log(job, quiet=True)
                status = Run(spec, log, **how)()
                report["changed"] = True
                report["actions"].append(f"{job}: ran, {why}; exit status {status}")
                if status:
                    report["failed"].append(
                        f"{job}: exit status {status}; its log is {LOGS}/{job}.log and ends with:\n"
                        + "\n".join(log.tail or ["nothing"])
                    )
    print(json.dumps(report))
    return 1 if report["failed"] else 0


def wanted(spec: dict[str, Any], state: dict[str, Any], free: bool) -> tuple[str, dict[str, Any]]:
    """Why a deployment has to run a job, "" when it has not, and what Run is to be told.

    free: nobody runs it at this moment.
    """
    if free and was_cut_off(state):
        return f"its run {state['run']} was cut off", again(state)
    if why := reason(spec, state):
        return why, {}
    due = overdue(spec, state, datetime.now(timezone.utc))
    return (f"it was due at {run_id(due)} and did not run", {"due": due}) if due else ("", {})


def was_cut_off(state: dict[str, Any]) -> bool:
    """Whether a run that nobody holds the lock of any more has never ended, and may be taken up."""
    begun = state.get("started") and state.get("exit_status") is None
    return bool(begun) and state.get("resumes", 0) < RESUMES


def again(state: dict[str, Any]) -> dict[str, Any]:
    """What Run is to be told to go on with the run of this state."""
    return {"run": state["run"], "extra": state.get("extra")}


def list_jobs() -> int:
    """A table for people."""
    now = datetime.now(timezone.utc)
    rows = [("JOB", "NEXT (UTC)", "LAST RUN", "STATUS", "OWNER")]
    for job in all_jobs():
        spec, state = load_spec(job), load_state(job)
        upcoming = (
            schedule.following(spec["schedule"], spec["timezone"], now)
            if spec.get("schedule")
            else None
        )
        status = state.get("exit_status", "-")
        with locked(job) as mine:
            told = "running" if not mine else "cut off" if status is None else str(status)
        rows.append(
            (
                job,
                f"{upcoming:%Y-%m-%d %H:%M}" if upcoming else "by hand",
                str(state.get("run", "-")),
                told,
                spec["owner"] or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    return 0


def stop_when_idle(minutes: int) -> int:
    """Switch the host off when no job has run and nobody was logged in for so long. On EC2 that
    stops the instance, which then costs its disks only."""
    now = time.time()
    last = now - time.monotonic()  # the boot
    for job in all_jobs():
        with locked(job) as free:
            if not free:
                return 0
        state = load_state(job)
        last = max(last, state.get("finished") or 0, state.get("declared") or 0)
    if logged_in():
        # Noted, so that the time counts from the end of the login.
        SEEN.touch()
    with contextlib.suppress(FileNotFoundError):
        last = max(last, SEEN.stat().st_mtime)
    if now - last >= minutes * 60:
        print(
            f"groundcrew-job: no job and no login for {minutes} minutes: switching off", flush=True
        )
        return _quiet("systemctl", "poweroff").returncode
    return 0


def logged_in() -> bool:
    """Whether somebody has a connection to port 22, as the kernel's tables of them say."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                _number, local, _remote, state = line.split()[:4]
                # 01 is ESTABLISHED (proc(5), include/net/tcp_states.h).
                if state == "01" and int(local.rsplit(":", 1)[1], 16) == 22:
                    return True
    return False


def follow(job: str) -> int:
    """Print the log of the present or the last run until it ends; its exit status."""
    load_spec(job)
    run = load_state(job).get("run")
    path = LOGS / f"{job}.log"
    if run is None or not path.exists():
        print(f"groundcrew-job: {job} has not run here yet", file=sys.stderr)
        return 0
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            line = file.readline()
            if not line:
                with locked(job) as ended:
                    if ended:
                        status = load_state(job).get("exit_status")
                        return 1 if status is None else int(status)
                time.sleep(0.5)
                continue
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("run") == run:
                    print(entry.get("message", ""), flush=True)


def main(arguments: list[str]) -> int:
    """Exit status of the program."""
    parser = argparse.ArgumentParser(
        prog="groundcrew-job",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the jobs of this host")
    commands.add_parser("catch-up", help="what was cut off or missed while the host was off")
    for name, text in (
        ("run", "run a job now"),
        ("cron", "run a job if a time has come"),
        ("follow", "the log of a run as it grows"),
    ):
        commands.add_parser(name, help=text).add_argument("job")
    by_hand = commands.choices["run"]
    for option, target in (("--date", "date"), ("--from", "first"), ("--to", "last")):
        by_hand.add_argument(option, dest=target, type=date.fromisoformat, metavar="YYYY-MM-DD")
    by_hand.add_argument("--again", action="store_true", help="also what is complete already")
    by_hand.add_argument("--accept", action="store_true", help="although it is held back")
    deploying = commands.add_parser(
        "deploy", help="pull what cron needs, run what has not succeeded"
    )
    deploying.add_argument("--family", default="", help="only jobs of this family")
    deploying.add_argument("--run-now", action="store_true")
    deploying.add_argument("--check", action="store_true")
    deploying.add_argument("--known", type=json.loads, default={}, help="last successes, as JSON")
    idle = commands.add_parser("stop-when-idle", help="switch the host off when nobody needs it")
    idle.add_argument("--minutes", type=int, required=True)
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print(
            "groundcrew-job: it needs root, as the container engine does: use sudo.",
            file=sys.stderr,
        )
        return USAGE
    # Not `docker` of anybody's PATH: cron's is short, and sudo's may be longer.
    os.environ["PATH"] = os.environ.get("GROUNDCREW_JOB_PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        if given.command == "list":
            return list_jobs()
        if given.command == "follow":
            return follow(given.job)
        if given.command == "stop-when-idle":
            return stop_when_idle(given.minutes)
        if given.command == "catch-up":
            return catch_up()
        if given.command == "deploy":
            return deploy(given.run_now, given.check, given.family, given.known)
        return run_by_cron(given.job) if given.command == "cron" else run_now(given.job, given)
    except Refused as error:
        print(f"groundcrew-job: {error}", file=sys.stderr)
        return CONFIGURATION
    except Stopped as stopped:
        return 128 + stopped.number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
