"""A host over a tiny channel: what tests of building, drift and healing start from."""

from __future__ import annotations

from pathlib import Path

from channel import PLACEHOLDER, Package, locked, make_channel
from groundcrew.conda import environments
from groundcrew.conda.environments import Settings
from groundcrew.conda.layout import Layout
from groundcrew.conda.lock import Lock, PlatformLock, render

LIB = "lib/python3.11/site-packages"


def library(name: str, version: str) -> Package:
    """A Python package with metadata, as conda-forge has them."""
    info = f"{LIB}/{name}-{version}.dist-info"
    return Package(
        name,
        version,
        files={
            f"{LIB}/{name}.py": f"VERSION = '{version}'\n".encode(),
            f"{info}/METADATA": f"Name: {name}\nVersion: {version}\n".encode(),
            f"{info}/INSTALLER": b"conda\n",
            f"bin/{name}": f"#!{PLACEHOLDER}/bin/python\nprint('{version}')\n".encode(),
        },
    )


PYTHON = Package("python", "3.11.2", files={"pyvenv.cfg": b"home = /usr/bin\n"})
ONE, TWO, OTHER = library("one", "1.0"), library("one", "2.0"), library("other", "1.0")


class Host:
    """A root, and a channel of packages; python is in every environment."""

    def __init__(
        self, folder: Path, packages: tuple[Package, ...] = (PYTHON, ONE, TWO, OTHER)
    ) -> None:
        self.layout = Layout(folder / "root")
        self.channel = folder / "channel"
        address = make_channel(self.channel, *packages)
        self.settings = Settings({"local": address})

    def lock(self, name: str, *packages: Package) -> str:
        files = tuple(locked(self.channel, package) for package in (PYTHON, *packages))
        platform = self.settings.platform
        return render(Lock(name, "0" * 64, {platform: PlatformLock(files)}))

    def ensure(self, name: str, *packages: Package, heal: bool = False) -> environments.Outcome:
        return environments.ensure(
            self.layout, name, self.lock(name, *packages), self.settings, heal=heal
        )

    def file(self, name: str, path: str) -> Path:
        return self.layout.link(name) / path

    def overwrite(self, name: str, path: str, content: str) -> None:
        """In place, as an editor that keeps the inode does."""
        path_here = self.file(name, path)
        path_here.chmod(0o644)
        path_here.write_text(content)
