"""The end of the gateway's access log, across a rotation and a torn line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from groundcrew import access_log
from groundcrew.errors import GroundcrewError


def write(path: Path, moments: range, padding: int = 0) -> None:
    with path.open("a") as file:
        for at in moments:
            file.write(json.dumps({"at": at, "path": "x" * padding}) + "\n")


def moments(lines: list[str]) -> list[int]:
    return [json.loads(line)["at"] for line in lines]


@pytest.mark.parametrize("step", [64, 1 << 20])
def test_what_is_newer_in_whatever_steps_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(access_log, "_STEP", step)
    log = tmp_path / "access.log"
    write(log, range(1000, 1500), padding=30)
    assert moments(access_log.since(1450, log)) == list(range(1450, 1500))
    assert access_log.since(2000, log) == []


def test_goes_on_in_the_rotated_one_and_only_then(tmp_path: Path) -> None:
    log, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    write(rotated, range(1000, 1010))
    write(log, range(1010, 1020))
    assert moments(access_log.since(1005, log)) == list(range(1005, 1020))
    rotated.write_text("nothing of this is read")
    assert moments(access_log.since(1015, log)) == list(range(1015, 1020))


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    write(log, range(1000, 1003))
    log.write_text('00, "path": "torn"}\nServer is DOWN\n' + log.read_text())
    assert moments(access_log.since(0, log)) == [1000, 1001, 1002]


def test_no_log_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(GroundcrewError, match="systemctl restart haproxy"):
        access_log.since(0, tmp_path / "access.log")
