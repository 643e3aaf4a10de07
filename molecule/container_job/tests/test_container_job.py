"""The cron entry, the runner, and what is left of runs that fail, hang, overlap or are killed."""

from __future__ import annotations

import json
import re
import time

import pytest

SPECS = "/etc/groundcrew/jobs"
STATES = "/var/lib/groundcrew/jobs"
WORK = "/var/lib/groundcrew/work"
LOGS = "/var/log/groundcrew/jobs"
TEXTFILES = "/var/lib/prometheus/node-exporter"
METRIC = re.compile(r'(groundcrew_job_[a-z_]+)\{family="batch",job="([a-z0-9_-]+)"\} ([0-9.]+)')
DRILL = "batch-drill"


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


def said(host, job):
    return [entry["message"] for entry in log(host, job)]


def state(host, job):
    return json.loads(host.check_output("cat %s", f"{STATES}/{job}.json"))


def metrics(host, job):
    """The job's metrics by name, and that each line of the file is a comment or one of them."""
    values = {}
    text = host.check_output("cat %s", f"{TEXTFILES}/groundcrew_job_{job}.prom")
    assert text
    for line in text.splitlines():
        if not re.match(r"# (HELP|TYPE) groundcrew_job_", line):
            name, of, value = METRIC.fullmatch(line).groups()
            assert f"batch-{of}" == job
            values[name.removeprefix("groundcrew_job_")] = float(value)
    return values


def container_is_up(host):
    names = host.check_output("docker ps --format '{{.Names}} {{.State}}'").splitlines()
    return f"{DRILL} running" in names


def clean(host):
    host.run("systemctl stop drill-run; systemctl reset-failed drill-run")
    host.run("docker rm --force %s", DRILL)
    for path in (
        f"{SPECS}/{DRILL}.json",
        f"{STATES}/{DRILL}.json",
        f"{LOGS}/{DRILL}.log",
        f"{WORK}/{DRILL}",
        f"{WORK}/{DRILL}.made-by",
        f"{TEXTFILES}/groundcrew_job_{DRILL}.prom",
    ):
        host.check_output("rm -rf %s", path)


@pytest.fixture
def drill(host):
    """Declares a job of its own as the scenario's, changed; removes all of it afterwards."""

    def declare(mode, like="batch-nightly", **changes):
        spec = json.loads(host.check_output("cat %s", f"{SPECS}/{like}.json"))
        spec.update(
            id=DRILL,
            name="drill",
            work=f"{WORK}/{DRILL}",
            textfile=f"{TEXTFILES}/groundcrew_job_{DRILL}.prom",
            **changes,
        )
        spec["env"]["INPUT"] = f"s3://scenario/{mode}"
        host.check_output("printf %s %s > %s", "%s", json.dumps(spec), f"{SPECS}/{DRILL}.json")

    clean(host)
    yield declare
    clean(host)


def start(host):
    """The drill's run in the background, once its container is up.

    KillMode: as under cron, nobody cleans up after a runner that was killed.
    """
    host.check_output(
        "systemd-run --quiet --collect --unit=drill-run --property=KillMode=process "
        "groundcrew-job run %s",
        DRILL,
    )
    wait_until(lambda: container_is_up(host), "the container of the drill")


# -- what the role leaves ------------------------------------------------------------------------


def cron_line(host, job):
    lines = host.file(f"/etc/cron.d/groundcrew-{job}").content_string.splitlines()
    (command,) = [
        line for line in lines if line and line[0] != "#" and not re.match(r"[A-Z]+=", line)
    ]
    return command


def test_cron_entry(host):
    entry = host.file("/etc/cron.d/groundcrew-batch-nightly")
    assert (entry.user, entry.group, entry.mode) == ("root", "root", 0o644)
    fields = cron_line(host, "batch-nightly").split()
    assert fields[:6] == ["30", "2", "*", "*", "mon-fri", "root"]
    assert fields[-3:] == ["/usr/local/bin/groundcrew-job", "cron", "batch-nightly"]
    # cron reads only names of these characters.
    assert re.fullmatch(r"[A-Za-z0-9_-]+", "groundcrew-batch-nightly")
    assert host.service("cron").is_running
    assert host.service("cron").is_enabled


