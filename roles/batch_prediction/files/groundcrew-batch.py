#!/usr/bin/python3
"""Runs the batch jobs of this host, each in its container.

    groundcrew-batch <job>          run it now, with its output on this terminal
    groundcrew-batch --cron <job>   as /etc/cron.d does: start a little later, be quiet
    groundcrew-batch --deploy       pull the images of all jobs; with --run-now also run every job
                                    that has not succeeded yet as it is declared now; with --check
                                    only tell

A job is /etc/groundcrew/batch/<job>.json. One run at a time; a run that fails is repeated, and all
of it ends after the job's timeout. What happened is in three places:
/var/log/groundcrew/batch/<job>.log (JSON lines), /var/lib/groundcrew/batch/<job>.json (the last run
and the last success), and the textfile of the node exporter.

Exit status: 0 success; 75 the job is running already; 124 the timeout passed; 128 + n stopped by
signal n; 125 Docker could not run the container; 64 wrong use; 78 the job cannot be run as it is
declared; else the container's own.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
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
from pathlib import Path
from types import FrameType
from typing import Any

SPECS = Path("/etc/groundcrew/batch")
STATES = Path("/var/lib/groundcrew/batch")
LOGS = Path("/var/log/groundcrew/batch")
LOCKS = Path("/run/groundcrew-batch")
USER = 10001

OVERLAP, TIMEOUT, USAGE, CONFIGURATION = 75, 124, 64, 78
# What the container gets between SIGTERM and SIGKILL.
STOP_SECONDS = 10

# Metric name after groundcrew_batch_, what it says, and where it is in the state.
METRICS = (
    ("last_start_timestamp_seconds", "When the last run started.", ("started",)),
    ("last_exit_status", "Exit status of the last run; 0 is success.", ("exit_status",)),
    ("last_duration_seconds", "How long the last run took.", ("duration_seconds",)),
    ("last_success_timestamp_seconds", "When a run last succeeded.", ("success", "finished")),
    ("last_rows", "Rows of the input of the last success.", ("success", "rows")),
    ("last_rejected_rows", "Rows that the last success could not score.", ("success", "rejected")),
)
# A success with other values than the job has now is no success of this job.
IDENTITY = ("image", "model", "version", "manifest_sha256", "bucket", "input", "include_instances")


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


def metrics_text(job: str, state: dict[str, Any]) -> str:
    """The textfile of a job, in Prometheus' text format; what is not known is left out."""
    lines = []
    for name, help_text, keys in METRICS:
        value: Any = state
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            full = f"groundcrew_batch_{name}"
            lines += [
                f"# HELP {full} {help_text}",
                f"# TYPE {full} gauge",
                f'{full}{{job="{job}"}} {value}',
            ]
    return "\n".join(lines) + "\n"


def load_spec(job: str) -> dict[str, Any]:
    """The declaration of a job. Raises Refused when there is none, or it cannot be read."""
    path = SPECS / f"{job}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(all_jobs()) or "none"
        raise Refused(f"this host has no batch job '{job}'. Jobs here: {known}.") from None
    except (OSError, ValueError) as error:
        raise Refused(
            f"{path} cannot be read ({error}). Run playbooks/deploy_batch.yml again."
        ) from error


def all_jobs() -> list[str]:
    """Names of the jobs that are declared on this host."""
    return sorted(path.stem for path in SPECS.glob("*.json"))


