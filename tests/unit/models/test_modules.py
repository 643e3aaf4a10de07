"""The modules as Ansible runs them: programs that read their arguments and print one JSON object."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BUCKET = "groundcrew-models-test-store"
ROOT = Path(__file__).resolve().parents[3]
TEXT = '# why\r\nmodels:\n  digits: {version: "1", fleet: prediction}   # größer\n'
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(store: dict[str, str], tmp_path: Path) -> Run:
    # A module imports its helpers as ansible.module_utils.groundcrew, which Ansible makes so.
    starter = tmp_path / "start.py"
    starter.write_text(
        "import runpy, sys\nimport ansible.module_utils\n"
        f"ansible.module_utils.__path__.append({str(ROOT / 'plugins' / 'module_utils')!r})\n"
        "del sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )

    def call(module: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
        given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
        done = subprocess.run(
            [sys.executable, str(starter), str(ROOT / "plugins" / "modules" / f"{module}.py")],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
            env={**os.environ, **store},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return call


def test_promotion_changes_the_version_and_nothing_else(run, publish, tmp_path):
    publish("1", metrics={"accuracy": 0.9})
    publish("4", metrics={"accuracy": 0.95})
    path = tmp_path / "models.yml"
    path.write_bytes(TEXT.encode())
    path.chmod(0o640)
    given = {"bucket": BUCKET, "model": "digits", "version": "4", "path": str(path)}
    would = run("model_promotion", check=True, **given, shown_path="models.yml")
    assert would["changed"]
    assert would["diff"]["before_header"] == "models.yml"
    assert path.read_bytes() == TEXT.encode()
    done = run("model_promotion", **given)
    assert (done["before"], done["version"]) == ("1", "4")
    assert done["metrics"] == {"1": {"accuracy": 0.9}, "4": {"accuracy": 0.95}}
    assert path.read_bytes() == TEXT.replace('"1"', '"4"').encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in tmp_path.glob(".models-*")) == []
    again = run("model_promotion", **{**given, "version": "latest"})
    assert (again["changed"], again["version"]) == (False, "4")


@pytest.mark.parametrize(
    ("version", "text", "message"),
    [
        ("5", TEXT, "version 5 is not in the store"),
        ("newest", TEXT, "must be a whole number"),
        ("4", "models: {digits: {variants: []}}", "has variants"),
        ("4", None, "cannot be read"),
    ],
)
def test_refusals_leave_the_file_alone(run, publish, tmp_path, version, text, message):
    publish("4")
    path = tmp_path / "models.yml"
    if text is not None:
        path.write_bytes(text.encode())
    failed = run("model_promotion", bucket=BUCKET, model="digits", version=version, path=str(path))
    assert failed["failed"] and message in failed["msg"]
    assert text is None or path.read_bytes() == text.encode()


def test_report_asks_the_store_alone(run, publish):
    publish("1")
    found = run(
        "models_report",
        environment_name="prod",
        bucket=BUCKET,
        variants=[{"model": "digits", "version": "1", "weight": 100, "fleet": "prediction"}],
        fleets={"prediction": ["p1"], "gateway": ["g1"]},
    )
    assert not found["changed"]
    assert found["report"]["models"][0]["versions"][0]["state"] == "whole"
    assert found["page"].startswith("<!DOCTYPE html>")
    assert found["lines"][0] == "digits"
    missing = run(
        "models_report", environment_name="prod", bucket="nowhere", variants=[], fleets={}
    )
    assert missing["failed"] and "'nowhere' does not exist" in missing["msg"]
