"""Which hosts have which environment, and which locks may be deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from groundcrew.conda import declared
from groundcrew.conda.lock import Lock, PlatformLock, deployable, render, spec_digest
from groundcrew.errors import GroundcrewError


def test_a_host_has_the_environments_of_its_fleets() -> None:
    environments = {"digits": {"fleets": ["batch", "training"]}, "tools": {"fleets": ["training"]}}
    assert declared.names(environments, ["batch"]) == ["digits"]
    assert declared.names(environments, ["training", "other"]) == ["digits", "tools"]
    assert declared.names(environments, []) == [] == declared.names({}, ["batch"])


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        (
            "digits",
            {"fleet": ["batch"]},
            r"unknown key 'fleet'\. Did you mean 'fleets'\?.*conda\.yml",
        ),
        ("digits", {"fleets": ["batch"], "owner": "x"}, r"unknown key 'owner'\. Known: fleets"),
        ("digits", None, r"says no fleets, but None\..*digits: \{fleets: \[batch\]\}"),
        ("digits", {"fleets": []}, "says no fleets"),
        ("digits", {"fleets": "batch"}, "says no fleets, but 'batch'"),
        ("Digits", {"fleets": ["batch"]}, "Digits"),
        ("../x", {"fleets": ["batch"]}, "x"),
    ],
)
def test_a_wrong_entry_is_named(name: str, entry: Any, words: str) -> None:
    # Also where this host would not have the environment.
    with pytest.raises(GroundcrewError, match=words):
        declared.names({"good": {"fleets": ["batch"]}, name: entry}, ["training"])


def write(folder: Path, name: str, spec: bytes = b"channels: [x]\n") -> Path:
    (folder / f"{name}.yml").write_bytes(spec)
    path = folder / f"{name}.lock"
    path.write_text(render(Lock(name, spec_digest(spec), {"linux-64": PlatformLock()})))
    return path


def test_a_lock_of_its_spec_may_be_deployed(tmp_path: Path) -> None:
    lock = write(tmp_path, "good")
    assert deployable(["good"], str(tmp_path)) == [{"name": "good", "lock": lock.read_text()}]
    assert deployable([], str(tmp_path)) == []


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    for name in ("good", "edited", "missing", "broken", "binary"):
        write(tmp_path, name)
    (tmp_path / "edited.yml").write_text("channels: [y]\n")
    (tmp_path / "missing.lock").unlink()
    (tmp_path / "broken.lock").write_text("lock-version 1\nconda x\n")
    (tmp_path / "binary.lock").write_bytes(b"\xff\xfe")
    names = ["good", "edited", "missing", "broken", "binary", "ghost"]
    with pytest.raises(GroundcrewError) as caught:
        deployable(names, str(tmp_path))
    message = str(caught.value)
    assert "edited.yml was edited after its lock was made. Run: make lock conda=edited" in message
    assert "missing.lock is missing. Make it with: make lock conda=missing" in message
    assert "broken.lock, line 2" in message and "make lock conda=broken" in message
    assert "binary.lock is no text" in message
    assert "'ghost' has no" in message and "binary, broken, edited, good, missing" in message
    assert "good.lock" not in message
