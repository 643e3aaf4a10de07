"""A Python package index of tiny wheels in a folder, so that pip and uv need no network.

monkeypatch.setenv("UV_DEFAULT_INDEX", make_index(tmp_path / "index", Wheel("tool", "2.0", requires=("lib>=2",))))
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A wheel with one module of its name; ``tag`` other than any has no other effect than its file name."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    tag: str = "py3-none-any"

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.tag}.whl"

    @property
    def files(self) -> dict[str, str]:
        info = f"{self.name}-{self.version}.dist-info"
        metadata = [
            "Metadata-Version: 2.1",
            f"Name: {self.name}",
            f"Version: {self.version}",
            *(f"Requires-Dist: {requirement}" for requirement in self.requires),
        ]
        return {
            f"{self.name}.py": f"version = '{self.version}'\n",
            f"{info}/METADATA": "\n".join(metadata) + "\n",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {self.tag}\n",
            f"{info}/RECORD": f"{self.name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        }


def make_index(folder: Path, *wheels: Wheel) -> str:
    """Add wheels to the index in ``folder``; returns its file:// address."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        project = folder / wheel.name.replace("_", "-")
        project.mkdir(exist_ok=True)
        with zipfile.ZipFile(project / wheel.file_name, "w") as archive:
            for name, text in wheel.files.items():
                archive.writestr(zipfile.ZipInfo(name), text)
        links = [
            f'<a href="{path.name}#sha256={sha256(path)}">{path.name}</a>'
            for path in sorted(project.glob("*.whl"))
        ]
        (project / "index.html").write_text("\n".join(links))
    return folder.as_uri()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