def test_a_time_zone_is_looked_at_every_hour(host):
    assert cron_line(host, "batch-zoned").split()[:5] == ["15", "*", "*", "*", "*"]
    listed = host.check_output("groundcrew-job list").splitlines()
    (line,) = [line for line in listed if "zoned" in line]
    # 04:15 in Berlin.
    assert re.search(r" 0[23]:15 ", line)


def test_what_cron_runs_works_in_its_environment_and_only_when_a_time_has_come(host, drill):
    drill("good")
    command = cron_line(host, "batch-nightly").split(" root ", 1)[1].replace("batch-nightly", DRILL)
    bare = "env -i HOME=/root PATH=/usr/bin:/bin /bin/sh -c %s"
    # Declared a year ago, and never run since.
    old = json.dumps({"declared": int(time.time()) - 365 * 86400})
    host.check_output("printf %s %s > %s", "%s", old, f"{STATES}/{DRILL}.json")
    result = host.run(bare, command)
    assert result.rc == 0, result.stderr
    assert events(host, DRILL).count("finished") == 1
    # The run is called after the time at which it was due.
    assert state(host, DRILL)["run"] == state(host, DRILL)["due"]
    assert state(host, DRILL)["run"].endswith("T023000Z")
    assert host.run(bare, command).rc == 0
    assert events(host, DRILL).count("finished") == 1


def test_files_and_their_rights(host):
    for path, mode in (
        (f"{SPECS}/batch-nightly.json", 0o600),
        (f"{STATES}/batch-nightly.json", 0o600),
        (f"{LOGS}/batch-nightly.log", 0o640),
        (f"{TEXTFILES}/groundcrew_job_batch-nightly.prom", 0o644),
        ("/usr/local/bin/groundcrew-job", 0o755),
    ):
        file = host.file(path)
        assert (file.user, file.mode) == ("root", mode), path
    assert host.run("logrotate --debug /etc/logrotate.d/groundcrew-jobs").rc == 0
    assert host.service("groundcrew-jobs").is_enabled


def test_the_job_ran_at_the_deployment_and_says_what_came_of_it(host):
    values = metrics(host, "batch-nightly")
    assert values["last_exit_status"] == 0
    assert values["last_success_timestamp_seconds"] >= values["last_start_timestamp_seconds"]
    assert (values["last_rows"], values["last_rejected_rows"]) == (7, 2)
    # Three days without a run, and the hour that a run may take.
    assert values["late_after_seconds"] == 3 * 86400 + 3600
    assert values["running"] == 0
    entries = log(host, "batch-nightly")
    assert {entry["job"] for entry in entries} == {"batch-nightly"}
    assert [entry["event"] for entry in entries[:2]] == ["started", "output"]
    assert "stub starts, good uid 10001 attempt 1" in said(host, "batch-nightly")


def test_the_day_stands_in_the_input(host):
    day = r"stub starts, 20[0-9]{2}-[0-9]{2}-[0-9]{2} uid 10001"
    assert any(re.match(day, line) for line in said(host, "batch-zoned"))


def test_a_job_that_left_the_inventory_is_gone_and_neighbours_stay(host):
    for path in (
        "/etc/cron.d/groundcrew-batch-old",
        f"{SPECS}/batch-old.json",
        f"{STATES}/batch-old.json",
        f"{TEXTFILES}/groundcrew_job_batch-old.prom",
    ):
        assert not host.file(path).exists, path
    assert host.file("/etc/cron.d/groundcrew-neighbour").exists
    assert host.file("/etc/cron.d/groundcrew-training-neighbour").exists
    assert host.file(f"{LOGS}/batch-old.log").exists


# -- drills --------------------------------------------------------------------------------------


def test_a_run_is_confined(host, drill):
    drill("hangs")
    start(host)
    details = json.loads(host.check_output("docker inspect %s", DRILL))[0]
    limits = details["HostConfig"]
    assert details["Config"]["User"] == "10001:10001"
    assert limits["ReadonlyRootfs"] and limits["CapDrop"] == ["ALL"] and not limits["Privileged"]
    assert "no-new-privileges" in limits["SecurityOpt"]
    assert limits["Memory"] == limits["MemorySwap"] == 128 * 1024 * 1024
    assert {mount["Destination"]: mount["RW"] for mount in details["Mounts"]} == {
        "/models/digits/1": False,
        "/work": True,
    }
    assert metrics(host, DRILL)["running"] == 1


