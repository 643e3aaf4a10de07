"""py-rattler and uv on a host, from their wheels."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from groundcrew.conda import tools
from groundcrew.conda.layout import Layout
from groundcrew.errors import GroundcrewError


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "root")


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner.format(stem=f"{name}-{version}"), text)


UV = {"{stem}.data/scripts/uv": "#!/bin/sh\necho uv\n", "uv/__init__.py": ""}


def test_a_wheel_is_unpacked_and_its_programs_can_be_run(layout: Layout, tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "uv", "0.9.0", UV)
    assert tools.missing(layout, ["uv==0.9.0", "py-rattler==0.28.0"]) == [
        "uv==0.9.0",
        "py-rattler==0.28.0",
    ]
    tools.unpack(layout, "uv==0.9.0", tmp_path / "wheels")
    assert tools.missing(layout, ["uv==0.9.0"]) == []
    assert tools.uv(layout) == layout.tools / "uv-0.9.0/uv-0.9.0.data/scripts/uv"
    assert tools.uv(layout).stat().st_mode & 0o111 == 0o111


def test_another_version_replaces_the_old_one_and_no_other_tool(
    layout: Layout, tmp_path: Path
) -> None:
    wheel(tmp_path / "wheels", "uv", "0.9.0", UV)
    wheel(tmp_path / "wheels", "uv", "0.10.0", UV)
    wheel(tmp_path / "wheels", "py_rattler", "0.28.0", {"rattler/__init__.py": ""})
    for requirement in ("uv==0.9.0", "py-rattler==0.28.0", "uv==0.10.0"):
        tools.unpack(layout, requirement, tmp_path / "wheels")
    assert sorted(p.name for p in layout.tools.iterdir()) == ["py_rattler-0.28.0", "uv-0.10.0"]
    assert tools.missing(layout, ["uv==0.9.0", "uv==0.10.0"]) == ["uv==0.9.0"]


def test_a_wheel_that_is_not_there_is_named(layout: Layout, tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "uv", "0.9.0", UV)
    with pytest.raises(GroundcrewError, match=r"holds no wheel of uv==1\.0 for this machine"):
        tools.unpack(layout, "uv==1.0", tmp_path / "wheels")
    with pytest.raises(GroundcrewError, match="holds no wheel"):
        tools.unpack(layout, "uv==1.0", tmp_path / "nonexistent")


def test_a_damaged_wheel_leaves_the_old_version_and_no_rest(layout: Layout, tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "uv", "0.9.0", UV)
    tools.unpack(layout, "uv==0.9.0", tmp_path / "wheels")
    (tmp_path / "wheels/uv-0.9.1-py3-none-any.whl").write_bytes(b"half of it")
    with pytest.raises(
        GroundcrewError, match=r"uv-0\.9\.1-py3-none-any\.whl could not be unpacked"
    ):
        tools.unpack(layout, "uv==0.9.1", tmp_path / "wheels")
    assert [p.name for p in layout.tools.iterdir()] == ["uv-0.9.0"]
    # What a kill left is in nobody's way.
    (layout.tools / ".uv-0.9.1.part/x").mkdir(parents=True)
    wheel(tmp_path / "wheels", "uv", "0.9.1", UV)
    (tmp_path / "wheels/uv-0.9.1-py3-none-any.whl").unlink()
    tools.unpack(layout, "uv==0.9.1", tmp_path / "wheels")
    assert [p.name for p in layout.tools.iterdir()] == ["uv-0.9.1"]


def test_tools_that_are_not_there_are_named(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rattler", None)
    with pytest.raises(GroundcrewError, match=r"py-rattler is not in .*Run the deploy again"):
        tools.rattler(layout)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(GroundcrewError, match="uv is not in"):
        tools.uv(layout)


def test_the_tools_of_a_root_come_before_what_is_importable_anyway(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "WHERE = 'tools'\n"
    wheel(tmp_path / "wheels", "py_rattler", "0.28.0", {"rattler/__init__.py": text})
    tools.unpack(layout, "py-rattler==0.28.0", tmp_path / "wheels")
    kept = {name: module for name, module in sys.modules.items() if name.startswith("rattler")}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert tools.rattler(layout).WHERE == "tools"
    finally:
        sys.modules.pop("rattler", None)
        sys.modules.update(kept)
