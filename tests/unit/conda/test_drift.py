"""What the drift scan says: odd files, what hard links share, what people and Prometheus read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from channel import Package
from conda_host import LIB, ONE, OTHER, PYTHON, TWO, Host
from groundcrew.conda import drift, environments, files
from groundcrew.conda.layout import Layout


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.ensure("a", ONE)
    host.file("a", LIB).chmod(0o755)
    return host


def changes(host: Host, name: str = "a") -> dict[str, str]:
    return {f["path"]: f["change"] for f in drift.scan(host.layout, name)["files"]}


def test_foreign_files_of_any_name_are_reported_in_words(host: Host) -> None:
    folder = os.fsencode(host.file("a", LIB))
    for name in (b"two words", b"line\nbreak", b"not-utf8-\xff", "grün".encode(), b"tab\t"):
        Path(os.fsdecode(folder + b"/" + name)).write_text("")
    found = changes(host)
    assert sorted(Path(path).name for path in found) == [
        "grün",
        "line\\nbreak",
        "not-utf8-\\xff",
        "tab\\t",
        "two words",
    ]
    report = drift.scan(host.layout, "a")
    assert json.dumps(report, ensure_ascii=False).encode()
    assert len("\n".join(drift.lines(report)).encode().splitlines()) == 6


def test_pipes_sockets_and_links_to_folders_are_foreign_and_not_opened(host: Host) -> None:
    folder = host.file("a", LIB)
    os.mkfifo(folder / "pipe")
    (folder / "everything").symlink_to("/")
    (folder / "nowhere").symlink_to("/nonexistent")
    assert changes(host) == {f"{LIB}/{n}": "foreign" for n in ("pipe", "everything", "nowhere")}


def test_a_file_that_became_a_pipe_or_a_link_is_changed(host: Host) -> None:
    folder = host.file("a", LIB)
    content = (folder / "one.py").read_text()
    (folder / "one.py").unlink()
    os.mkfifo(folder / "one.py")
    assert changes(host) == {f"{LIB}/one.py": "changed"}
    (folder / "one.py").unlink()
    (folder / "copy").write_text(content)
    (folder / "one.py").symlink_to("copy")
    assert changes(host) == {f"{LIB}/one.py": "changed", f"{LIB}/copy": "foreign"}


def test_empty_and_large_files_are_hashed_whole(tmp_path: Path) -> None:
    contents = [b"", b"x", b"y" * (1 << 18), b"z" * ((1 << 18) + 1), b"w" * 600_000]
    paths = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        paths.append((str(tmp_path / str(number)), len(content)))
    expected = [files.hashlib.sha256(content).hexdigest() for content in contents]
    assert files.sha256_of_many(paths) == expected
    assert [files.sha256(path) for path, _ in paths] == expected
    # A file that grew or shrank since it was measured.
    assert files.sha256_of_many([(path, size // 2) for path, size in paths]) == expected
    assert files.sha256_of_many([(path, size * 2 + 1) for path, size in paths]) == expected
    assert files.sha256_of_many([(str(tmp_path / "gone"), 1), (str(tmp_path), 1)]) == [None, None]


def test_a_change_says_who_and_when(host: Host) -> None:
    path = host.file("a", f"{LIB}/one.py")
    path.chmod(0o644)
    path.write_text("edited\n")
    if os.geteuid() == 0:
        os.chown(path, 4711, 4711)
    os.utime(path, (0, 1_700_000_000))
    (report,) = drift.scan(host.layout, "a")["files"]
    owner = "4711" if os.geteuid() == 0 else report["owner"]
    assert (report["owner"], report["modified"]) == (owner, "2023-11-14T22:13:20+00:00")
    entry = files.Entry("x", 0, 1e15, 4711, (0, 0), 1)
    assert drift._file("x", "foreign", "", entry)["modified"] == "1000000000000000 s"


def test_a_foreign_conda_package_and_a_removed_one_are_named(host: Host) -> None:
    meta = host.file("a", "conda-meta")
    meta.chmod(0o755)
    (meta / "intruder-2.0-h1_0.json").write_text("{}")
    (meta / "one-1.0-0.json").unlink()
    assert drift.scan(host.layout, "a")["packages"] == [
        {
            "name": "intruder",
            "change": "added",
            "expected": None,
            "found": "2.0 h1_0",
            "by": "conda",
        },
        {"name": "one", "change": "removed", "expected": "1.0 0", "found": None, "by": "conda"},
    ]


def test_an_edit_of_the_cache_alone_is_found_where_links_are_shared(host: Host) -> None:
    (cached,) = host.layout.packages.glob(f"one-*/{LIB}/one.py")
    if cached.stat().st_nlink == 1:
        pytest.skip("this file system has no hard links")
    cached.unlink()
    cached.write_text("edited\n")
    report = drift.scan(host.layout, "a")
    assert report["cache"] == [str(cached)] and not report["files"] and not report["ok"]
    assert f"  in the cache too: {cached}" in drift.lines(report)
    cached.unlink()
    os.mkfifo(cached)
    assert drift.scan(host.layout, "a")["cache"] == [str(cached)]
    cached.unlink()
    assert drift.scan(host.layout, "a")["cache"] == [str(cached)]
    assert host.ensure("a", ONE, heal=True).action == "healed"
    assert drift.scan(host.layout, "a")["ok"] and host.file("a", f"{LIB}/one.py").stat().st_size > 8


def test_files_that_environments_share_are_read_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ensure("b", ONE)
    if host.file("a", f"{LIB}/one.py").stat().st_nlink == 1:
        pytest.skip("this file system has no hard links")
    alone = [drift.scan(host.layout, name) for name in ("a", "b")]
    read = []
    many = files.sha256_of_many

    def counted(sizes: list[tuple[str, int]]) -> list[str | None]:
        read.extend(path for path, _ in sizes)
        return many(sizes)

    monkeypatch.setattr(files, "sha256_of_many", counted)
    together = drift.scan_all(host.layout, ["a", "b"])
    for report in (*alone, *together):
        del report["seconds"]
    assert together == alone and all(r["ok"] for r in together)
    assert len([path for path in read if path.endswith(f"{LIB}/one.py")]) == 1


def test_a_lock_that_cannot_be_read_is_a_difference_not_an_end(host: Host) -> None:
    host.layout.lock_path("a").write_text("nonsense\n")
    report = drift.scan(host.layout, "a")
    assert not report["ok"] and "Deploy: it is brought anew" in report["notes"][0]
    host.layout.lock_path("a").write_bytes(b"\xff")
    assert not drift.scan(host.layout, "a")["ok"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    report = drift.scan(Layout(tmp_path), "ghost")
    assert not report["ok"] and drift.lines(report) == [
        "ghost: differs from its lock (None)",
        "  ghost is not there, or was never finished: deploy, and it is built anew.",
    ]


def test_long_lists_are_cut(host: Host) -> None:
    for number in range(drift.SHOWN_FILES + 3):
        host.file("a", f"{LIB}/f{number}").write_text("")
    text = drift.lines(drift.scan(host.layout, "a"))
    assert text[-1] == "  and 3 more files" and len(text) == drift.SHOWN_FILES + 2


def test_metrics_are_what_node_exporter_reads(host: Host) -> None:
    host.ensure("b", OTHER)
    host.file("a", f"{LIB}/left").write_text("")
    reports = drift.scan_all(host.layout, ["a", "b"])
    text = drift.metrics(reports, 1_700_000_000.4)
    lines = text.splitlines()
    assert 'groundcrew_conda_drift{conda_environment="a"} 1' in lines
    assert 'groundcrew_conda_drift{conda_environment="b"} 0' in lines
    assert 'groundcrew_conda_drift_differences{conda_environment="a"} 1' in lines
    assert 'groundcrew_conda_drift_differences{conda_environment="b"} 0' in lines
    assert lines[-1] == "groundcrew_conda_drift_checked_timestamp_seconds 1700000000"
    assert text.endswith("\n")
    names = [line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")]
    declared = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert sorted(set(names)) == sorted(declared)
    assert drift.metrics([], 1.0).count("# TYPE") == 3


def program(
    root: Path | str, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "groundcrew.conda", "--root", str(root), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(environments.__file__).parents[2])},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_program_lists_prunes_and_takes_a_relative_root(host: Host) -> None:
    first = host.layout.current("a")
    host.ensure("a", TWO)
    host.ensure("a", ONE, OTHER)
    root = host.layout.root
    (root / "settings.json").write_text(json.dumps({"channels": {"local": host.channel.as_uri()}}))
    listed = program(root.name, "list", cwd=root.parent).stdout
    assert listed.startswith(f"a  {host.layout.current('a')}  before: a-")
    assert program(root.name, "prune", cwd=root.parent).stdout == f"removed: {first}\n"
    healed = program(root.name, "heal", "a", cwd=root.parent)
    assert healed.returncode == 0, healed.stderr
    assert host.file("a", "bin/one").read_text().startswith(f"#!{root}/envs/a-")
    nothing = program(root, "heal", "ghost")
    assert nothing.returncode == 2 and "There is no lock of 'ghost' here" in nothing.stderr
    bad = program(root, "drift", "../x")
    assert bad.returncode == 2 and "Traceback" not in bad.stderr


def test_program_prints_names_that_are_no_text(host: Host) -> None:
    path = os.fsdecode(os.fsencode(host.file("a", LIB)) + b"/\xff")
    Path(path).write_text("")
    found = program(host.layout.root, "drift")
    assert found.returncode == 1 and "file foreign" in found.stdout, found.stderr


def test_packages_of_both_formats_are_scanned_and_healed(tmp_path: Path) -> None:
    old = Package("old", files={"share/old": b"1"}, suffix=".tar.bz2")
    host = Host(tmp_path, (PYTHON, ONE, old))
    host.ensure("a", ONE, old)
    assert drift.scan(host.layout, "a")["ok"]
    assert host.file("a", "share/old").read_bytes() == b"1"
    host.overwrite("a", "share/old", "2")
    assert changes(host) == {"share/old": "changed"}
    host.ensure("a", ONE, old, heal=True)
    assert drift.scan(host.layout, "a")["ok"] and host.file("a", "share/old").read_bytes() == b"1"
