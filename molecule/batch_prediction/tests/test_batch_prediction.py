"""What the role makes of batch jobs; what the runner does with them is molecule/container_job."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

SPECS, STATES, LOGS = (f"/{top}/groundcrew/jobs" for top in ("etc", "var/lib", "var/log"))
BUCKET = "groundcrew-test-store"


def entries(host, job):
    path = f"{LOGS}/{job}.log"
    if not host.file(path).exists:
        return []
    return [json.loads(line) for line in host.check_output("cat %s", path).splitlines()]


def test_a_job_is_given_what_was_declared(host):
    said = [entry["message"] for entry in entries(host, "batch-fresh")]
    given = json.loads(next(line for line in said if line.startswith('{"JOB"')))
    run = given.pop("RUN_ID")
    assert given == {
        "JOB": "fresh",
        "MODEL_NAME": "digits",
        "MODEL_VERSION": "1",
        "MODEL_DIRECTORY": "/srv/models/digits/1",
        "STORE_BUCKET": BUCKET,
        "INPUT": f"s3://{BUCKET}/data/fresh/",
        "MINIMUM_ROWS_SHARE": "0.9",
    }
    assert json.loads(host.check_output("cat %s", f"{STATES}/batch-fresh.json"))["run"] == run


def test_what_the_store_has_is_not_run_again(host):
    assert entries(host, "batch-known") == []
    state = json.loads(host.check_output("cat %s", f"{STATES}/batch-known.json"))
    assert (state["success"]["rows"], state["success"]["rejected"]) == (6, 1)
    text = host.check_output(
        "cat /var/lib/prometheus/node-exporter/groundcrew_job_batch-known.prom"
    )
    assert 'groundcrew_job_last_rows{family="batch",job="known"} 6\n' in text


def test_a_job_of_another_host_is_not_here(host):
    assert not host.file("/etc/cron.d/groundcrew-batch-elsewhere").exists
    assert not host.file(f"{SPECS}/batch-elsewhere.json").exists


def test_the_host_has_what_a_conda_environment_imports(host):
    for path in (
        "groundcrew/objects.py",
        "groundcrew_prediction/engine.py",
        "groundcrew_batch/__main__.py",
    ):
        assert host.file(f"/usr/local/lib/groundcrew/{path}").exists, path


def test_faults_are_refused_before_anything_is_changed(host):
    before = host.check_output("sha256sum %s/*", SPECS)
    job = {"conda_environment": "scenario", "model": "digits", "version": "1", "input": "a.csv"}
    for change, said in (
        ({"schedule": "0 25 * * *"}, "'25' is no hour"),
        ({"schedule": "0 3 * * *", "timezone": "Europe/Berln"}, "Europe/Berln"),
        ({"schedule": "0 3 * * *", "version": "9"}, "was not fetched to this host"),
        ({"schedule": "0 3 * * *", "maximum_shfit": 1}, "Did you mean 'maximum_shift'?"),
    ):
        jobs = {"batch_prediction_jobs": {"fresh": {**job, **change}}}
        done = cloud.role("batch_prediction", "-e", json.dumps(jobs))
        output = " ".join((done.stdout + done.stderr).split())
        assert done.returncode != 0 and said in output, output[-1500:]
        assert "batch job fresh" in output and "batch.yml" in output
    assert host.check_output("sha256sum %s/*", SPECS) == before


def test_a_store_that_is_gone_is_said_by_name(host):
    done = cloud.role("batch_prediction", "-e", "batch_prediction_store_bucket=no-such-store")
    assert done.returncode != 0 and "no-such-store" in done.stdout + done.stderr
