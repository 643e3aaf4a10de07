"""batch_jobs: as a team writes them, and the wrapper's decisions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

ROLE = next(
    parent / "roles" / "batch_prediction"
    for parent in Path(__file__).resolve().parents
    if (parent / "ansible.cfg").is_file()
)


def load(path):
    specification = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


jobs = load(ROLE / "filter_plugins" / "batch_prediction.py")
wrapper = load(ROLE / "files" / "groundcrew-batch.py")
FILE = "inventories/x/group_vars/x/batch.yml"
IMAGE = "registry:5000/batch@sha256:" + "0" * 64
SETTINGS = {
    "bucket": "store",
    "model_directory": "/srv/models",
    "env_file": "",
    "textfile_directory": "/metrics",
    "retry_delay_seconds": 1,
    "jitter_seconds": 0,
}
GOOD = {"image": "b", "model": "digits", "version": "1", "input": "a.csv", "schedule": "0 2 * * *"}


def expand(declared, peers=None, host="h1", **options):
    peers = peers or {"batch": ["h1"]}
    manifests = {"digits": {"1": "m"}}
    return jobs.batch_jobs(
        declared, FILE, peers, host, {"b": IMAGE}, manifests, SETTINGS, **options
    )


def test_defaults_and_input():
    (job,) = expand({"nightly": GOOD})
    assert job["schedule"] == "0 2 * * *"
    assert job["spec"]["input"] == "s3://store/a.csv"
    assert job["spec"]["timeout_seconds"] == 3600
    assert job["spec"]["image"] == IMAGE
    assert job["spec"]["textfile"] == "/metrics/groundcrew_batch_nightly.prom"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shedule": "x"}, "unknown key 'shedule'. Did you mean 'schedule'?"),
        ({"schedule": "@daily"}, "five fields"),
        ({"schedule": "61 * * * *"}, "'61' is no minute"),
        ({"schedule": "* * * foo *"}, "'foo' is no month"),
        ({"schedule": "30-10 * * * *"}, "'30-10' is no minute"),
        ({"schedule": "5/10 * * * *"}, "'5/10' is no minute"),
        ({"version": "one"}, "'one'"),
        ({"version": None}, "it lacks version"),
        ({"memory": "lots"}, "memory is 'lots'"),
        ({"retries": -1}, "retries is -1"),
        ({"timeout_minutes": "30"}, "timeout_minutes is '30'"),
        ({"include_instances": "yes"}, "include_instances is 'yes'"),
        ({"input": "/etc/passwd"}, "input is '/etc/passwd'"),
        ({"owner": "a\n* * * * * root reboot"}, "owner is"),
        ({"image": "c"}, "image 'c' has no digest yet"),
    ],
)
def test_refusals_name_the_fault_and_the_file(change, said):
    with pytest.raises(AnsibleFilterError) as refused:
        expand({"nightly": {**GOOD, **change}})
    assert said in str(refused.value)
    assert FILE in str(refused.value)
    assert "nightly" in str(refused.value)


def test_a_name_that_cron_would_ignore_is_refused():
    with pytest.raises(AnsibleFilterError, match=r"nightly\.v2"):
        expand({"nightly.v2": GOOD})


@pytest.mark.parametrize("schedule", ["*/5 1-3 * jan mon-fri", "0,30 0 1-31/2 * 7", "* * * * *"])
def test_schedules_of_crontab(schedule):
    assert jobs.schedule_fault(schedule) == ""


def test_each_job_runs_on_one_host_of_its_fleet():
    declared = {f"job{number}": GOOD for number in range(20)}
    hosts = ["h1", "h2", "h3"]
    names = [job["name"] for host in hosts for job in expand(declared, {"batch": hosts}, host)]
    assert sorted(names) == sorted(declared)
    assert expand({"gpu": {**GOOD, "fleet": "batch_gpu"}}) == []


def test_a_check_run_on_a_fresh_host_needs_no_digest_and_no_manifest():
    (job,) = expand({"n": {**GOOD, "image": "c", "version": 2}}, placeholders=True)
    assert job["spec"]["manifest_sha256"] is None


def spec():
    return expand({"nightly": GOOD})[0]["spec"]


def test_due_until_a_success_of_this_very_job():
    success = {key: spec()[key] for key in wrapper.IDENTITY}
    assert wrapper.due(spec(), {})
    assert wrapper.due(spec(), {"success": success, "exit_status": 2}) == ""
    assert "image" in wrapper.due(spec(), {"success": {**success, "image": "other"}})
    assert "version" in wrapper.due(spec(), {"success": {**success, "version": "2"}})


def test_metrics_leave_out_what_is_not_known():
    text = wrapper.metrics_text("n", {"started": 5, "exit_status": None})
    assert 'groundcrew_batch_last_start_timestamp_seconds{job="n"} 5\n' in text
    assert "exit_status" not in text
    assert "success" not in text


def test_the_container_gets_the_job_and_no_rights():
    arguments = wrapper.container_arguments(spec(), "20260101T000000Z", Path("/w"))
    assert arguments[-1] == IMAGE
    assert "--env=RUN_ID=20260101T000000Z" in arguments
    assert "--env=MODEL_DIRECTORY=/models/digits/1" in arguments
    assert "--read-only" in arguments
    assert "--env-file" not in arguments
