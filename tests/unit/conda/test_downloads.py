"""Package files from channels that answer late, wrongly, partly or not at all."""

from __future__ import annotations

import base64
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Self

import pytest
from channel import locked
from conda_host import ONE, OTHER, PYTHON, TWO, Host
from groundcrew.conda import downloads, drift, environments
from groundcrew.conda.environments import Settings
from groundcrew.errors import GroundcrewError
from slow_channel import cut, serve, slow, status

MODULE_UTILS = Path(environments.__file__).parents[2]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundcrew.conda.downloads.time.sleep", lambda _: None)


def fetch(host: Host, address: str) -> int:
    packages = [locked(host.channel, package) for package in (PYTHON, ONE)]
    return downloads.fetch(packages, host.layout.archives, {"local": address})


def left(host: Host) -> list[str]:
    return sorted(p.name for p in host.layout.archives.rglob("*") if p.is_file())


def test_a_channel_that_fails_twice_is_asked_a_third_time(host: Host) -> None:
    with serve(host.channel, status(500, times=2, of="one-")) as channel:
        assert fetch(host, channel.address) == 2
    assert channel.asked[ONE.file_name] == 3 and channel.asked[PYTHON.file_name] == 1
    assert left(host) == [ONE.file_name, PYTHON.file_name]


def test_a_channel_that_goes_on_failing_is_named(host: Host) -> None:
    with (
        serve(host.channel, status(503, of="one-")) as channel,
        pytest.raises(GroundcrewError, match=r"does not answer at .*one-1.0-0.*answered 503; 3 tr"),
    ):
        fetch(host, channel.address)
    assert channel.asked[ONE.file_name] == 3
    assert ONE.file_name not in left(host)


def test_a_file_that_was_taken_back_is_not_asked_for_again(host: Host) -> None:
    (host.channel / ONE.directory / ONE.file_name).rename(host.channel / "away")
    packages = [locked(host.channel, PYTHON)]
    gone = downloads.CondaPackage("local", "linux-64", ONE.file_name, "0" * 64)
    with (
        serve(host.channel) as channel,
        pytest.raises(GroundcrewError, match=r"has no linux-64/one-1\.0-0\.conda: .*answered 404"),
    ):
        downloads.fetch([*packages, gone], host.layout.archives, {"local": channel.address})
    assert channel.asked[ONE.file_name] == 1


def test_a_connection_that_is_cut_is_tried_again(host: Host) -> None:
    with serve(host.channel, cut(100, times=2)) as channel:
        assert fetch(host, channel.address) == 2
    assert channel.asked[ONE.file_name] == 3


@pytest.mark.parametrize("after", [0, 100])
def test_a_connection_that_is_cut_each_time_is_named(host: Host, after: int) -> None:
    with (
        serve(host.channel, cut(after)) as channel,
        pytest.raises(GroundcrewError, match=rf"was cut after {after} of \d+ bytes; 3 tries"),
    ):
        fetch(host, channel.address)
    assert left(host) == []


def test_an_answer_that_is_no_http_is_named(host: Host) -> None:
    def nonsense(handler: Any, _: int, content: bytes) -> bool:
        handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        return True

    with (
        serve(host.channel, nonsense) as channel,
        pytest.raises(GroundcrewError, match="does not answer at .*SSH-2.0"),
    ):
        fetch(host, channel.address)


def test_name_and_password_in_an_address_are_sent_and_never_shown(host: Host) -> None:
    with serve(host.channel) as channel:
        address = channel.address.replace("//", "//team:p%40ss@")
        assert fetch(host, address) == 2
    expected = "Basic " + base64.b64encode(b"team:p@ss").decode()
    assert [h["Authorization"] for h in channel.headers] == [expected] * 2
    environments.files.remove_tree(host.layout.archives)
    with serve(host.channel, status(401)) as channel:
        address = channel.address.replace("//", "//team:p%40ss@")
        with pytest.raises(
            GroundcrewError, match=r"refuses .*answered 401\. Check the name"
        ) as caught:
            fetch(host, address)
    assert "p%40ss" not in str(caught.value) and "team" not in str(caught.value)


