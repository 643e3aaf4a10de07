"""The packages of the test channel: the same bytes each time, and what a real installer makes of them."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import zipfile
from pathlib import Path

import pytest
from channel import PLACEHOLDER, File, Link, Package, make_channel, write
from conda_package import PLACEHOLDER as SAME_PLACEHOLDER
from interpreters import CPYTHON, PYPY
from package_index import Wheel
from rattler import VirtualPackage, install, solve
from wheel_package import package_of


def installed(folder: Path, *specs: str, packages: tuple[Package, ...]) -> Path:
    """A prefix with packages from a channel of their own."""

    address = make_channel(folder / "channel", *packages)

    async def run() -> None:
        records = await solve(
            [address],
            list(specs),
            platforms=["linux-64", "noarch"],
            virtual_packages=VirtualPackage.detect(),
        )
        await install(records, folder / "prefix", cache_dir=folder / "cache", show_progress=False)

    asyncio.run(run())
    return folder / "prefix"


def wheel_file(folder: Path, wheel: Wheel, **more: str) -> Path:
    path = folder / wheel.file_name
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**wheel.files, **more}.items():
            archive.writestr(name, text)
    return path


TOOL = Wheel("tool", "1.0", requires=("lib>=1,<2", "other; sys_platform == 'win32'", "absent"))
ENTRY_POINTS = {"tool-1.0.dist-info/entry_points.txt": "[console_scripts]\nrun-tool = tool:main\n"}
SCRIPT = {"tool-1.0.data/scripts/old.py": "#!python\nprint(1)\n"}


@pytest.mark.parametrize("suffix", [".conda", ".tar.bz2"])
def test_a_package_has_the_same_bytes_whatever_the_order_of_its_files(
    tmp_path: Path, suffix: str
) -> None:
    files = {"b/x": File("x", executable=True), "a": "y", "l": Link("a")}
    first = write(Package("p", files=files, suffix=suffix), tmp_path / "1")
    reordered = dict(reversed(files.items()))
    second = write(Package("p", files=reordered, suffix=suffix), tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()
    # Another number here means other packages everywhere: the committed locks must be written again.
    expected = {
        ".conda": "f188cce2b9201795",
        ".tar.bz2": "e0d5e50ec8bcfd16",
    }
    assert hashlib.sha256(first.read_bytes()).hexdigest()[:16] == expected[suffix]


@pytest.mark.parametrize("suffix", [".conda", ".tar.bz2"])
def test_an_installer_links_files_modes_links_and_the_prefix(tmp_path: Path, suffix: str) -> None:
    assert PLACEHOLDER == SAME_PLACEHOLDER
    package = Package(
        "p",
        files={
            "bin/run": File(f"#!{PLACEHOLDER}/bin/sh\n", executable=True),
            "lib/data": b"\x00\x01",
            "bin/again": Link("run"),
        },
        suffix=suffix,
    )
    prefix = installed(tmp_path, "p", packages=(package,))
    assert (prefix / "bin/run").read_text() == f"#!{prefix}/bin/sh\n"
    assert (prefix / "bin/run").stat().st_mode & 0o111
    assert (prefix / "bin/again").readlink() == Path("run")
    assert (prefix / "lib/data").read_bytes() == b"\x00\x01"


def test_a_wheel_becomes_a_package_with_condas_requirements(tmp_path: Path) -> None:
    package = package_of(wheel_file(tmp_path, TOOL, **ENTRY_POINTS, **SCRIPT), {"lib", "other"})
    assert (package.noarch, package.build) == ("python", "py_0")
    assert package.depends == ("lib <2,>=1", "python")
    assert package.entry_points == ("run-tool = tool:main",)
    assert "site-packages/tool.py" in package.files
    assert "python-scripts/old.py" in package.files
    native = Wheel("tool", "1.0", tag="cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64")
    package = package_of(wheel_file(tmp_path, native, **ENTRY_POINTS), set())
    assert (package.noarch, package.directory, package.build) == ("", "linux-64", "py311_0")
    assert package.depends == ("__glibc >=2.27,<3", "python >=3.11,<3.12")
    assert (
        "bin/run-tool" in package.files and "lib/python3.11/site-packages/tool.py" in package.files
    )


def test_a_wheel_with_files_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    wheel = wheel_file(tmp_path, TOOL, **{"tool-1.0.data/headers/tool.h": ""})
    with pytest.raises(SystemExit, match="headers"):
        package_of(wheel, set())


@pytest.mark.parametrize(
    ("python", "site"),
    [(CPYTHON, "lib/python3.11/site-packages"), (PYPY, "lib/pypy3.9/site-packages")],
)
def test_packages_without_architecture_follow_the_interpreters_folder(
    tmp_path: Path, python: Package, site: str
) -> None:
    tool = package_of(wheel_file(tmp_path, TOOL, **ENTRY_POINTS, **SCRIPT), set())
    prefix = installed(tmp_path, "tool", packages=(python, tool))
    assert (prefix / site / "tool.py").exists()
    assert (prefix / site / "tool-1.0.dist-info/INSTALLER").read_text() == "conda\n"
    # Entry points name bin/python3.<minor>, scripts bin/python.
    for command in ("run-tool", "old.py"):
        interpreter = (prefix / "bin" / command).read_text().splitlines()[0][2:]
        assert Path(interpreter).is_symlink() and Path(interpreter).parent == prefix / "bin"
    rows = list(csv.reader((prefix / site / "tool-1.0.dist-info/RECORD").open()))
    installer = next(row for row in rows if row[0].endswith("INSTALLER"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"conda\n").digest()).rstrip(b"=").decode()
    assert installer[1:] == [f"sha256={digest}", "6"]
