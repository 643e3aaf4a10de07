"""Images named by what goes into them: built once, pulled by digest, built again when an input changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

FOLDER = cloud.BUILD / "image"


def build(*arguments):
    return cloud.playbook("molecule/image/converge.yml", *arguments)


def reference():
    return json.loads((FOLDER / "references.json").read_text())["scenario_small"]


def test_what_was_pushed_can_be_pulled_by_its_digest():
    name, _, digest = reference().partition("@sha256:")
    assert name == "10.78.0.2:5000/groundcrew/scenario_small" and len(digest) == 64
    # Over loopback, as this machine reaches it; the hosts pull in the fleet's scenario.
    assert digest in cloud.docker(
        "pull", "-q", f"127.0.0.1:6078/groundcrew/scenario_small@sha256:{digest}"
    )


def test_changed_input_is_another_image_and_the_old_one_stays():
    before, value = reference(), (FOLDER / "data/value").read_text()
    (FOLDER / "data/value").write_text(value + " changed")
    done = build()
    assert done.returncode == 0 and "changed=1" in done.stdout.replace("changed=2", "changed=1"), (
        done.stdout[-2000:]
    )
    after = reference()
    assert after != before
    (FOLDER / "data/value").write_text(value)
    build()
    assert reference() == before


def test_broken_dockerfile_shows_its_last_lines():
    done = build("-e", '{"scenario_wanted": ["scenario_broken"]}')
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "does not build from broken/Dockerfile" in said and "no-such-file" in said


def test_unknown_image_and_silent_registry_are_named():
    done = build("-e", '{"scenario_wanted": ["smal"]}')
    assert (
        done.returncode != 0
        and "image 'smal' is used in the inventory but not declared" in done.stdout + done.stderr
    )
    done = build("-e", "scenario_registry=127.0.0.1:9")
    assert done.returncode != 0 and "127.0.0.1:9 does not answer" in " ".join(
        (done.stdout + done.stderr).split()
    )
