"""Solving against tiny channels in a folder: what gets locked, what is kept, and what people read when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from channel import Package, locked, make_channel
from groundcrew.conda import solve as solving
from groundcrew.conda.lock import Lock, render
from groundcrew.conda.solve import Solution, lock_file, virtual_packages, write_text
from groundcrew.errors import GroundcrewError
from package_index import Wheel, make_index

BOTH = ["linux-64", "linux-aarch64"]
VIRTUAL: dict[str, Any] = {"__glibc": "2.35", "gpu": {"__cuda": "12.8"}}

PYTHON = Package("python", "3.11.2", build="0_cpython")
PYTHON_ARM = Package("python", "3.11.2", build="0_cpython", subdir="linux-aarch64")
A1 = Package("a", "1.0", noarch="python", depends=("python >=3.9", "b >=1"))
A2 = Package("a", "2.0", noarch="python", depends=("python >=3.9", "b >=2"))
B1, B2 = (Package("b", f"{n}.0", noarch="python", depends=("python",)) for n in (1, 2))
C1, C2 = (Package("c", f"{n}.0", noarch="python", depends=("python",)) for n in (1, 2))
CUDA = Package("torch", "2.5", build="cuda12_0", build_number=1, depends=("__cuda >=12",))
CPU = Package("torch", "2.5", build="cpu_0")


class Place:
    """A folder of specs and a channel `local`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.channel = folder / "specs", folder / "channel"
        self.folder.mkdir()
        self.channels = {"local": make_channel(self.channel, PYTHON, PYTHON_ARM, B1, A1, C1)}

    def spec(self, *dependencies: str, pip: tuple[str, ...] = (), name: str = "e") -> None:
        lines = ["channels: [local]", "dependencies:", *(f"  - '{d}'" for d in dependencies)]
        if pip:
            lines += ["  - pip:", *(f"      - '{r}'" for r in pip)]
        (self.folder / f"{name}.yml").write_text("\n".join(lines) + "\n")

    def add(self, *packages: Package) -> None:
        make_channel(self.channel, *packages)

    def remove(self, package: Package) -> None:
        (self.channel / package.directory / package.file_name).unlink()
        make_channel(self.channel)

    def lock(self, *upgrade: str, platforms: list[str] | None = None, name: str = "e") -> Solution:
        """Solve and keep the lock, as `make lock` does."""
        solution = lock_file(
            self.folder, name, self.channels, platforms or ["linux-64"], VIRTUAL, upgrade
        )
        write_text(self.folder / f"{name}.lock", solution.text)
        return solution

    def failure(self, *upgrade: str, **options: Any) -> str:
        with pytest.raises(GroundcrewError) as caught:
            self.lock(*upgrade, **options)
        return str(caught.value)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def versions(lock: Lock, platform: str = "linux-64") -> dict[str, str]:
    part = lock.platforms[platform]
    return {p.name: p.version for p in (*part.conda, *part.pip)}


def test_every_platform_gets_the_files_of_its_own_subdir(place: Place) -> None:
    place.spec("python=3.11", "a=1")
    lock = place.lock(platforms=BOTH).lock
    assert lock.platforms["linux-64"].conda == tuple(
        sorted(locked(place.channel, p) for p in (PYTHON, A1, B1))
    )
    assert locked(place.channel, PYTHON_ARM) in lock.platforms["linux-aarch64"].conda
    assert versions(lock) == versions(lock, "linux-aarch64")


def test_the_lock_has_no_address_and_the_same_inputs_give_the_same_bytes(
    place: Place, tmp_path: Path
) -> None:
    place.spec("python=3.11", "c", "a")
    first = place.lock(platforms=BOTH)
    assert "://" not in first.text and str(tmp_path) not in first.text
    # Elsewhere, indexed in another order, with the last lock at hand.
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.channels = {"local": str(make_channel(other.channel, C1, A1, B1))}
    other.spec("python=3.11", "c", "a")
    assert other.lock(platforms=BOTH[::-1]).text == first.text == place.lock(platforms=BOTH).text


def test_a_folder_is_an_address_too(place: Place) -> None:
    place.spec("b=1")
    place.channels = {"local": f"{place.channel}/"}
    assert versions(place.lock().lock)["b"] == "1.0"


def test_the_first_channel_that_has_a_package_gives_it(place: Place, tmp_path: Path) -> None:
    place.channels["team"] = make_channel(tmp_path / "team", B2)
    place.spec("b")
    spec = place.folder / "e.yml"
    spec.write_text(spec.read_text().replace("[local]", "[team, local]"))
    found = {p.name: p.channel for p in place.lock().lock.platforms["linux-64"].conda}
    assert found == {"b": "team", "python": "local"}


