"""The cron entry, the wrapper, and what is left of runs that fail, hang, overlap or are killed."""

from __future__ import annotations

import json
import re
import time

import pytest

SPECS = "/etc/groundcrew/batch"
STATES = "/var/lib/groundcrew/batch"
LOGS = "/var/log/groundcrew/batch"
TEXTFILES = "/var/lib/prometheus/node-exporter"
METRIC = re.compile(r'(groundcrew_batch_[a-z_]+)\{job="([a-z0-9_-]+)"\} ([0-9.]+)')
DRILL = "drill"


def wait_until(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def log(host, job):
    """The entries of a job's log; json.loads fails when a line is none."""
    text = host.check_output("cat %s", f"{LOGS}/{job}.log")
    return [json.loads(line) for line in text.splitlines()]


def events(host, job):
    return [entry["event"] for entry in log(host, job)]


def metrics(host, job):
    """The job's metrics by name, and that each line of the file is a comment or one of them."""
    values = {}
    text = host.check_output("cat %s", f"{TEXTFILES}/groundcrew_batch_{job}.prom")
    assert text
    for line in text.splitlines():
        if not re.match(r"# (HELP|TYPE) groundcrew_batch_", line):
            name, of, value = METRIC.fullmatch(line).groups()
            assert of == job
            values[name.removeprefix("groundcrew_batch_")] = float(value)
    return values


def container_is_up(host):
    names = host.check_output("docker ps --format '{{.Names}} {{.State}}'").splitlines()
    return f"batch-{DRILL} running" in names


def clean(host):
    host.run("systemctl stop drill-run; systemctl reset-failed drill-run")
    host.run("docker rm --force %s", f"batch-{DRILL}")
    for path in (
        f"{SPECS}/{DRILL}.json",
        f"{STATES}/{DRILL}.json",
        f"{LOGS}/{DRILL}.log",
        f"{TEXTFILES}/groundcrew_batch_{DRILL}.prom",
    ):
        host.check_output("rm -f %s", path)


@pytest.fixture
def drill(host):
    """Declares a job of its own as the scenario's, changed; removes all of it afterwards."""

    def declare(mode, **changes):
        spec = json.loads(host.check_output("cat %s", f"{SPECS}/nightly.json"))
        spec.update(
            job=DRILL,
            input=f"s3://scenario/{mode}",
            textfile=f"{TEXTFILES}/groundcrew_batch_{DRILL}.prom",
            **changes,
        )
        host.check_output("printf %s %s > %s", "%s", json.dumps(spec), f"{SPECS}/{DRILL}.json")

    clean(host)
    yield declare
    clean(host)


def start(host):
    """The drill's run in the background, once its container is up.

    KillMode: as under cron, nobody cleans up after a wrapper that was killed.
    """
    host.check_output(
        "systemd-run --quiet --collect --unit=drill-run --property=KillMode=process "
        "groundcrew-batch %s",
        DRILL,
    )
    wait_until(lambda: container_is_up(host), "the container of the drill")


# -- what the role leaves ------------------------------------------------------------------------


def test_cron_entry(host):
    entry = host.file("/etc/cron.d/groundcrew-nightly")
    assert (entry.user, entry.group, entry.mode) == ("root", "root", 0o644)
    lines = [line for line in entry.content_string.splitlines() if line and line[0] != "#"]
    settings = [line for line in lines if re.match(r"[A-Z]+=", line)]
    (command,) = [line for line in lines if line not in settings]
    fields = command.split()
    assert fields[:6] == ["30", "2", "*", "*", "mon-fri", "root"]
    assert fields[-3:] == ["/usr/local/bin/groundcrew-batch", "--cron", "nightly"]
    # cron reads only names of these characters.
    assert re.fullmatch(r"[A-Za-z0-9_-]+", "groundcrew-nightly")
    assert host.service("cron").is_running
    assert host.service("cron").is_enabled


def test_what_cron_runs_works_in_its_environment(host):
    entry = host.file("/etc/cron.d/groundcrew-nightly").content_string.splitlines()
    command = entry[-1].split(" root ", 1)[1]
    before = events(host, "nightly").count("finished")
    result = host.run("env -i HOME=/root PATH=/usr/bin:/bin /bin/sh -c %s", command)
    assert result.rc == 0, result.stderr
    assert events(host, "nightly").count("finished") == before + 1


def test_files_and_their_rights(host):
    for path, mode in (
        (f"{SPECS}/nightly.json", 0o600),
        (f"{STATES}/nightly.json", 0o600),
        (f"{LOGS}/nightly.log", 0o640),
        (f"{TEXTFILES}/groundcrew_batch_nightly.prom", 0o644),
        ("/usr/local/bin/groundcrew-batch", 0o755),
    ):
        file = host.file(path)
        assert (file.user, file.mode) == ("root", mode), path
    assert host.run("logrotate --debug /etc/logrotate.d/groundcrew-batch").rc == 0


def test_the_job_ran_at_the_deployment_and_says_what_came_of_it(host):
    values = metrics(host, "nightly")
    assert values["last_exit_status"] == 0
    assert values["last_success_timestamp_seconds"] >= values["last_start_timestamp_seconds"]
    assert (values["last_rows"], values["last_rejected_rows"]) == (7, 2)
    entries = log(host, "nightly")
    assert {entry["job"] for entry in entries} == {"nightly"}
    assert [entry["event"] for entry in entries[:2]] == ["started", "output"]
    assert "stub starts, good" in [entry["message"] for entry in entries]


def test_a_job_of_another_host_is_not_here(host):
    assert not host.file("/etc/cron.d/groundcrew-elsewhere").exists
    assert not host.file(f"{SPECS}/elsewhere.json").exists


def test_a_job_that_left_the_inventory_is_gone_and_neighbours_stay(host):
    for path in (
        "/etc/cron.d/groundcrew-old",
        f"{SPECS}/old.json",
        f"{STATES}/old.json",
        f"{TEXTFILES}/groundcrew_batch_old.prom",
    ):
        assert not host.file(path).exists, path
    assert host.file("/etc/cron.d/groundcrew-neighbour").exists
    assert host.file(f"{LOGS}/old.log").exists


# -- drills --------------------------------------------------------------------------------------


def test_a_run_is_confined(host, drill):
    drill("hangs")
    start(host)
    details = json.loads(host.check_output("docker inspect %s", f"batch-{DRILL}"))[0]
    limits = details["HostConfig"]
    assert details["Config"]["User"] == "10001:10001"
    assert limits["ReadonlyRootfs"] and limits["CapDrop"] == ["ALL"] and not limits["Privileged"]
    assert "no-new-privileges" in limits["SecurityOpt"]
    assert limits["Memory"] == limits["MemorySwap"] == 128 * 1024 * 1024
    assert {mount["Destination"]: mount["RW"] for mount in details["Mounts"]} == {
        "/models/digits/1": False,
        "/work": True,
    }


def test_an_overlapping_run_is_refused_and_harms_nothing(host, drill):
    drill("hangs")
    start(host)
    result = host.run("groundcrew-batch %s", DRILL)
    assert result.rc == 75
    assert "it is running already" in result.stderr
    assert events(host, DRILL).count("overlap") == 1
    assert events(host, DRILL).count("started") == 1
    assert container_is_up(host)


def test_a_failing_job_is_repeated_and_leaves_its_status(host, drill):
    drill("fails", retries=2)
    result = host.run("groundcrew-batch %s", DRILL)
    assert result.rc == 3
    assert "error: the input is broken" in result.stderr
    assert events(host, DRILL).count("attempt_failed") == 3
    assert log(host, DRILL)[-1]["event"] == "failed"
    values = metrics(host, DRILL)
    assert values["last_exit_status"] == 3
    assert "last_success_timestamp_seconds" not in values


def test_a_failure_keeps_the_time_of_the_last_success(host, drill):
    drill("good")
    assert host.run("groundcrew-batch %s", DRILL).rc == 0
    success = metrics(host, DRILL)["last_success_timestamp_seconds"]
    drill("fails", retries=0)
    assert host.run("groundcrew-batch %s", DRILL).rc == 3
    values = metrics(host, DRILL)
    assert (values["last_exit_status"], values["last_success_timestamp_seconds"]) == (3, success)


def test_a_job_that_hangs_is_ended_by_its_timeout(host, drill):
    drill("hangs", timeout_seconds=3)
    assert host.run("groundcrew-batch %s", DRILL).rc == 124
    assert metrics(host, DRILL)["last_exit_status"] == 124
    assert "timeout" in events(host, DRILL)
    assert host.check_output("docker ps --all --quiet --filter name=batch-drill") == ""
    assert not host.file(f"{STATES}/{DRILL}.work").exists


def test_a_stopped_run_takes_its_container_along(host, drill):
    drill("hangs")
    start(host)
    # Only the wrapper, not the whole unit: it has to stop the container itself.
    host.check_output("kill -TERM $(systemctl show -P MainPID drill-run)")
    wait_until(lambda: "failed" in events(host, DRILL), "the run to end")
    assert metrics(host, DRILL)["last_exit_status"] == 143
    assert host.check_output("docker ps --all --quiet --filter name=batch-drill") == ""


def test_after_kill_9_the_next_run_removes_what_is_left_and_succeeds(host, drill):
    drill("hangs")
    start(host)
    host.check_output("kill -KILL $(systemctl show -P MainPID drill-run)")
    stale = host.check_output("docker ps --all --quiet --no-trunc --filter name=batch-drill")
    assert stale
    drill("good")
    result = host.run("groundcrew-batch %s", DRILL)
    assert result.rc == 0, result.stderr
    assert "interrupted" in events(host, DRILL)
    assert metrics(host, DRILL)["last_exit_status"] == 0
    assert host.run("docker inspect %s", stale).rc != 0


def test_an_unknown_job_is_refused_by_name(host):
    result = host.run("groundcrew-batch nightlyy")
    assert result.rc == 78
    assert "'nightlyy'" in result.stderr and "nightly" in result.stderr.split("Jobs here:")[1]


def test_a_missing_model_is_said_and_measured(host, drill):
    drill("good", model_directory="/srv/models/digits/99")
    result = host.run("groundcrew-batch %s", DRILL)
    assert result.rc == 78
    assert "/srv/models/digits/99 does not exist" in result.stderr
    assert metrics(host, DRILL)["last_exit_status"] == 78
