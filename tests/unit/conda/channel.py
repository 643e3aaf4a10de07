"""A Conda channel of tiny packages in a folder, made in milliseconds.

    address = make_channel(tmp_path / "channel", Package("six", "1.16"), Package("app", depends=("six >=1.16",)))

Package, File, Link and PLACEHOLDER are those of the test channel (tests/conda_channel/conda_package.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from conda_package import PLACEHOLDER, File, Link, Package, write
from groundcrew.conda.lock import CondaPackage
from rattler.index import index_fs

__all__ = ["PLACEHOLDER", "File", "Link", "Package", "locked", "make_channel", "write"]


def make_channel(folder: Path, *packages: Package) -> str:
    """Add packages to the channel in ``folder`` and index it; returns its file:// address."""
    for directory in ("noarch", "linux-64", "linux-aarch64"):
        (folder / directory).mkdir(parents=True, exist_ok=True)
    for package in packages:
        write(package, folder)
    asyncio.run(index_fs(folder, write_zst=False, write_shards=False, force=True))
    return folder.as_uri()


def locked(folder: Path, package: Package, channel: str = "local") -> CondaPackage:
    """The line of a lock for a package of the channel in ``folder``."""
    content = (folder / package.directory / package.file_name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return CondaPackage(channel, package.directory, package.file_name, digest)
