"""Makes the lock of a Conda environment from its spec, for each platform. Controller only: it needs py-rattler and uv.

The same spec and the same channels give the same bytes. Nothing of this machine goes into a solution: the virtual packages
(glibc, kernel, CUDA) are those that hosts are known to have.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rattler import (
    Channel,
    Gateway,
    GenericVirtualPackage,
    NoArchType,
    PackageName,
    RepoDataRecord,
    Subdir,
    Version,
)
from rattler import (
    solve as rattler_solve,
)
from rattler.exceptions import GatewayError, InvalidVersionError, SolverError
from rattler.package import BuildString

from ..errors import GroundcrewError
from . import lock as locks
from .addresses import VARIABLE, address, without_secrets
from .lock import CondaPackage, Lock, PlatformLock
from .solve_pip import INDEX_NAMES, solve_pip
from .spec import Spec, match, pip_name, read_spec

Virtual = Mapping[str, "str | Mapping[str, str]"]


@dataclass(frozen=True)
class Solution:
    """A lock, and what people should know about it."""

    lock: Lock
    difference: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def text(self) -> str:
        return locks.render(self.lock)


def virtual_packages(data: Virtual, environment: str, platform: str) -> dict[str, str]:
    """The virtual packages of an environment on a platform.

    Keys of ``data`` that start with __ hold for all; a platform's or an environment's name holds a mapping of its own, the
    environment's last. Values are "version" or "version build".

    Raises GroundcrewError: a key or a value is none of these.
    """
    merged: dict[str, str] = {}
    for layer in (data, data.get(platform, {}), data.get(environment, {})):
        if not isinstance(layer, Mapping):
            raise GroundcrewError(
                f"conda_virtual_packages: '{layer}' is no mapping, such as {{__cuda: '12.8'}}."
            )
        merged |= {k: str(v) for k, v in layer.items() if not isinstance(v, Mapping)}
    for name, value in merged.items():
        if not name.startswith("__") or not 1 <= len(value.split()) <= 2:
            raise GroundcrewError(
                f"conda_virtual_packages: '{name}: {value}' is no virtual package, such as __glibc: '2.35'."
            )
    return merged


def solve(
    spec: Spec,
    channels: Mapping[str, str],
    platforms: Sequence[str],
    virtual: Virtual,
    old: Lock | None = None,
    upgrade: Collection[str] = (),
) -> Solution:
    """Solve a spec for every platform.

    Without ``upgrade`` the newest packages that the spec allows, whatever ``old`` has. With it every package keeps its file
    of ``old`` where possible, except those named and what they force.

    Raises GroundcrewError: a channel is not mapped or does not answer, the spec conflicts (with the solver's explanation).
    """
    notes: list[str] = []
    unknown = sorted(set(platforms) - set(locks.PLATFORMS))
    if unknown or not platforms:
        raise GroundcrewError(
            f"conda_platforms: {', '.join(unknown) or 'empty'}; known are {', '.join(locks.PLATFORMS)}."
        )
    if upgrade:
        _check_upgrade(spec, old, upgrade)
    parts = asyncio.run(
        _solve_all(spec, channels, platforms, virtual, old if upgrade else None, upgrade, notes)
    )
    new = Lock(spec.name, spec.sha256, parts)
    return Solution(new, tuple(locks.difference(old, new)), (*spec.warnings, *notes))


def _check_upgrade(spec: Spec, old: Lock | None, upgrade: Collection[str]) -> None:
    if old is None:
        raise GroundcrewError(
            f"Environment '{spec.name}' has no lock yet, so nothing can be upgraded. Run: make lock conda={spec.name}"
        )
    have = {package.name for part in old.platforms.values() for package in part.conda}
    have |= {package.name for part in old.platforms.values() for package in part.pip}
    missing = sorted(set(upgrade) - have - spec.names)
    if missing:
        raise GroundcrewError(
            f"Environment '{spec.name}' has no package '{missing[0]}', so it cannot be upgraded. Its lock:"
            f" {spec.name}.lock"
        )


async def _solve_all(
    spec: Spec,
    channels: Mapping[str, str],
    platforms: Sequence[str],
    virtual: Virtual,
    old: Lock | None,
    upgrade: Collection[str],
    notes: list[str],
) -> dict[str, PlatformLock]:
    sources = {name: Channel(address(name, channels)) for name in spec.channels}
    gateway = Gateway()
    parts = {}
    for platform in sorted(set(platforms)):
        subdirs = [Subdir(platform), Subdir("noarch")]
        for name, source in sources.items():
            await _reach(gateway, name, source, subdirs)
        before = old.platforms.get(platform, PlatformLock()) if old else PlatformLock()
        kept = [package for package in before.conda if package.name not in upgrade]
        records = await _kept(gateway, sources, subdirs, kept, notes)
        packages = virtual_packages(virtual, spec.name, platform)
        try:
            found = await rattler_solve(
                list(sources.values()),
                [match(text) for text in spec.dependencies],
                gateway=gateway,
                platforms=subdirs,
                locked_packages=records,
                virtual_packages=_generic(packages),
                channel_relations="disabled",
            )
        except SolverError as error:
            raise GroundcrewError(
                f"Environment '{spec.name}' has no solution for {platform}. The solver says:\n"
                f"{without_secrets(str(error).strip())}\nWith {_list(packages)}. Change {spec.name}.yml, then run:"
                f" make lock conda={spec.name}"
            ) from None
        parts[platform] = PlatformLock(
            conda=tuple(sorted(_line(record, sources) for record in found)),
            pip=_pip(spec, platform, found, packages, before, upgrade),
        )
    return parts


async def _reach(gateway: Gateway, name: str, source: Channel, subdirs: list[Subdir]) -> None:
    """Ask each channel by itself, so that the message names the one that is in the way."""
    try:
        await gateway.names([source], subdirs)
    except GatewayError as error:
        raise GroundcrewError(
            f"Channel '{name}' cannot be read at {without_secrets(source.base_url)}\n"
            f"{without_secrets(str(error).strip())}\n"
            f"Check the network and a proxy (https_proxy), or map the channel to a mirror in {VARIABLE}."
        ) from None


async def _kept(
    gateway: Gateway,
    sources: Mapping[str, Channel],
    subdirs: list[Subdir],
    packages: Sequence[CondaPackage],
    notes: list[str],
) -> list[RepoDataRecord]:
    """The channels' records of locked files; a note for each file that is no longer there."""
    if not packages:
        return []
    answer = await gateway.query(
        list(sources.values()),
        subdirs,
        sorted({package.name for package in packages}),
        recursive=False,
        channel_relations="disabled",
    )
    names = {package.file_name for package in packages}
    same = (record for found in answer for record in found if record.file_name in names)
    records = {_line(record, sources): record for record in same}
    files = {(p.channel, p.subdir, p.file_name) for p in records}
    for package in packages:
        if package not in records:
            there = (package.channel, package.subdir, package.file_name) in files
            what = "has other bytes now" if there else "is gone"
            notes.append(
                f"{package.file_name}, locked so far, {what} in channel {package.channel} ({package.subdir});"
                f" {package.name} was solved anew."
            )
    return [records[package] for package in packages if package in records]


def _line(record: RepoDataRecord, sources: Mapping[str, Channel]) -> CondaPackage:
    name = next((n for n, source in sources.items() if source.base_url == record.channel), None)
    if name is None or record.sha256 is None:
        why = "its channel gives no SHA-256" if name else "it is from no channel of the spec"
        raise GroundcrewError(
            f"{without_secrets(record.url)} cannot be locked: {why}. Use another channel or mirror."
        )
    return CondaPackage(name, record.subdir, record.file_name, record.sha256.hex())


def _generic(packages: Mapping[str, str]) -> list[GenericVirtualPackage]:
    generic = []
    for name, value in sorted(packages.items()):
        version, _, build = value.partition(" ")
        try:
            generic.append(
                GenericVirtualPackage(
                    PackageName(name), Version(version), BuildString(build.strip() or "0")
                )
            )
        except InvalidVersionError as error:
            raise GroundcrewError(
                f"conda_virtual_packages: {name}: '{value}' has no version: {error}"
            ) from None
    return generic


def _pip(
    spec: Spec,
    platform: str,
    found: Sequence[RepoDataRecord],
    packages: Mapping[str, str],
    before: PlatformLock,
    upgrade: Collection[str],
) -> tuple[locks.PipPackage, ...]:
    if not spec.pip:
        return ()
    python = next((r for r in found if r.name.normalized == "python"), None)
    if python is None or "pypy" in str(python.build):
        what = "no python" if python is None else "PyPy, for which the pip section cannot be locked"
        raise GroundcrewError(
            f"Environment '{spec.name}' has a pip section and {what}. Add python to `dependencies`,"
            " or remove the pip section."
        )
    provided = {
        r.name.normalized: str(r.version)
        for r in found
        if r.noarch == NoArchType("python")
        or r.name.normalized in INDEX_NAMES
        or any(d.split()[0] in ("python", "python_abi") for d in r.depends)
    }
    return solve_pip(
        spec.name,
        spec.pip,
        platform=platform,
        python=str(python.version),
        glibc=packages.get("__glibc", "2.17"),
        provided=provided,
        old=[package for package in before.pip if package.name not in upgrade],
        upgrade={pip_name(name) for name in upgrade},
    )


def _list(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{n} {v}" for n, v in sorted(packages.items())) or "no virtual packages"


def lock_file(
    directory: Path,
    name: str,
    channels: Mapping[str, str],
    platforms: Sequence[str],
    virtual: Virtual,
    upgrade: Collection[str] = (),
) -> Solution:
    """Solve ``<directory>/<name>.yml`` beside its last lock; writes nothing.

    Raises GroundcrewError: as `solve` does; the spec is missing.
    """
    path = directory / f"{locks.check_name(name)}.yml"
    if not path.exists():
        known = ", ".join(specs(directory)) or "none"
        raise GroundcrewError(f"There is no spec {path}. Specs there: {known}.")
    spec = read_spec(name, path.read_bytes(), str(path))
    old, unreadable = read_lock(directory, name)
    if unreadable and upgrade:
        raise GroundcrewError(unreadable)
    solution = solve(spec, channels, platforms, virtual, old, upgrade)
    if unreadable:
        warnings = (*solution.warnings, f"The last lock could not be compared. {unreadable}")
        return Solution(solution.lock, solution.difference, warnings)
    return solution


def read_lock(directory: Path, name: str) -> tuple[Lock | None, str]:
    """The last lock, None when there is none; and what is wrong with it."""
    path = directory / f"{name}.lock"
    try:
        return locks.parse(name, path.read_text(), str(path)), ""
    except FileNotFoundError:
        return None, ""
    except (GroundcrewError, UnicodeDecodeError) as error:
        return None, str(error)


def specs(directory: Path) -> list[str]:
    """The environments that have a spec in a folder."""
    return sorted(path.stem for path in directory.glob("*.yml"))


def write_text(path: Path, text: str) -> bool:
    """Replace a file in one step; False when it has this text already."""
    if path.exists() and path.read_bytes() == text.encode():
        return False
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return True