def test_virtual_packages_are_those_of_the_data_never_of_this_machine(place: Place) -> None:
    place.add(CUDA, CPU)
    place.spec("torch=2.5", name="gpu")
    place.spec("torch=2.5=cuda*", name="e")
    build = place.lock(name="gpu").lock.platforms["linux-64"].conda[0].build
    assert build == "cuda12_0"
    assert "__cuda" in place.failure(name="e")


def test_layers_of_virtual_packages_are_merged() -> None:
    data: dict[str, Any] = {
        "__glibc": "2.35",
        "__unix": 0,
        "linux-64": {"__archspec": "1 x86_64", "__glibc": "2.36"},
        "gpu": {"__glibc": "2.39"},
    }
    assert virtual_packages(data, "gpu", "linux-64") == {
        "__glibc": "2.39",
        "__unix": "0",
        "__archspec": "1 x86_64",
    }
    assert virtual_packages(data, "e", "linux-aarch64") == {"__glibc": "2.35", "__unix": "0"}


@pytest.mark.parametrize(
    "data", [{"glibc": "2.35"}, {"__glibc": ""}, {"__glibc": "1 2 3"}, {"e": "12.8"}]
)
def test_a_broken_virtual_package_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(GroundcrewError, match="conda_virtual_packages"):
        virtual_packages(data, "e", "linux-64")


def test_without_upgrade_everything_moves_and_the_difference_says_so(place: Place) -> None:
    place.spec("a", "c")
    place.lock()
    place.add(A2, B2, C2)
    solution = place.lock()
    assert versions(solution.lock) == {"a": "2.0", "b": "2.0", "c": "2.0", "python": "3.11.2"}
    assert solution.difference[0] == "e, linux-64: 0 added, 0 removed, 3 changed"
    assert solution.difference[1].startswith("  ~ a 1.0 0 ")


def test_an_upgrade_moves_the_named_package_and_what_it_forces_alone(place: Place) -> None:
    place.spec("a", "c")
    place.lock()
    place.add(A2, B2, C2)
    assert versions(place.lock("c").lock) == {
        "a": "1.0",
        "b": "1.0",
        "c": "2.0",
        "python": "3.11.2",
    }
    assert versions(place.lock("A").lock) == {
        "a": "2.0",
        "b": "2.0",
        "c": "2.0",
        "python": "3.11.2",
    }


def test_an_upgrade_may_name_a_package_that_the_spec_has_newly(place: Place) -> None:
    place.spec("a")
    place.lock()
    place.add(A2, B2, C2)
    place.spec("a", "c")
    assert versions(place.lock("c").lock)["a"] == "1.0"


def test_an_upgrade_of_an_unknown_package_and_without_a_lock_is_refused(place: Place) -> None:
    place.spec("a")
    assert "has no lock yet" in place.failure("a")
    place.lock()
    assert "has no package 'nope'" in place.failure("nope")


def test_a_locked_file_that_vanished_is_said_and_solved_anew(place: Place) -> None:
    place.spec("a", "c")
    place.lock()
    place.add(B2, C2)
    place.remove(B1)
    solution = place.lock("c")
    assert versions(solution.lock)["b"] == "2.0"
    assert any(
        "b-1.0-0.conda, locked so far, is gone in channel local (noarch)" in warning
        for warning in solution.warnings
    )


def test_a_locked_file_with_other_bytes_is_said(place: Place) -> None:
    place.spec("b", "c")
    place.lock()
    place.add(Package("b", "1.0", noarch="python", depends=("python",), files={"x": "other"}), C2)
    solution = place.lock("c")
    assert any("b-1.0-0.conda, locked so far, has other bytes now" in w for w in solution.warnings)
    assert "  ~ b 1.0 0 " in "\n".join(solution.difference)


def test_a_conflict_shows_the_solvers_explanation_and_leaves_the_lock(place: Place) -> None:
    place.add(A2, B2)
    place.spec("a=2")
    place.lock()
    before = (place.folder / "e.lock").read_bytes()
    place.spec("a=2", "b=1")
    message = place.failure()
    assert "no solution for linux-64" in message and "With __glibc 2.35" in message
    # The solver's own words: which package wants what.
    assert "a 2.0 would require" in message and "b >=2" in message
    assert (place.folder / "e.lock").read_bytes() == before


def test_a_package_that_does_not_exist_is_named(place: Place) -> None:
    place.spec("nope=1")
    assert "nope" in place.failure()


