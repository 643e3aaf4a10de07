"""A job publishes a whole version, or nothing and says why."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

BUCKET = "groundcrew-test-store"


def keys(prefix):
    return [
        item["Key"]
        for item in cloud.client("s3")
        .list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        .get("Contents", [])
    ]


def train(**changes):
    job = {
        "image": "training_digits",
        "model": "digits",
        "version": "2",
        "gate": {"accuracy": 0.95},
        "memory": "1500m",
        **changes,
    }
    done = cloud.playbook(
        "playbooks/train.yml", "-e", json.dumps({"training_jobs": {"digits": job}})
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_published_version_is_whole():
    s3 = cloud.client("s3")
    manifest = json.loads(
        s3.get_object(Bucket=BUCKET, Key="models/digits/1/manifest.json")["Body"].read()
    )
    assert manifest["metrics"]["accuracy"] >= 0.95
    assert manifest["image"].startswith("sha256:")
    for name, entry in manifest["files"].items():
        data = s3.get_object(Bucket=BUCKET, Key=f"models/digits/1/{name}")["Body"].read()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    golden = json.loads(
        s3.get_object(Bucket=BUCKET, Key="models/digits/1/golden.json")["Body"].read()
    )
    assert all(len(case["response"]["predictions"][0]) == 10 for case in golden["cases"])


def test_accuracy_below_the_gate_publishes_nothing_and_says_both_figures():
    published = json.loads(
        cloud.client("s3")
        .get_object(Bucket=BUCKET, Key="models/digits/1/manifest.json")["Body"]
        .read()
    )
    status, output = train(gate={"accuracy": 0.9999})
    assert status != 0 and "published nothing" in output
    # The same data, the same seed: the refused version is as good as the published one.
    assert "gate of 0.9999" in output and f"{published['metrics']['accuracy']:.4f}" in output
    assert not [key for key in keys("models/digits/2/") if key.endswith("manifest.json")]


def test_unknown_key_is_refused_before_anything_runs():
    status, output = train(gaet={"accuracy": 0.5})
    assert status != 0 and "gaet" in output and "models.yml" in output


def test_nothing_is_left_running(host):
    assert host.check_output("docker ps -aq --filter name=training-") == ""
