"""The module as Ansible runs it: a program that reads its arguments and prints one JSON object."""

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

MODULE = Path(__file__).parents[3] / "plugins" / "modules" / "managed_files.py"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the module for some files; paths are relative to tmp_path, the owner is who runs the test."""

    def call(*files: dict[str, Any], check: bool = False) -> dict[str, Any]:
        wanted = [
            {"owner": str(os.getuid()), "group": str(os.getgid()), **file}
            | {"path": str(tmp_path / file["path"])}
            for file in files
        ]
        arguments = {"files": wanted, "_ansible_check_mode": check, "_ansible_diff": True}
        done = subprocess.run(
            [sys.executable, str(MODULE)],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return call


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_content_mode_and_a_second_run(run: Run, tmp_path: Path) -> None:
    wanted = {"path": "deep/er/x.conf", "content": "a = ü\r\n", "mode": "0640"}
    result = run(wanted)
    path = tmp_path / "deep" / "er" / "x.conf"
    assert result["changed"] and result["paths"] == [str(path)]
    assert path.read_bytes() == "a = ü\r\n".encode()
    assert mode(path) == 0o640
    assert run(wanted)["changed"] is False
    assert os.listdir(path.parent) == ["x.conf"]


def test_wrong_mode_alone_is_put_right(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("a")
    path.chmod(0o666)
    result = run({"path": "x", "content": "a"})
    assert result["paths"] == [str(path)] and mode(path) == 0o644
    assert "mode 0666" in result["diff"][0]["before"] and "mode 0644" in result["diff"][0]["after"]


def test_empty_content_is_content(run: Run, tmp_path: Path) -> None:
    assert run({"path": "x", "content": ""})["changed"]
    assert (tmp_path / "x").read_bytes() == b""


def test_directory(run: Run, tmp_path: Path) -> None:
    wanted = {"path": "a/b", "state": "directory", "mode": "0750"}
    assert run(wanted)["changed"]
    assert mode(tmp_path / "a" / "b") == 0o750
    assert run(wanted)["changed"] is False


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_absent_removes_whatever_is_there(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "old"
    if kind == "file":
        path.write_text("x")
    elif kind == "folder":
        (path / "deep").mkdir(parents=True)
    else:
        path.symlink_to("nowhere")
    assert run({"path": "old", "state": "absent"})["paths"] == [str(path)]
    assert not os.path.lexists(path)
    assert run({"path": "old", "state": "absent"})["changed"] is False


def test_absent_leaves_the_target_of_a_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    run({"path": "link", "state": "absent"})
    assert (tmp_path / "kept").is_dir() and not os.path.lexists(tmp_path / "link")


def test_json_keeps_what_others_wrote(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    theirs = {"runtimes": {"nvidia": {"path": "x"}}, "dns": ["10.0.0.2"], "debug": True}
    path.write_text(json.dumps(theirs))
    ours = {"runtimes": {"other": {}}, "dns": ["10.0.0.2", "10.0.0.3"], "debug": False}
    wanted = {"path": "daemon.json", "json": ours}
    assert run(wanted)["changed"]
    assert json.loads(path.read_text()) == {
        "runtimes": {"nvidia": {"path": "x"}, "other": {}},
        "dns": ["10.0.0.2", "10.0.0.3"],
        "debug": False,
    }
    assert run(wanted)["changed"] is False


def test_json_in_another_layout_is_no_difference(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a":1,  "b": 2}')
    assert run({"path": "x.json", "json": {"a": 1}})["changed"] is False
    assert (tmp_path / "x.json").read_text() == '{"a":1,  "b": 2}'


def test_json_that_is_none_is_refused_and_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{broken")
    result = run({"path": "x.json", "json": {"a": 1}})
    assert result["failed"] and "is no JSON" in result["msg"]
    assert (tmp_path / "x.json").read_text() == "{broken"


def test_refused_content_keeps_the_old_file_and_those_before_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "first").write_text("old first")
    (tmp_path / "second").write_text("old second")
    result = run(
        {"path": "first", "content": "new first"},
        {"path": "new", "content": "new"},
        {"path": "second", "content": "bad", "validate": "grep good %s"},
    )
    assert result["failed"] and "refused the new" in result["msg"]
    assert (tmp_path / "first").read_text() == "old first"
    assert (tmp_path / "second").read_text() == "old second"
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


def test_accepted_content_is_written(run: Run, tmp_path: Path) -> None:
    assert run({"path": "x", "content": "good", "validate": "grep good %s"})["changed"]
    assert (tmp_path / "x").read_text() == "good"


def test_check_mode_tells_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    wanted: list[dict[str, Any]] = [
        {"path": "x", "content": "new"},
        {"path": "d", "state": "directory"},
        {"path": "old", "state": "absent"},
        # The package that brings this user is not installed yet.
        {"path": "y", "content": "z", "owner": "nobody-of-this-name", "group": None},
    ]
    result = run(*wanted, check=True)
    assert [Path(path).name for path in result["paths"]] == ["x", "d", "old", "y"]
    assert result["diff"][0]["after"].endswith("new")
    assert os.listdir(tmp_path) == ["old"]


def test_unknown_owner_is_named(run: Run) -> None:
    result = run({"path": "x", "content": "", "owner": "nobody-of-this-name"})
    assert result["failed"] and "'nobody-of-this-name'" in result["msg"]


def test_a_secret_is_in_no_part_of_the_answer(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter1-before")
    wanted = {"path": "key", "content": "hunter2-after", "mode": "0400", "secret": True}
    result = run(wanted)
    assert (tmp_path / "key").read_text() == "hunter2-after" and mode(tmp_path / "key") == 0o400
    assert "hunter" not in json.dumps(result)
    assert "<secret" in result["diff"][0]["after"]


def test_create_only_leaves_the_content_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("theirs")
    (tmp_path / "x").chmod(0o600)
    assert run({"path": "x", "content": "ours", "create_only": True})["changed"]
    assert (tmp_path / "x").read_text() == "theirs" and mode(tmp_path / "x") == 0o644


def test_a_folder_where_a_file_should_be_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    result = run({"path": "x", "content": "a"})
    assert result["failed"] and "move it away" in result["msg"]


@pytest.mark.parametrize("fields", [{}, {"content": "a", "json": {}}])
def test_content_and_json_exclude_each_other(run: Run, fields: dict[str, Any]) -> None:
    result = run({"path": "x", **fields})
    assert result["failed"] and "needs one of content and json" in result["msg"]
