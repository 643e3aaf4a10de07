"""A Python wheel as a Conda package: its files where Conda has them, its requirements as Conda's.

Wheels: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Collection
from email.parser import BytesHeaderParser
from pathlib import Path

from conda_package import PLACEHOLDER, File, Package
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

PYTHON = "3.11"
# Whatever runs this program: the packages are for CPython 3.11 on Linux.
_MARKERS = default_environment() | {
    "implementation_name": "cpython",
    "implementation_version": PYTHON,
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": f"{PYTHON}.0",
    "python_version": PYTHON,
    "sys_platform": "linux",
    "extra": "",
}
_SCRIPT = """\
#!{prefix}/bin/python
# -*- coding: utf-8 -*-
import sys

from {module} import {function}

if __name__ == "__main__":
    sys.exit({call}())
"""


def package_of(wheel: Path, channel: Collection[str]) -> Package:
    """Read a wheel. ``channel`` names the packages that may be depended on: others are left out of ``depends``."""
    name, version, _, tags = parse_wheel_filename(wheel.name)
    pure = all(tag.abi == "none" and tag.platform == "any" for tag in tags)
    with zipfile.ZipFile(wheel) as archive:
        contents = {item: archive.read(item) for item in archive.namelist() if item[-1] != "/"}
    dist_info = next(i.partition("/")[0] for i in contents if ".dist-info/" in i)
    metadata = BytesHeaderParser().parsebytes(contents[f"{dist_info}/METADATA"])
    commands = _commands(contents.get(f"{dist_info}/entry_points.txt", b"").decode())

    site = "site-packages/" if pure else f"lib/python{PYTHON}/site-packages/"
    scripts: dict[str, File] = {}
    files: dict[str, bytes | File] = {}
    for item, data in contents.items():
        top, _, rest = item.partition("/")
        if not top.endswith(".data"):
            files[site + item] = data
            continue
        kind, _, path = rest.partition("/")
        if kind != "scripts":
            raise SystemExit(f"{wheel.name} has {item}: only scripts are known in a .data folder")
        text = re.sub(rb"\A#!python", b"#!" + PLACEHOLDER.encode() + b"/bin/python", data)
        scripts[path] = File(text, executable=True)
    if not pure:  # an installer makes those of noarch packages
        scripts |= {command: _script(target) for command, target in commands.items()}
    folder = "python-scripts/" if pure else "bin/"
    installer = b"conda\n"
    record = _record(contents[f"{dist_info}/RECORD"], dist_info, installer, scripts)
    files |= {
        f"{site}{dist_info}/INSTALLER": installer,
        f"{site}{dist_info}/RECORD": record,
        **{folder + path: script for path, script in scripts.items()},
    }

    supported = f">={PYTHON},<3.{int(PYTHON[2:]) + 1}"
    if pure:
        supported = _conda_versions(SpecifierSet(metadata.get("Requires-Python", "")))
    requirements = (Requirement(text) for text in metadata.get_all("Requires-Dist", []))
    wanted = {
        canonicalize_name(r.name): r.specifier
        for r in requirements
        if canonicalize_name(r.name) in channel
        and (r.marker is None or r.marker.evaluate(_MARKERS))
    }
    glibc = sorted(int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", wheel.name))
    return Package(
        name,
        str(version),
        build="py_0" if pure else f"py{PYTHON.replace('.', '')}_0",
        depends=(
            *(f"__glibc >=2.{minor},<3" for minor in glibc[:1]),
            *(f"{n} {_conda_versions(s)}".strip() for n, s in sorted(wanted.items())),
            f"python {supported}".strip(),
        ),
        files=files,
        noarch="python" if pure else "",
        entry_points=tuple(f"{c} = {t}" for c, t in sorted(commands.items())) if pure else (),
    )


def _commands(text: str) -> dict[str, str]:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of commands keep their case
    parser.read_string(text)
    return dict(parser["console_scripts"]) if parser.has_section("console_scripts") else {}


def _script(target: str) -> File:
    module, _, function = target.replace(" ", "").partition(":")
    text = _SCRIPT.format(
        prefix=PLACEHOLDER, module=module, function=function.partition(".")[0], call=function
    )
    return File(text, executable=True)


def _record(old: bytes, dist_info: str, installer: bytes, scripts: Collection[str]) -> bytes:
    """RECORD as Conda's packages have it: INSTALLER says conda; scripts have no hash, the prefix goes into them."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(installer).digest()).rstrip(b"=").decode()
    rows = [
        row
        for row in csv.reader(io.StringIO(old.decode()))
        if row and not row[0].partition("/")[0].endswith(".data")
    ]
    rows.append([f"{dist_info}/INSTALLER", f"sha256={digest}", str(len(installer))])
    rows += [[f"../../../bin/{script}", "", ""] for script in scripts]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(sorted(rows))
    return text.getvalue().encode()


def _conda_versions(specifiers: SpecifierSet) -> str:
    """Conda's spelling of version specifiers; both know ==, !=, >=, ~= and a comma for "and"."""
    return ",".join(sorted(str(s).replace(" ", "") for s in specifiers))
