"""Writes Conda packages: the same description gives the same bytes on every machine.

conda-package-streaming writes the time of day into each package's zip entries, and its compressor's version depends on the
interpreter; a committed lock needs neither. Format: https://docs.conda.io/projects/conda-build/en/stable/resources/package-spec.html
and https://github.com/conda/ceps/blob/main/cep-0034.md (files of info/), cep-0035.md (.conda).
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

# What stands for the prefix in a package's files; an installer replaces it by the environment's own.
PLACEHOLDER = "/opt/groundcrew_test_channel_placeholder_placehold_placehold_placehold"
# A zip knows no time before 1980.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_LEVEL = 1


@dataclass(frozen=True)
class File:
    """A file of a package. Its content may hold PLACEHOLDER; ``executable`` gives it mode 0755."""

    content: bytes | str
    executable: bool = False

    @property
    def data(self) -> bytes:
        return self.content.encode() if isinstance(self.content, str) else self.content


@dataclass(frozen=True)
class Link:
    """A symbolic link of a package."""

    target: str


@dataclass(frozen=True)
class Package:
    """A package file to be. ``files`` maps paths below the prefix to content.

    With ``noarch="python"`` paths start with site-packages/ and ``entry_points`` are "command = module:function".
    ``index`` is added to info/index.json (constrains, python_site_packages_path, …).
    """

    name: str
    version: str = "1.0"
    build: str = "0"
    depends: tuple[str, ...] = ()
    files: Mapping[str, bytes | str | File | Link] = field(default_factory=dict)
    noarch: str = ""
    subdir: str = "linux-64"
    build_number: int = 0
    entry_points: tuple[str, ...] = ()
    index: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ".conda"

    @property
    def directory(self) -> str:
        return "noarch" if self.noarch else self.subdir

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.version}-{self.build}"

    @property
    def file_name(self) -> str:
        return self.stem + self.suffix


def write(package: Package, channel: Path) -> Path:
    """Write the package below a channel's folder; returns its file."""
    entries = {
        path: content if isinstance(content, (File, Link)) else File(content)
        for path, content in sorted(package.files.items())
    }
    info = {f"info/{name}": File(text) for name, text in sorted(_info(package, entries).items())}
    target = channel / package.directory / package.file_name
    target.parent.mkdir(parents=True, exist_ok=True)
    if package.suffix == ".tar.bz2":
        target.write_bytes(bz2.compress(_tar({**info, **entries}), compresslevel=1))
    else:
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
        with zipfile.ZipFile(target, "w") as archive:
            _store(archive, "metadata.json", json.dumps({"conda_pkg_format_version": 2}).encode())
            for part, content in (("pkg", entries), ("info", info)):
                packed = compressor.compress(_tar(content))
                _store(archive, f"{part}-{package.stem}.tar.zst", packed)
    return target


def _info(package: Package, entries: Mapping[str, File | Link]) -> dict[str, str]:
    index: dict[str, Any] = {
        "arch": None if package.noarch else {"linux-64": "x86_64"}.get(package.subdir, "aarch64"),
        "build": package.build,
        "build_number": package.build_number,
        "depends": list(package.depends),
        "name": package.name,
        "platform": None if package.noarch else "linux",
        "subdir": package.directory,
        "timestamp": 0,
        "version": package.version,
        **package.index,
    }
    if package.noarch:
        index["noarch"] = package.noarch
    texts = {
        "index.json": index,
        "paths.json": {
            "paths": [_path(path, entry) for path, entry in entries.items()],
            "paths_version": 1,
        },
        "about.json": {"summary": f"{package.name}, made for Groundcrew's tests"},
    }
    if package.noarch == "python":
        noarch = {"type": "python", "entry_points": list(package.entry_points)}
        texts["link.json"] = {"noarch": noarch, "package_metadata_version": 1}
    files = "".join(path + "\n" for path in entries)
    return {"files": files} | {
        name: json.dumps(text, indent=1, sort_keys=True) + "\n" for name, text in texts.items()
    }


def _path(path: str, entry: File | Link) -> dict[str, Any]:
    if isinstance(entry, Link):
        return {"_path": path, "path_type": "softlink"}
    found: dict[str, Any] = {
        "_path": path,
        "path_type": "hardlink",
        "sha256": hashlib.sha256(entry.data).hexdigest(),
        "size_in_bytes": len(entry.data),
    }
    if PLACEHOLDER.encode() in entry.data:
        # A placeholder among zero bytes is replaced at its own length.
        mode = "binary" if b"\0" in entry.data else "text"
        found |= {"file_mode": mode, "prefix_placeholder": PLACEHOLDER}
    return found


def _tar(entries: Mapping[str, File | Link]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, entry in entries.items():
            member = tarfile.TarInfo(path)  # owner 0, time 0
            if isinstance(entry, Link):
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.target, 0o777
                archive.addfile(member)
            else:
                member.size, member.mode = len(entry.data), 0o755 if entry.executable else 0o644
                archive.addfile(member, io.BytesIO(entry.data))
    return buffer.getvalue()


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
    member.external_attr = 0o644 << 16
    member.create_system = 3  # as on Linux, wherever this runs
    archive.writestr(member, content)
