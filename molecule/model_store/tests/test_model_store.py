"""Model versions on a host: verified, repaired, whole or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

VERSION = "/srv/models/tiny/2"


def converge(models, **changes):
    """Apply the role with other models; (status, output)."""
    extra = {
        "scenario_models": [{"name": name, "version": version} for name, version in models],
        **changes,
    }
    done = cloud.playbook("molecule/model_store/role.yml", "-e", json.dumps(extra))
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_version_is_whole_and_matches_its_manifest(host):
    manifest = json.loads(host.file(f"{VERSION}/manifest.json").content_string)
    for name, entry in manifest["files"].items():
        file = host.file(f"{VERSION}/{name}")
        assert file.sha256sum == entry["sha256"] and file.size == entry["size"]
        assert file.user == "root" and not file.mode & 0o022


def test_corrupted_file_is_repaired(host):
    host.check_output(f"sh -c 'echo broken > {VERSION}/model.joblib'")
    status, output = converge([("tiny", "2")])
    assert status == 0 and "changed=1" in output
    assert host.file(f"{VERSION}/model.joblib").content_string.startswith("tiny 2")


def test_other_version_is_kept_beside(host):
    status, _ = converge([("tiny", "1")])
    assert status == 0
    assert (
        host.file("/srv/models/tiny/1/manifest.json").exists
        and host.file(f"{VERSION}/manifest.json").exists
    )


def test_wrong_sha256_in_the_store_leaves_nothing(host):
    status, output = converge([("damaged", "1")])
    assert status != 0 and "model.joblib" in output and "0000000000" in output
    assert not host.file("/srv/models/damaged/1").exists
    assert host.check_output("find /srv/models -name '*partial*'") == ""


def test_missing_version_names_those_there_are(host):
    status, output = converge([("tiny", "7")])
    assert status != 0 and "7" in output and "1, 2" in output
    assert not host.file("/srv/models/tiny/7").exists
