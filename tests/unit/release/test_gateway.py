"""What HAProxy is told, against a fake of its master socket."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from groundcrew.errors import GroundcrewError
from groundcrew.gateway import Gateway, Maps, MasterSocket, parse_map, parse_servers, saver


class FakeHaproxy:
    """Two processes: the one that accepts, and one that a reload left."""

    def __init__(self) -> None:
        # backend/server -> [address, port, admin state, requests]
        self.servers: dict[str, list[Any]] = {
            "model_digits/h1.a": ["10.0.0.1", 18080, 4, 3],
            "model_digits/h1.b": ["10.0.0.1", 18081, 5, 0],
            "grpc_digits/h1.a": ["10.0.0.1", 28080, 4, 0],
            "grpc_digits/h1.b": ["10.0.0.1", 28081, 5, 0],
            "model_digits/h2.a": ["10.0.0.2", 18080, 4, 0],
        }
        self.told: list[str] = []
        self.saved = 0
        self.broken: set[int] = set()
        self.cut_off: set[int] = set()
        self.now = 0.0
        self.stuck = False

    def workers(self) -> list[str]:
        return ["100", "90"]

    def command(self, worker: str, commands: Sequence[str]) -> str:
        answer = ""
        for command in commands:
            if command == "show servers state":
                answer += "1\n# be_id ...\n"
                for name, (address, port, admin, _) in self.servers.items():
                    backend, server = name.split("/")
                    result = 2 if port in self.broken else 3
                    answer += (
                        f"3 {backend} 1 {server} {address} 2 {admin} 1 1 0 15 {result} "
                        f"3 6 0 0 0 - {port} - 0 0 - - 0\n"
                    )
            elif command == "show servers conn":
                for name, server in self.servers.items():
                    answer += f"{name} 3/1 {server[0]} {server[1]} - 5000 {server[3]} 0 0\n"
            else:
                self.told.append(f"{worker} {command}")
                name, state = re.fullmatch(r"set server (\S+) state (\S+)", command).groups()  # type: ignore[union-attr]
                self.servers[name][2] = {"ready": 4, "drain": 12, "maint": 5}[state]
        return answer

    def save(self) -> None:
        self.saved += 1

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if not self.stuck:
            for server in self.servers.values():
                server[3] = 0

    def gateway(self) -> Gateway:
        return Gateway(
            self,  # type: ignore[arg-type]
            self.save,
            connects=lambda _address, port: port not in self.cut_off,
            monotonic=lambda: self.now,
            sleep=self.sleep,
        )

    def enabled(self) -> list[str]:
        return sorted(name for name, server in self.servers.items() if server[2] == 4)


def test_the_new_slot_is_up_before_the_old_one_is_drained() -> None:
    haproxy = FakeHaproxy()
    change = haproxy.gateway().send_to({"10.0.0.1": [18081, 28081]}, drain_seconds=30)
    assert change.enabled == ["model_digits/h1.b", "grpc_digits/h1.b"]
    assert change.disabled == ["model_digits/h1.a", "grpc_digits/h1.a"]
    assert (change.cut, change.unknown, haproxy.saved) == (0, [], 1)
    assert haproxy.enabled() == ["grpc_digits/h1.b", "model_digits/h1.b", "model_digits/h2.a"]
    states = [line.split()[-1] for line in haproxy.told if line.startswith("100 ")]
    assert states == ["ready"] * 2 + ["drain"] * 2 + ["maint"] * 2
    # The process that a reload left is told the same.
    assert [line[3:] for line in haproxy.told if line.startswith("90 ")] == [
        line[4:] for line in haproxy.told if line.startswith("100 ")
    ]
    again = haproxy.gateway().send_to({"10.0.0.1": [18081, 28081]}, drain_seconds=30)
    assert not again.changed and haproxy.saved == 1


def test_one_that_is_never_up_changes_nothing() -> None:
    haproxy = FakeHaproxy()
    haproxy.broken = {18081}
    with pytest.raises(GroundcrewError, match="check of model_digits/h1.b does not pass"):
        haproxy.gateway().send_to({"10.0.0.1": [18081, 28081]}, drain_seconds=30)
    assert haproxy.enabled() == ["grpc_digits/h1.a", "model_digits/h1.a", "model_digits/h2.a"]
    assert "drain" not in " ".join(haproxy.told)


def test_a_check_that_passed_long_ago_is_not_believed() -> None:
    haproxy = FakeHaproxy()
    haproxy.cut_off = {18081}
    with pytest.raises(GroundcrewError, match="check of model_digits/h1.b does not pass"):
        haproxy.gateway().send_to({"10.0.0.1": [18081, 28081]}, drain_seconds=30)
    assert haproxy.told == []


def test_a_request_that_never_ends_is_cut_and_counted() -> None:
    haproxy = FakeHaproxy()
    haproxy.stuck = True
    change = haproxy.gateway().send_to({"10.0.0.1": [18081]}, drain_seconds=7)
    assert haproxy.now >= 7 and change.cut == 6, "three in each process"


def test_check_mode_and_what_no_server_has() -> None:
    haproxy = FakeHaproxy()
    change = haproxy.gateway().send_to({"10.0.0.1": [18081, 19999]}, drain_seconds=30, check=True)
    assert change.changed and change.unknown == ["10.0.0.1:19999"]
    assert haproxy.told == []


def test_the_socket_of_the_master(tmp_path: Path) -> None:
    path = tmp_path / "master.sock"
    with pytest.raises(GroundcrewError, match="systemctl start haproxy"):
        MasterSocket(str(path)).workers()
    asked: list[str] = []

    def serve(listener: socket.socket) -> None:
        for answer in (
            b"#<PID> <type>\n1 master\n# workers\n20 worker 0\n# old workers\n10 worker 1\n",
            b"1\n",
        ):
            connection, _ = listener.accept()
            text = b""
            while block := connection.recv(1000):
                text += block
            asked.append(text.decode())
            connection.sendall(answer)
            connection.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        master = MasterSocket(str(path))
        assert master.workers() == ["20", "10"]
        assert parse_servers(master.command("20", ["show servers state"])) == []
        thread.join(10)
    assert asked == ["show proc\n", "@!20 show servers state\n"]
    with pytest.raises(GroundcrewError, match="instead of the state"):
        parse_servers("Permission denied\n")


def test_a_state_that_cannot_be_saved_is_said(tmp_path: Path) -> None:
    program = tmp_path / "save"
    program.write_text("#!/bin/sh\necho disk full >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(GroundcrewError, match="disk full"):
        saver(str(program))()


class FakeMaps:
    """Two processes with a map of clients each; the one that a reload left has an older one."""

    def __init__(self) -> None:
        self.maps = {"100": {"aa": "verify", "bb": "partner"}, "90": {"aa": "verify"}}
        self.told: list[str] = []
        self.gone: set[str] = set()

    def workers(self) -> list[str]:
        return ["100", "90"]

    def command(self, worker: str, commands: Sequence[str]) -> str:
        if worker in self.gone:
            raise GroundcrewError("gone")
        entries, answer = self.maps[worker], ""
        for command in commands:
            words = command.split()
            if words[0] == "show" and words[2] != "/keys.map":
                answer += "Unknown map identifier. Please use #<id> or <file>.\n"
            elif words[0] == "show":
                answer += "".join(f"0x55 {key} {value}\n" for key, value in entries.items())
            else:
                self.told.append(f"{worker} {command}")
                assert (words[0] == "add") == (words[3] not in entries)
                if words[0] == "del":
                    del entries[words[3]]
                else:
                    entries[words[3]] = words[4]
        return answer

    def follow(self, wanted: dict[str, str], check: bool = False) -> list[str]:
        return Maps(self).follow({"/keys.map": wanted}, check=check)  # type: ignore[arg-type]


def test_maps_of_all_processes_follow_their_files() -> None:
    fake = FakeMaps()
    wanted = {"aa": "verify", "cc": "partner"}
    assert fake.follow(wanted, check=True) == ["/keys.map: add cc", "/keys.map: del bb"]
    assert fake.told == []
    assert fake.follow(wanted) == ["/keys.map: add cc", "/keys.map: del bb"]
    assert fake.maps == {"100": wanted, "90": wanted}
    # The successor of a key is there before the key goes.
    assert fake.told[:2] == ["100 add map /keys.map cc partner", "100 del map /keys.map bb"]
    assert fake.follow(wanted) == []
    assert fake.follow({"aa": "verify", "cc": "other"}) == ["/keys.map: set cc"]


def test_maps_of_a_process_that_is_gone_by_now_are_nobodys() -> None:
    fake = FakeMaps()
    fake.gone = {"90"}
    fake.follow({"aa": "verify"})
    assert fake.maps["100"] == {"aa": "verify"}
    fake.gone = {"100"}
    with pytest.raises(GroundcrewError, match="gone"):
        fake.follow({})


def test_many_changes_are_told_in_portions() -> None:
    fake = FakeMaps()
    wanted = {f"{number:04x}": "partner" for number in range(120)}
    fake.follow(wanted)
    assert fake.maps == {"100": wanted, "90": wanted}


def test_a_map_that_haproxy_does_not_have_is_named() -> None:
    with pytest.raises(GroundcrewError, match=r"does not know the map /other.map.*reload"):
        Maps(FakeMaps()).follow({"/other.map": {"a": "b"}})  # type: ignore[arg-type]


def test_a_map_file_has_comments_and_values_with_spaces() -> None:
    text = "#\n# written by Ansible\n#\nkey value\nother  1:2 3 \n\nalone\n"
    assert parse_map(text) == {"key": "value", "other": "1:2 3"}