def load_state(job: str) -> dict[str, Any]:
    """What is known of earlier runs; nothing when the file is missing or broken."""
    try:
        return dict(json.loads((STATES / f"{job}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def due(spec: dict[str, Any], state: dict[str, Any]) -> str:
    """Why a deployment has to run this job, "" when it has not."""
    success = state.get("success")
    if not success:
        return "it has not succeeded on this host yet"
    changed = [key for key in IDENTITY if success.get(key) != spec[key]]
    return f"since its last success other: {', '.join(changed)}" if changed else ""


def container_arguments(spec: dict[str, Any], run: str, work: Path) -> list[str]:
    """`docker run …` for one attempt.

    The host's network, because an instance profile answers at the first hop only.
    """
    model = f"/models/{spec['model']}/{spec['version']}"
    environment = {
        "JOB": spec["job"],
        "MODEL_NAME": spec["model"],
        "MODEL_VERSION": spec["version"],
        "MODEL_DIRECTORY": model,
        "STORE_BUCKET": spec["bucket"],
        "INPUT": spec["input"],
        "OUTPUT": f"predictions/{spec['job']}/",
        "INCLUDE_INSTANCES": str(spec["include_instances"]).lower(),
        "RUN_ID": run,
        # On disk: /tmp is memory, and the copy of the input counts against the job's limit there.
        "WORK_DIRECTORY": "/work",
    }
    if spec.get("chunk_rows"):
        environment["CHUNK_ROWS"] = str(spec["chunk_rows"])
    arguments = ["docker", "run", "--rm", "--init", "--name", container_name(spec["job"])]
    arguments += [
        "--label",
        f"groundcrew.batch={spec['job']}",
        "--network",
        "host",
        "--user",
        f"{USER}:{USER}",
    ]
    arguments += [
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--tmpfs",
        "/tmp",
    ]
    arguments += [
        "--memory",
        spec["memory"],
        "--memory-swap",
        spec["memory"],
        "--pids-limit",
        "1024",
    ]
    if spec.get("env_file"):
        arguments += ["--env-file", spec["env_file"]]
    arguments += [f"--env={name}={value}" for name, value in environment.items()]
    arguments += [
        "--mount",
        f"type=bind,source={spec['model_directory']},target={model},readonly",
        "--mount",
        f"type=bind,source={work},target=/work",
    ]
    return [*arguments, spec["image"]]


def container_name(job: str) -> str:
    return f"batch-{job}"


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
        self._echo(f"groundcrew-batch: {self.job}: {message}")

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
            # A full disk is no reason to stop predicting; the journal has what cron's command says.
            print(
                f"groundcrew-batch: {self.job}: cannot write the log: {error}: {line}",
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


class Run:
    """One run of a job, its attempts included. The caller holds the lock."""

    def __init__(self, spec: dict[str, Any], log: Log) -> None:
        self.spec, self.log, self.job = spec, log, str(spec["job"])
        self.result: dict[str, Any] = {}

    def __call__(self) -> int:
        started, clock = int(time.time()), time.monotonic()
        before = load_state(self.job)
        # One id for all attempts: one that got as far as the manifest is completed, not repeated.
        self.log.run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(started))
        if before.get("started") and before.get("exit_status") is None:
            self.log.event(
                "interrupted",
                f"run {before.get('run')} was killed before it could tell how it ended",
            )
        state = {
            **{key: before[key] for key in ("success",) if before.get(key)},
            "run": self.log.run,
            "started": started,
            "exit_status": None,
        }
        # Until this run has ended, the metrics tell how the one before ended.
        self._keep(
            state,
            {**state, **{key: before.get(key) for key in ("exit_status", "duration_seconds")}},
        )
        self.log.event(
            "started",
            f"run {self.log.run} of model {self.spec['model']} version {self.spec['version']}",
            image=self.spec["image"],
            owner=self.spec["owner"],
        )
        status = 1
        try:
            status = self._attempts(clock + self.spec["timeout_seconds"])
        except Refused as error:
            status = CONFIGURATION
            self.log.event("refused", str(error))
        except Stopped as stopped:
            status = 128 + stopped.number
            self._remove_container()
            self.log.event("stopped", f"stopped by {signal.Signals(stopped.number).name}")
        finally:
            finished = int(time.time())
            state.update(
                exit_status=status,
                finished=finished,
                duration_seconds=round(time.monotonic() - clock, 3),
            )
            if status == 0:
                state["success"] = {
                    **{key: self.spec[key] for key in IDENTITY},
                    **{
                        key: value
                        for key, value in self.result.items()
                        if key in ("rows", "rejected")
                    },
                    "run": self.log.run,
                    "finished": finished,
                }
            self._keep(state, state)
            self.log.event(
                "finished" if status == 0 else "failed",
                "succeeded" if status == 0 else f"failed with exit status {status}",
                exit_status=status,
                duration_seconds=state["duration_seconds"],
                result=self.result,
            )
        return status

    def _keep(self, state: dict[str, Any], shown: dict[str, Any]) -> None:
        # The job was taken out of the inventory while it ran: nobody would remove these files.
        if not (SPECS / f"{self.job}.json").exists():
            return
        try:
            STATES.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(STATES / f"{self.job}.json", json.dumps(state, indent=2) + "\n", 0o600)
            textfile = Path(self.spec["textfile"])
            textfile.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(textfile, metrics_text(self.job, shown), 0o644)
        except OSError as error:
            self.log.event("unrecorded", f"cannot record the state or the metrics: {error}")

    def _attempts(self, deadline: float) -> int:
        for source, mend in (
            (
                self.spec["model_directory"],
                "run playbooks/deploy_batch.yml, which fetches the model",
            ),
            (self.spec.get("env_file"), "run playbooks/configure.yml, which writes it"),
        ):
            if source and not Path(source).exists():
                raise Refused(f"{source} does not exist; {mend}")
        attempts = 1 + int(self.spec["retries"])
        status = 0
        for attempt in range(1, attempts + 1):
            status = self._attempt(deadline)
            if status == 0:
                return 0
            if status == TIMEOUT:
                self.log.event(
                    "timeout", f"not done after {self.spec['timeout_seconds']} s (timeout_minutes)"
                )
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

    def _attempt(self, deadline: float) -> int:
        self.result, self.log.tail = {}, []
        self._remove_container()
        STATES.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = STATES / f"{self.job}.work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        os.chown(work, USER, USER)
        try:
            # A session of its own: Ctrl-C reaches this process, which then stops the container.
            process = subprocess.Popen(
                container_arguments(self.spec, self.log.run, work),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            reader = threading.Thread(target=self._read, args=(process,), daemon=True)
            reader.start()
            try:
                status = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._remove_container()
                status = TIMEOUT
            finally:
                # After a signal the caller removes the container; its words are worth a moment.
                reader.join(2)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return status

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            self.log.output(line)
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict):
                    self.result = parsed

    def _remove_container(self) -> None:
        """Also what a run that was killed has left: only the lock's holder gets here."""
        name = container_name(self.job)
        found = subprocess.run(
            ["docker", "ps", "--all", "--quiet", "--filter", f"name=^/{name}$"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode or not found.stdout.strip():
            return
        for command in (
            ["docker", "stop", "--time", str(STOP_SECONDS), name],
            ["docker", "rm", "--force", name],
        ):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def run_job(job: str, cron: bool) -> int:
    """Run a job once, by hand or by cron; its exit status."""
    log = Log(job, quiet=cron)
    spec = load_spec(job)
    if cron:
        # Jobs of one minute, here and on other hosts, need not start in one second.
        time.sleep(random.uniform(0, float(spec["jitter_seconds"])))
    with locked(job) as mine:
        if not mine:
            log.event("overlap", "it is running already; this run is left out", exit_status=OVERLAP)
            return OVERLAP
        return Run(load_spec(job), log)()


def deploy(run_now: bool, check: bool) -> int:
    """Bring the images and, with run_now, a first success of every job. Prints one JSON object."""
    report: dict[str, Any] = {"changed": False, "failed": [], "actions": []}
    for job in all_jobs():
        spec = load_spec(job)
        if not has_image(spec["image"]):
            if not check and (fault := pull(spec["image"])):
                report["failed"].append(f"{job}: cannot pull {spec['image']}: {fault}")
                continue
            report["changed"] = True
            report["actions"].append(
                f"{job}: {'would pull' if check else 'pulled'} {spec['image']}"
            )
        if not run_now or not due(spec, load_state(job)):
            continue
        if check:
            report["changed"] = True
            report["actions"].append(f"{job}: would run, {due(spec, load_state(job))}")
            continue
        # An interrupted deployment, or cron, may be at it: its outcome counts.
        with locked(job, wait_seconds=float(spec["timeout_seconds"])) as mine:
            reason = due(spec, load_state(job))
            if not mine:
                report["failed"].append(
                    f"{job}: another run of it has not ended for {spec['timeout_seconds']} s"
                )
            elif reason:
                log = Log(job, quiet=True)
                status = Run(spec, log)()
                report["changed"] = True
                report["actions"].append(f"{job}: ran, {reason}; exit status {status}")
                if status:
                    report["failed"].append(
                        f"{job}: exit status {status}; its log is {LOGS}/{job}.log and ends with:\n"
                        + "\n".join(log.tail or ["nothing"])
                    )
    print(json.dumps(report))
    return 1 if report["failed"] else 0


def has_image(image: str) -> bool:
    return not subprocess.run(
        ["docker", "image", "inspect", image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    ).returncode


def pull(image: str) -> str:
    """What went wrong, "" when nothing did."""
    done = subprocess.run(
        ["docker", "pull", "--quiet", image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


def main(arguments: list[str]) -> int:
    """Exit status of the program."""
    parser = argparse.ArgumentParser(
        prog="groundcrew-batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", nargs="?", help="name of the job")
    parser.add_argument(
        "--cron", action="store_true", help="wait a random moment first, say nothing"
    )
    parser.add_argument("--deploy", action="store_true", help="pull the images of all jobs")
    parser.add_argument(
        "--run-now", action="store_true", help="with --deploy: run what has not succeeded yet"
    )
    parser.add_argument("--check", action="store_true", help="with --deploy: only tell")
    given = parser.parse_args(arguments)
    if bool(given.job) == given.deploy:
        parser.print_usage(sys.stderr)
        return USAGE
    if os.geteuid() != 0:
        print(
            "groundcrew-batch: it needs root, as the container engine does: use sudo.",
            file=sys.stderr,
        )
        return USAGE
    # Not `docker` of anybody's PATH: cron's is short, and sudo's may be longer.
    os.environ["PATH"] = os.environ.get("GROUNDCREW_BATCH_PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        return (
            deploy(given.run_now, given.check) if given.deploy else run_job(given.job, given.cron)
        )
    except Refused as error:
        print(f"groundcrew-batch: {error}", file=sys.stderr)
        return CONFIGURATION
    except Stopped as stopped:
        return 128 + stopped.number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
