"""What the runner on a host decides: when a job is due, what it is given, what is measured of it."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from unittest.mock import MagicMock

import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "ansible.cfg").is_file())


def load(path):
    specification = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


runner = load(ROOT / "roles/container_job/files/groundcrew-job.py")
NOW = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)
DUE = datetime(2026, 11, 27, 2, 30, tzinfo=UTC)
IMAGE = "registry:5000/batch@sha256:" + "0" * 64
SPEC = {
    "id": "batch-nightly",
    "family": "batch",
    "name": "nightly",
    "schedule": "30 2 * * *",
    "timezone": "UTC",
    "identity": {"model": "digits", "version": "1"},
    "env": {"INPUT": "s3://store/{date}.csv", "MODEL_DIRECTORY": "/models/digits/1"},
    "env_file": "",
    "mounts": [{"source": "/srv/models/digits/1", "target": "/models/digits/1"}],
    "memory": "1g",
    "cpus": 2,
    "gpus": 0,
    "image": IMAGE,
    "command": ["python", "-m", "x"],
    "textfile": "/metrics/x.prom",
    "jitter_seconds": 0,
}
OLD = int((NOW - timedelta(days=30)).timestamp())


def test_due_until_a_success_of_this_very_job():
    success = {"model": "digits", "version": "1"}
    assert runner.reason(SPEC, {})
    assert runner.reason(SPEC, {"success": success, "exit_status": 2}) == ""
    assert "version" in runner.reason(SPEC, {"success": {**success, "version": "2"}})


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"declared": OLD}, DUE),
        ({"declared": OLD, "due": "20261126T023000Z"}, DUE),
        # It was started for that time, however it ended.
        ({"declared": OLD, "due": "20261127T023000Z"}, None),
        # It was declared after the time.
        ({"declared": int(NOW.timestamp())}, None),
        # Somebody ran it by hand since.
        ({"declared": OLD, "success": {"run": "20261127T080000Z"}}, None),
        # A clock that was years ahead for a moment keeps nothing from running.
        ({"declared": OLD, "due": "20310101T023000Z"}, DUE),
        ({"declared": OLD, "success": {"run": "20310101T023000Z"}}, DUE),
    ],
)
def test_a_time_that_has_come(state, expected):
    assert runner.overdue(SPEC, state, NOW) == expected


def test_two_crons_at_once_or_a_clock_that_went_back_start_nothing_twice():
    state = {"declared": OLD}
    due = runner.overdue(SPEC, state, NOW)
    state["due"] = runner.run_id(due)
    assert runner.overdue(SPEC, state, NOW) is None
    assert runner.overdue(SPEC, state, DUE) is None


def test_a_job_without_a_schedule_is_never_due():
    assert runner.overdue({**SPEC, "schedule": ""}, {}, NOW) is None


def test_days_of_a_backfill():
    days = (date(2026, 11, 20), date(2026, 11, 22))
    times = runner.times_of(SPEC, *days, NOW)
    assert [runner.run_id(moment) for moment in times] == [
        "20261120T023000Z",
        "20261121T023000Z",
        "20261122T023000Z",
    ]
    with pytest.raises(runner.Refused, match="was not due from 2026-11-28"):
        runner.times_of(SPEC, date(2026, 11, 28), date(2026, 11, 30), NOW)
    with pytest.raises(runner.Refused, match=r"\{date\}"):
        runner.times_of({**SPEC, "env": {"INPUT": "s3://store/a.csv"}}, *days, NOW)
    with pytest.raises(runner.Refused, match="no schedule"):
        runner.times_of({**SPEC, "schedule": ""}, *days, NOW)


def test_metrics_leave_out_what_is_not_known():
    text = runner.metrics_text(SPEC, {"started": 5, "exit_status": None})
    assert 'groundcrew_job_last_start_timestamp_seconds{family="batch",job="nightly"} 5\n' in text
    assert "exit_status" not in text
    assert "success" not in text


def test_the_container_gets_the_job_and_no_rights():
    arguments = runner.container_command(SPEC, {"RUN_ID": "r"}, Path("/w"))
    assert arguments[-4:] == [IMAGE, "python", "-m", "x"]
    assert "--env=RUN_ID=r" in arguments
    assert "--read-only" in arguments
    assert arguments[arguments.index("--cap-drop") + 1] == "ALL"
    assert arguments[arguments.index("--cpus") + 1] == "2"
    assert "--env-file" not in arguments and "--gpus" not in arguments
    assert "--gpus" in runner.container_command({**SPEC, "gpus": 1}, {}, Path("/w"))


def test_a_job_in_a_conda_environment_is_confined_too():
    spec = {**SPEC, "conda_environment": "/conda/envs/digits", "env_file": "/etc/aws.env"}
    arguments = runner.conda_command(spec, {"RUN_ID": "r"}, Path("/w"))
    assert arguments[0] == "systemd-run"
    assert arguments[-3:] == ["/conda/envs/digits/bin/python", "-m", "x"]
    for wanted in (
        "User=groundcrew-jobs",
        "MemoryMax=1G",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
    ):
        assert f"--property={wanted}" in arguments
    assert "--property=EnvironmentFile=/etc/aws.env" in arguments


@pytest.mark.parametrize(
    ("schedule", "success", "pulled"),
    [
        ("30 2 * * *", {"model": "digits", "version": "1"}, [IMAGE]),
        # Done and by hand: whoever starts it again sees the pull.
        ("", {"model": "digits", "version": "1"}, []),
        ("", None, [IMAGE]),
    ],
)
def test_a_deployment_pulls_what_cron_or_it_itself_will_run(
    schedule, success, pulled, monkeypatch, tmp_path, capsys
):
    textfile = tmp_path / "x.prom"
    textfile.touch()
    spec = {**SPEC, "schedule": schedule, "textfile": str(textfile), "timeout_seconds": 9}
    state = {"declared": int(datetime.now(UTC).timestamp()), "success": success}
    asked = []

    def docker(*words):
        asked.append(words)
        return type("Answer", (), {"returncode": words[1] == "image", "stderr": ""})()

    monkeypatch.setattr(runner, "all_jobs", lambda: ["batch-nightly"])
    monkeypatch.setattr(runner, "load_spec", lambda job: spec)
    monkeypatch.setattr(runner, "load_state", lambda job: state)
    monkeypatch.setattr(runner, "_quiet", docker)
    monkeypatch.setattr(runner, "locked", lambda job, wait_seconds=0: nullcontext(True))
    monkeypatch.setattr(runner, "Log", lambda job, quiet: None)
    monkeypatch.setattr(runner, "Log", lambda job, quiet: None)
    monkeypatch.setattr(runner, "Run", lambda *arguments, **told: lambda: 0)
    assert runner.deploy(start=True, check=False, family="batch", known={}) == 0
    assert [words[-1] for words in asked if words[1] == "pull"] == pulled
    assert ("ran" in capsys.readouterr().out) == (success is None)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Makes a Run of SPEC on a host of its own; what an attempt does is given."""
    for name in ("SPECS", "STATES", "LOGS", "LOCKS"):
        monkeypatch.setattr(runner, name, tmp_path / name)
    (tmp_path / "SPECS").mkdir()
    (tmp_path / "SPECS/batch-nightly.json").touch()
    monkeypatch.setattr(runner.os, "chown", lambda *arguments: None)
    monkeypatch.setattr(runner, "remove_left", lambda spec: None)
    monkeypatch.setattr(runner, "Log", MagicMock())
    spec = {
        **SPEC,
        "textfile": str(tmp_path / "x.prom"),
        "work": str(tmp_path / "work/batch-nightly"),
        "timeout_seconds": 60,
        "retries": 0,
        "retry_delay_seconds": 0,
        "keep_work": True,
        "needs": [],
        "statuses": {},
        "what": "it",
        "owner": "me",
    }

    def begin(attempt, **told):
        begun = runner.Run(spec, runner.Log(), **told)
        monkeypatch.setattr(begun, "_attempt", lambda deadline, work, number: attempt(work))
        return begun

    return begin


