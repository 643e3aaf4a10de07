"""A job publishes a whole version, or nothing and says why; what is cut off is taken up where it was."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

BUCKET = "groundcrew-test-store"
JOB = "training-digits"
LOG = f"/var/log/groundcrew/jobs/{JOB}.log"


def wait_until(condition, what, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def stored(key):
    return cloud.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()


def keys(prefix):
    return [
        item["Key"]
        for item in cloud.client("s3")
        .list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        .get("Contents", [])
    ]


def job(**changes):
    digits = {
        "image": "training_digits",
        "model": "digits",
        "version": "2",
        "gate": {"minimum": 0.95},
        "memory": "1500m",
        **changes,
    }
    return ("-e", json.dumps({"training_jobs": {"digits": digits}}))


def train(**changes):
    done = cloud.playbook("playbooks/train.yml", *job(**changes))
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def whole(version):
    """The manifest of a version, after every file of it had the checksum that it says."""
    manifest = json.loads(stored(f"models/digits/{version}/manifest.json"))
    for name, entry in manifest["files"].items():
        data = stored(f"models/digits/{version}/{name}")
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
    return manifest


def log(host):
    return [json.loads(line) for line in host.check_output("cat %s", LOG).splitlines()]


def test_published_version_is_whole():
    manifest = whole(1)
    assert manifest["metrics"]["accuracy"] >= 0.95
    assert manifest["image"].startswith("sha256:")
    assert manifest["duration_seconds"] > 0
    golden = json.loads(stored("models/digits/1/golden.json"))
    assert all(len(case["response"]["predictions"][0]) == 10 for case in golden["cases"])


def test_the_job_is_installed_and_confined(host):
    spec = json.loads(host.check_output("cat /etc/groundcrew/jobs/%s.json", JOB))
    assert spec["keep_work"] and "@sha256:" in spec["image"]
    assert JOB in host.check_output("groundcrew-job list")
    assert host.check_output("docker ps -aq --filter name=training-") == ""


def test_accuracy_below_the_gate_publishes_nothing_and_says_both_figures(host):
    published = whole(1)["metrics"]["accuracy"]
    status, output = train(gate={"minimum": 0.9999})
    assert status != 0 and "refused by the gate: nothing was published" in output, output[-2000:]
    # The same data, the same seed: the refused version is as good as the published one.
    assert "0.9999" in output and f"{published:.4f}" in output
    assert not [key for key in keys("models/digits/2/") if key.endswith("manifest.json")]
    # Another attempt would end the same way.
    assert [entry["event"] for entry in log(host)].count("attempt_failed") == 0


def test_a_job_that_is_killed_goes_on_from_its_checkpoint_without_the_controller(host):
    gate = {"minimum": 0.95, "margin": 0}
    controller = cloud.start_playbook(
        "playbooks/train.yml",
        *job(gate=gate),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    begun = len(log(host))

    def said(word):
        return any(word in entry["message"] for entry in log(host)[begun:])

    try:
        wait_until(lambda: said("checkpoint"), "the first checkpoint")
    finally:
        controller.kill()
        controller.wait()
    host.check_output("docker kill %s", JOB)
    wait_until(lambda: log(host)[-1]["event"] == "finished", "the job to publish by itself")
    events = [entry["event"] for entry in log(host)[begun:]]
    assert events.count("attempt_failed") == 1
    assert said("goes on after phase 1"), [entry["message"] for entry in log(host)[begun:]]
    # As if nothing had happened: the same data and seed make the same model.
    assert whole(2)["files"]["golden.json"] == whole(1)["files"]["golden.json"]
    # And so it is exactly as good as the version that serves, on the same held-out data.
    judged = whole(2)["gate"]
    assert judged["live_version"] == "1" and judged["live_value"] == judged["value"]
    status, output = train(gate=gate)
    assert status == 0 and f"Start {JOB}" not in output


def test_the_next_version_and_the_table_of_all(host):
    done = cloud.playbook("playbooks/train.yml", "-e", "job=digits", *job(version="next"))
    assert done.returncode == 0, done.stdout[-2000:]
    assert whole(3)["metrics"]["accuracy"] >= 0.95
    done = cloud.playbook("playbooks/models.yml")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    page = (cloud.BUILD / "models.html").read_text()
    report = json.loads((cloud.BUILD / "models.json").read_text())
    # Nothing is deployed here, which is one finding; the versions are whole.
    versions = [check for check in report["checks"] if check["name"].startswith("digits version")]
    assert [check["ok"] for check in versions] == [True] * 3
    assert "<svg" in page and not re.findall(r"(?:src|href)=.https?:", page)
    assert f"{whole(3)['metrics']['accuracy']:.4f}"[:5] in done.stdout


def test_unknown_keys_and_jobs_are_refused_before_anything_runs():
    status, output = train(gaet={"accuracy": 0.5})
    assert status != 0 and "gaet" in output and "models.yml" in output
    status, output = train(gate={"accuracy": 0.5})
    assert status != 0 and "write gate: {metric: accuracy, minimum: 0.5}" in output
    done = cloud.playbook("playbooks/train.yml", "-e", "job=digit")
    assert done.returncode != 0 and "There is no training job 'digit'" in done.stdout + done.stderr


def test_nothing_is_left_running(host):
    assert host.check_output("docker ps -aq --filter name=training-") == ""
    assert host.run("ls /var/lib/groundcrew/work").stdout.split() in ([], [JOB])