def test_a_run_in_a_conda_environment_is_confined_too(host, drill):
    drill("hangs", like="batch-envy")
    host.check_output("systemd-run --quiet --collect --unit=drill-run groundcrew-job run %s", DRILL)
    show = "systemctl show -P %s %s.service"
    wait_until(
        lambda: (
            "stub starts, hangs uid 10001 attempt 1" in host.run(f"cat {LOGS}/{DRILL}.log").stdout
        ),
        "the job to say its first word",
    )
    assert host.check_output(show, "MemoryMax", DRILL) == str(128 * 1024 * 1024)
    assert host.check_output(show, "NoNewPrivileges", DRILL) == "yes"
    assert host.check_output(show, "CapabilityBoundingSet", DRILL) == ""
    host.check_output("systemctl stop drill-run")
    assert host.run("systemctl is-active %s.service", DRILL).stdout.strip() == "inactive"
    assert metrics(host, "batch-envy")["last_exit_status"] == 0


def test_an_overlapping_run_is_refused_and_harms_nothing(host, drill):
    drill("hangs")
    start(host)
    result = host.run("groundcrew-job run %s", DRILL)
    assert result.rc == 75
    assert "it is running already" in result.stderr
    assert events(host, DRILL).count("overlap") == 1
    assert events(host, DRILL).count("started") == 1
    assert container_is_up(host)


def test_a_failing_job_is_repeated_and_leaves_its_status(host, drill):
    drill("fails", retries=2)
    result = host.run("groundcrew-job run %s", DRILL)
    assert result.rc == 3
    assert "error: the input is broken" in result.stderr
    assert events(host, DRILL).count("attempt_failed") == 3
    assert log(host, DRILL)[-1]["event"] == "failed"
    values = metrics(host, DRILL)
    assert values["last_exit_status"] == 3
    assert "last_success_timestamp_seconds" not in values


def test_an_ending_that_would_come_again_is_not_repeated(host, drill):
    drill("held", retries=2)
    result = host.run("groundcrew-job run %s", DRILL)
    assert result.rc == 4
    assert (
        "held back: LATEST stays where it was; playbooks/batch.yml -e accept=yes moves it"
        in result.stderr
    )
    assert events(host, DRILL).count("attempt_failed") == 0


def test_what_an_attempt_left_is_there_for_the_next_where_the_job_wants_it(host, drill):
    drill("resumes", keep_work=True)
    assert host.run("groundcrew-job run %s", DRILL).rc == 0
    assert [line for line in said(host, DRILL) if line.startswith("found")] == [
        "found []",
        "found ['scratch']",
    ]
    assert not host.file(f"{WORK}/{DRILL}").exists


def test_a_failure_keeps_the_time_of_the_last_success(host, drill):
    drill("good")
    assert host.run("groundcrew-job run %s", DRILL).rc == 0
    success = metrics(host, DRILL)["last_success_timestamp_seconds"]
    drill("fails", retries=0)
    assert host.run("groundcrew-job run %s", DRILL).rc == 3
    values = metrics(host, DRILL)
    assert (values["last_exit_status"], values["last_success_timestamp_seconds"]) == (3, success)


def test_a_job_that_hangs_is_ended_by_its_timeout(host, drill):
    drill("hangs", timeout_seconds=3)
    assert host.run("groundcrew-job run %s", DRILL).rc == 124
    assert metrics(host, DRILL)["last_exit_status"] == 124
    assert "timeout" in events(host, DRILL)
    assert host.check_output("docker ps --all --quiet --filter name=batch-drill") == ""
    assert not host.file(f"{WORK}/{DRILL}").exists


def test_a_stopped_run_takes_its_container_along(host, drill):
    drill("hangs")
    start(host)
    # Only the runner, not the whole unit: it has to stop the container itself.
    host.check_output("kill -TERM $(systemctl show -P MainPID drill-run)")
    wait_until(lambda: "failed" in events(host, DRILL), "the run to end")
    assert metrics(host, DRILL)["last_exit_status"] == 143
    assert host.check_output("docker ps --all --quiet --filter name=batch-drill") == ""


