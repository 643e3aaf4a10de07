"""py-rattler and uv on a host: unpacked from their wheels, so that neither pip nor Conda has to be there."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType

from ..errors import GroundcrewError
from .layout import Layout


def directory(layout: Layout, requirement: str) -> Path:
    """Where a tool such as ``py-rattler==0.28.0`` lies, or would."""
    return layout.tools / _stem(requirement)


def missing(layout: Layout, requirements: list[str]) -> list[str]:
    """Those that are not there in this very version."""
    return [r for r in requirements if not directory(layout, r).is_dir()]


def unpack(layout: Layout, requirement: str, wheels: Path) -> None:
    """Unpack the wheel of a tool from a folder of wheels; an older version is removed.

    Raises GroundcrewError: the folder holds no such wheel, the wheel is damaged, or there is no space for it.
    """
    final = directory(layout, requirement)
    found = sorted(wheels.glob(f"{_stem(requirement)}-*.whl"))
    if not found:
        raise GroundcrewError(f"{wheels} holds no wheel of {requirement} for this machine.")
    temporary = final.with_name(f".{final.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            wheel.extractall(temporary)
    except (OSError, zipfile.BadZipFile) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise GroundcrewError(
            f"{found[0].name} could not be unpacked into {layout.tools}: {error}. Make room there, or remove the wheel where it was"
            " copied from; then run it again."
        ) from error
    for program in temporary.glob("*.data/scripts/*"):
        program.chmod(0o755)
    os.replace(temporary, final)
    name = _stem(requirement).rsplit("-", 1)[0]
    for other in layout.tools.glob(f"{name}-*"):
        if other != final:
            # Out of sight first: half of it must not be found as a tool.
            shutil.rmtree(other.rename(temporary))


def rattler(layout: Layout) -> ModuleType:
    """The module rattler of this root's tools, or the one that is importable anyway.

    Raises GroundcrewError: there is none.
    """
    for path in sorted(layout.tools.glob("py_rattler-*")):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    try:
        import rattler
    except ImportError as error:
        raise GroundcrewError(
            f"py-rattler is not in {layout.tools} ({error}). Run the deploy again; it brings it."
        ) from None
    return rattler


def uv(layout: Layout) -> Path:
    """The program uv.

    Raises GroundcrewError: there is none.
    """
    found = [*sorted(layout.tools.glob("uv-*/*.data/scripts/uv")), Path(sys.prefix) / "bin/uv"]
    for path in found:
        if path.exists():
            return path
    raise GroundcrewError(f"uv is not in {layout.tools}. Run the deploy again; it brings it.")


def _stem(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{name.replace('-', '_')}-{version}"