def test_a_channel_without_address_names_the_variable(place: Place) -> None:
    place.spec("a")
    place.channels = {"conda-forge": "https://example.org"}
    message = place.failure()
    assert "Channel 'local' has no address" in message and "`conda_channels`" in message
    assert "conda-forge" in message


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/channel", "file:///nonexistent/channel"])
def test_a_channel_that_does_not_answer_is_named_with_its_address(
    place: Place, address: str
) -> None:
    place.spec("a")
    place.channels = {"local": address}
    message = place.failure()
    assert f"Channel 'local' cannot be read at {address}" in message
    assert "`conda_channels`" in message


def test_passwords_of_an_address_are_not_shown(place: Place) -> None:
    place.spec("a")
    place.channels = {"local": "http://robot:secret@127.0.0.1:9/t/token/channel"}
    message = place.failure()
    assert "secret" not in message and "token/" not in message and "127.0.0.1:9" in message


def test_a_missing_spec_lists_those_that_are_there(place: Place) -> None:
    place.spec("a", name="tools")
    assert "Specs there: tools" in place.failure()


def test_unknown_platforms_are_refused(place: Place) -> None:
    place.spec("a")
    assert "conda_platforms: osx-64" in place.failure(platforms=["osx-64"])


def test_an_unreadable_last_lock_does_not_stop_a_new_one_but_an_upgrade(place: Place) -> None:
    place.spec("b")
    (place.folder / "e.lock").write_text("<<<<<<< HEAD\n")
    assert "<<<<<<< HEAD" in place.failure("b")
    solution = place.lock()
    assert any("The last lock could not be compared" in w for w in solution.warnings)
    assert (place.folder / "e.lock").read_text() == render(solution.lock)


def test_a_lock_is_replaced_in_one_step_and_only_when_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.lock"
    assert write_text(path, "1") and not write_text(path, "1")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(solving.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "2")
    assert path.read_text() == "1" and list(tmp_path.iterdir()) == [path]


class TestPip:
    @pytest.fixture(autouse=True)
    def _index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.index = tmp_path / "index"
        address = make_index(
            self.index,
            Wheel("tool", "1.0", requires=("lib", "b")),
            Wheel("lib", "1.0"),
            Wheel("lib", "2.0"),
            Wheel("b", "1.0"),
            Wheel("b", "2.0"),
            Wheel("wants_new", "1.0", requires=("b>=2",)),
        )
        monkeypatch.delenv("UV_INDEX_URL", raising=False)
        monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
        # What setup.sh and the image builds honour.
        monkeypatch.setenv("PIP_INDEX_URL", address)

    def test_releases_are_locked_with_hashes_and_what_conda_provides_is_left_out(
        self, place: Place
    ) -> None:
        place.spec("python=3.11", "b=1", pip=("tool==1.0", "b>=1"))
        solution = place.lock(platforms=BOTH)
        for part in solution.lock.platforms.values():
            assert [(p.name, p.version, len(p.sha256)) for p in part.pip] == [
                ("lib", "2.0", 1),
                ("tool", "1.0", 1),
            ]
        assert "://" not in solution.text

    def test_an_upgrade_keeps_the_other_releases(self, place: Place) -> None:
        place.spec("python=3.11", "b=1", pip=("tool", "lib<2"))
        place.lock()
        make_index(self.index, Wheel("tool", "1.1", requires=("lib", "b")), Wheel("lib", "1.5"))
        place.spec("python=3.11", "b=1", pip=("tool", "lib"))
        kept = versions(place.lock("tool").lock)
        assert (kept["tool"], kept["lib"]) == ("1.1", "1.0")
        assert versions(place.lock("lib").lock)["lib"] == "2.0"

    def test_a_requirement_that_conda_provides_otherwise_names_both(self, place: Place) -> None:
        place.spec("python=3.11", "b=1", pip=("b==2.0",))
        assert "asks for b==2.0, Conda provides b 1.0" in place.failure()

    def test_a_conflict_further_down_shows_uvs_explanation(self, place: Place) -> None:
        place.spec("python=3.11", "b=1", pip=("wants_new==1.0",))
        message = place.failure()
        assert "beside Conda's b 1.0" in message and "depend on b>=2" in message

    def test_a_pip_section_needs_a_cpython(self, place: Place) -> None:
        place.add(Package("alone", "1.0"), Package("python", "3.9.1", build="0_73_pypy"))
        place.spec("alone=1", pip=("tool==1.0",))
        assert "has a pip section and no python" in place.failure()
        place.spec("python=3.9", pip=("tool==1.0",))
        assert "PyPy" in place.failure()