def test_checkpoints_outlive_a_stop_and_the_machine(host, drill):
    drill("hangs", keep_work=True)
    start(host)
    host.check_output("touch %s", f"{WORK}/{DRILL}/checkpoint")
    host.check_output("kill -TERM $(systemctl show -P MainPID drill-run)")
    wait_until(lambda: "failed" in events(host, DRILL), "the run to end")
    # A new machine has the volume with the work, and no state of the job.
    host.run("systemctl stop drill-run")
    host.check_output("rm %s", f"{STATES}/{DRILL}.json")
    start(host)
    assert host.file(f"{WORK}/{DRILL}/checkpoint").exists


def killed(host):
    host.check_output("kill -KILL $(systemctl show -P MainPID drill-run)")
    stale = host.check_output("docker ps --all --quiet --no-trunc --filter name=batch-drill")
    assert stale
    return stale


def test_after_kill_9_the_next_run_removes_what_is_left_and_succeeds(host, drill):
    drill("hangs")
    start(host)
    stale, run = killed(host), state(host, DRILL)["run"]
    drill("good")
    result = host.run("groundcrew-job run %s", DRILL)
    assert result.rc == 0, result.stderr
    # What that run has done already is not done again: it goes on under its name.
    assert state(host, DRILL)["run"] == run
    assert "interrupted" in events(host, DRILL)
    assert metrics(host, DRILL)["last_exit_status"] == 0
    assert host.run("docker inspect %s", stale).rc != 0


def test_a_boot_takes_up_what_was_cut_off_under_its_name_and_not_for_ever(host, drill):
    drill("hangs", schedule="")
    start(host)
    run = state(host, DRILL)["run"]
    killed(host)
    drill("good", schedule="")
    assert host.run("groundcrew-job catch-up").rc == 0
    assert (state(host, DRILL)["run"], state(host, DRILL)["exit_status"]) == (run, 0)
    dying = {**state(host, DRILL), "exit_status": None, "resumes": 3}
    host.check_output("printf %s %s > %s", "%s", json.dumps(dying), f"{STATES}/{DRILL}.json")
    host.run("groundcrew-job catch-up")
    assert events(host, DRILL)[-1] == "given_up"
    assert state(host, DRILL)["exit_status"] == 1


def test_a_backfill_runs_every_day_once_and_can_be_told_to_run_again(host, drill):
    drill("days/{date}", schedule="0 3 * * *")
    several = "groundcrew-job run %s --from 2026-03-28 --to 2026-03-30"
    assert host.run(several, DRILL).rc == 0
    days = [line.split()[2] for line in said(host, DRILL) if line.startswith("stub starts")]
    assert days == ["2026-03-28", "2026-03-29", "2026-03-30"]
    assert state(host, DRILL)["run"] == "20260330T030000Z"
    again = host.run("groundcrew-job run %s --date 2026-03-28 --again", DRILL)
    assert again.rc == 0
    assert re.fullmatch(r"20260328T030000Z-r[0-9]{14}", state(host, DRILL)["run"])
    # What was done last of the present stays the last success.
    assert state(host, DRILL)["success"]["run"] == "20260330T030000Z"
    refused = host.run("groundcrew-job run %s --date 2099-01-01", DRILL)
    assert refused.rc == 78 and "was not due from 2099-01-01" in refused.stderr


def test_a_job_is_followed_from_another_terminal(host, drill):
    drill("good")
    assert host.run("groundcrew-job run %s", DRILL).rc == 0
    output = host.check_output("groundcrew-job follow %s", DRILL)
    assert "stub starts, good uid 10001 attempt 1" in output.splitlines()


def test_a_busy_host_and_one_with_a_login_stay_on(host, drill):
    drill("good")
    # The test itself is logged in; nothing may switch the host off under it.
    assert host.check_output("groundcrew-job stop-when-idle --minutes 60") == ""
    assert host.file("/run/groundcrew-jobs/somebody-was-logged-in").exists


def test_an_unknown_job_is_refused_by_name(host):
    result = host.run("groundcrew-job run nightlyy")
    assert result.rc == 78
    assert "'nightlyy'" in result.stderr and "batch-nightly" in result.stderr.split("Jobs here:")[1]


def test_a_missing_model_is_said_and_measured(host, drill):
    drill("good", needs=[{"path": "/srv/models/digits/99", "mend": "run deploy_batch.yml"}])
    result = host.run("groundcrew-job run %s", DRILL)
    assert result.rc == 78
    assert "/srv/models/digits/99 does not exist; run deploy_batch.yml" in result.stderr
    assert metrics(host, DRILL)["last_exit_status"] == 78