def stopped(work):
    (work / "checkpoint").touch()
    raise runner.Stopped(15)


@pytest.mark.parametrize("down", [False, True])
def test_a_run_that_ends_with_its_host_is_taken_up_by_the_next_boot(run, monkeypatch, down):
    monkeypatch.setattr(runner, "host_goes_down", lambda: down)
    first = run(stopped, extra={"ACCEPT": "true"})
    assert first() == 143
    state = runner.load_state("batch-nightly")
    assert state["exit_status"] == (None if down else 143)
    assert runner.was_cut_off(state) == down
    assert runner.again(state) == {"run": first.run, "extra": {"ACCEPT": "true"}}


def test_checkpoints_outlive_a_stop_and_the_state_of_the_machine(run, monkeypatch):
    monkeypatch.setattr(runner, "host_goes_down", lambda: False)
    assert run(stopped)() == 143
    runner.shutil.rmtree(runner.STATES)
    found = []

    def resumed(work):
        found.extend(path.name for path in work.iterdir())
        return 0

    assert run(resumed)() == 0 and found == ["checkpoint"]


def test_a_deployment_takes_up_what_was_cut_off_unless_it_runs():
    state = {
        "started": 1,
        "exit_status": None,
        "run": "20261127T023000Z",
        "declared": int(datetime.now(UTC).timestamp()),
        "success": {"model": "digits", "version": "1"},
    }
    why, told = runner.wanted(SPEC, state, free=True)
    assert "was cut off" in why and told["run"] == "20261127T023000Z"
    assert runner.wanted(SPEC, state, free=False) == ("", {})
    assert runner.wanted(SPEC, {**state, "resumes": 3}, free=True) == ("", {})


def test_a_job_of_a_week_is_followed_in_fewer_calls_than_ansible_bears():
    follow = load(ROOT / "plugins/modules/container_job.py")
    for silent in (False, True):
        age, calls = 0.0, 0
        while age < 7 * 24 * 3600:
            age, calls = age + follow.call_seconds(age, silent), calls + 1
        assert calls < 300
    assert follow.call_seconds(0, silent=False) <= 1