def test_a_redirection_to_elsewhere_is_followed_without_the_password(host: Host) -> None:
    with serve(host.channel) as mirror:

        def redirect(handler: Any, _: int, content: bytes) -> bool:
            handler.send_response(302)
            handler.send_header("Location", mirror.address + handler.path)
            handler.end_headers()
            return True

        with serve(host.channel, redirect) as channel:
            assert fetch(host, channel.address.replace("//", "//team:secret@")) == 2
    assert all("Authorization" not in headers for headers in mirror.headers)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_nothing_half_written_stays(
    host: Host, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened = Path.open

    class Full:
        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[:10])
            self.file.flush()
            raise OSError(number, os.strerror(number))

    def open_(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = opened(path, mode, *more, **named)
        return Full(file) if path.name.endswith(".part") else file

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(
        GroundcrewError, match=r"No space is left in .*while fetching .*run it again"
    ):
        fetch(host, host.channel.as_uri())
    assert left(host) == []


def test_a_download_that_is_killed_goes_on_with_what_is_missing(host: Host) -> None:
    text = host.lock("a", ONE, OTHER)
    program = (
        "import sys; from pathlib import Path; from groundcrew.conda import environments as e;"
        "from groundcrew.conda.layout import Layout; root, lock, address = sys.argv[1:];"
        "e.ensure(Layout(Path(root)), 'a', lock, e.Settings({'local': address}))"
    )
    with serve(host.channel, slow("one-")) as channel:
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(host.layout.root), text, channel.address],
            env={**os.environ, "PYTHONPATH": str(MODULE_UTILS)},
        )
        assert channel.halfway.wait(60)
        deadline = time.monotonic() + 30
        wanted = {OTHER.file_name, PYTHON.file_name}
        while not (wanted <= set(left(host)) and any(n.endswith(".part") for n in left(host))):
            assert time.monotonic() < deadline, left(host)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert host.layout.names() == []
    with serve(host.channel) as channel:
        done = environments.ensure(host.layout, "a", text, Settings({"local": channel.address}))
    assert done.downloaded == 1 and dict(channel.asked) == {ONE.file_name: 1}
    assert drift.scan(host.layout, "a")["ok"]
    assert not [name for name in left(host) if name.endswith(".part")]


def test_prune_removes_the_parts_of_a_download_that_nobody_goes_on_with(host: Host) -> None:
    host.ensure("a", ONE)
    for folder in (host.layout.archives / ("1" * 64), next(iter(host.layout.archives.iterdir()))):
        folder.mkdir(exist_ok=True)
        (folder / ".x.conda.1.part").write_bytes(b"x")
    environments.prune(host.layout)
    assert len(list(host.layout.archives.iterdir())) == 2
    assert not list(host.layout.archives.rglob("*.part"))


def test_the_same_file_name_in_two_channels_is_two_packages(tmp_path: Path) -> None:
    host, other = Host(tmp_path / "1"), Host(tmp_path / "2", (PYTHON, ONE))
    host.ensure("a", ONE)
    changed = other.channel / ONE.directory / ONE.file_name
    changed.write_bytes((host.channel / TWO.directory / TWO.file_name).read_bytes())
    package = locked(other.channel, ONE, channel="second")
    text = host.lock("b").rstrip() + f"\n{package.line}\n"
    settings = Settings({"local": host.channel.as_uri(), "second": other.channel.as_uri()})
    environments.ensure(host.layout, "b", text, settings)
    for name, version in (("a", "1.0"), ("b", "2.0")):
        found = host.file(name, "lib/python3.11/site-packages/one.py").read_text()
        assert found == f"VERSION = '{version}'\n"
