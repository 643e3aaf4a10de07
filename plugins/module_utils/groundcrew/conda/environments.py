"""Builds environments from their locks, switches to them, keeps the last one, removes the rest.

A build lies at its final path from the start, because Conda packages have that path written into them; it counts only when its
record is there, which is written last. Nothing is solved here, and nothing that runs is touched: a job that started in a build
keeps it until it ends.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from ..errors import GroundcrewError
from . import bytecode, downloads, files, tools
from .addresses import without_secrets
from .layout import Layout, environment_of, machine_platform, read_json, write_json, write_text
from .lock import CondaPackage, PlatformLock, parse

EXTERNALLY_MANAGED = """\
[externally-managed]
Error=This is the managed environment '{name}'. It is the same on every host, so packages are not installed into it by hand.
 To add a package: write it into files/conda/{name}.yml, run `make lock conda={name}`,
 review the difference, and deploy. To try something out, make an environment of your own:
 python3 -m venv /tmp/try && /tmp/try/bin/pip install PACKAGE
"""


@dataclass(frozen=True)
class Settings:
    """What a build needs besides its lock."""

    channels: Mapping[str, str] = field(default_factory=dict)  # name -> address
    pip_index: str = ""  # address; empty: what pip and uv are configured with on the host
    hard_links: bool = True  # where reflinks are not possible; otherwise copies
    platform: str = field(default_factory=machine_platform)


@dataclass(frozen=True)
class Outcome:
    """What was done, or would be, for one environment."""

    name: str
    action: str  # same, noted (right already, its lock was not), switched, built, healed, removed
    build: str
    before: str | None
    downloaded: int = 0
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        return self.action != "same"


def plan(layout: Layout, name: str, text: str, platform: str) -> Outcome:
    """What `ensure` would do; reads a few small files, so that an unchanged environment costs milliseconds.

    Raises GroundcrewError: the lock is broken or has nothing for the platform.
    """
    packages = parse(name, text).platform(platform)
    current = layout.current(name)
    builds = [b for b in _builds(layout, name, packages.digest) if layout.is_complete(b)]
    if current in builds:
        action = "same" if _has_lock(layout, name, text) else "noted"
        return Outcome(name, action, str(current), current)
    if builds:
        return Outcome(name, "switched", builds[-1], current)
    return Outcome(name, "built", f"{name}-{packages.digest}", current)


def ensure(layout: Layout, name: str, text: str, settings: Settings, heal: bool = False) -> Outcome:
    """Make the environment be what its lock says. With ``heal`` it is built anew in any case.

    Raises GroundcrewError: with the reason; the environment that was in use stays in use.
    """
    started = time.monotonic()
    with layout.exclusive():
        wanted = plan(layout, name, text, settings.platform)
        _refuse_what_is_in_the_way(layout, name)
        if wanted.action in ("same", "noted") and not heal:
            _write_lock(layout, name, text)
            return wanted
        packages = parse(name, text).platform(settings.platform)
        downloaded = 0
        damaged = wanted.build if heal and wanted.action in ("same", "noted") else None
        build = wanted.build
        if heal or wanted.action == "built":
            build = _free_name(layout, name, packages.digest)
            with _kept_on_failure(layout, name, build):
                if heal:
                    _forget_unverifiable(layout)
                    # It has no hashes, and it may be linked with what was edited.
                    files.remove_tree(layout.bytecode)
                downloaded = _build(layout, name, build, packages, settings)
        try:
            # The lock first: when the switch does not come, drift and heal go for the new one.
            _write_lock(layout, name, text)
            _switch(layout, name, build, damaged)
        except OSError as error:
            raise GroundcrewError(
                f"{build} is built, but '{name}' could not be switched to it: {error}. Mend that, then run it again."
                f" {_stays(layout, name)}"
            ) from error
    action = "healed" if heal else wanted.action
    return Outcome(
        name, action, build, wanted.before, downloaded, round(time.monotonic() - started, 2)
    )


def rollback(layout: Layout, name: str) -> Outcome:
    """Go back to the build that was in use before. A second rollback comes forward again.

    Raises GroundcrewError: there is none to go back to.
    """
    with layout.exclusive():
        current, previous = layout.current(name), layout.previous(name)
        if current is None:
            raise GroundcrewError(
                f"There is no environment '{name}' here, only {', '.join(layout.names()) or 'none'}."
            )
        if previous is None or previous == current:
            raise GroundcrewError(
                f"Environment '{name}' has no build before {current} on this host, so there is nothing to go back to."
                f" Restore files/conda/{name}.lock from git and deploy: it is built from that."
            )
        _switch(layout, name, previous)
    return Outcome(name, "switched", previous, current)


def remove(layout: Layout, name: str) -> Outcome:
    """Take an environment away that is not declared any more; what still runs in it keeps its build until `prune`."""
    with layout.exclusive():
        current = layout.current(name)
        for path in (layout.link(name), layout.state_path(name), layout.lock_path(name)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    return Outcome(name, "removed", "", current)


def prune(layout: Layout) -> list[str]:
    """Remove builds that are neither in use, nor linked, nor kept for a rollback, and the cached files that no build needs.

    Returns the builds that were removed.
    """
    removed = []
    with layout.exclusive():
        names = layout.names()
        kept = {b for name in names for b in (layout.current(name), layout.previous(name)) if b}
        everything = [e.name for e in _directories(layout.environments)]
        for build in everything:
            # A folder with another name is not ours: `conda create` may put a person's own environment here.
            if build in kept or environment_of(build) is None:
                continue
            with layout.alone(build) as alone:
                if alone:
                    with contextlib.suppress(FileNotFoundError):
                        layout.record_path(build).unlink()
                    files.remove_tree(layout.build(build))
                    removed.append(build)
        _remove_temporaries(layout)
        left = [b for b in everything if b not in removed]
        records = [r for r in (read_json(layout.record_path(b)) for b in left) if r is not None]
        archives = {p["sha256"] for r in records for p in r["packages"].values() if "sha256" in p}
        extracted = {
            Path(p["extracted"]).name
            for r in records
            for p in r["packages"].values()
            if "extracted" in p
        }
        if not any(p["kind"] == "pip" for r in records for p in r["packages"].values()):
            files.remove_tree(layout.pip)
        for entry in _directories(layout.archives):
            if entry.name not in archives:
                files.remove_tree(entry)
            else:
                for dead in entry.glob(".*.part"):
                    dead.unlink()
        for entry in _directories(layout.bytecode):
            if entry.name.partition("-")[0] not in archives:
                files.remove_tree(entry)
        for entry in _directories(layout.packages):
            if entry.name not in extracted:
                files.remove_tree(entry)
                with contextlib.suppress(FileNotFoundError):
                    entry.with_name(entry.name + ".lock").unlink()
    return removed


def _remove_temporaries(layout: Layout) -> None:
    """What programs that were killed left beside the files they were about to replace."""
    for path in layout.environments.glob(".*.*"):
        if path.is_symlink() and environment_of(os.readlink(path)):
            path.unlink()
    for folder in ("records", "states", "locks"):
        for path in (layout.root / folder).glob(".*.*"):
            path.unlink()


def _refuse_what_is_in_the_way(layout: Layout, name: str) -> None:
    link = layout.link(name)
    if os.path.lexists(link) and not link.is_symlink():
        raise GroundcrewError(
            f"{link} is not a link of ours; `conda create -n {name}` makes such a folder. Move it away, or give the environment"
            " another name, then run it again."
        )


def _builds(layout: Layout, name: str, digest: str) -> list[str]:
    """The builds of one lock, oldest first: `<env>-<digest>`, then -2, -3 and so on."""
    pattern = re.compile(re.escape(f"{name}-{digest}") + r"(?:-(\d+))?\Z")
    found = [(m, e.name) for e in _directories(layout.environments) if (m := pattern.match(e.name))]
    return [build for match, build in sorted(found, key=lambda item: int(item[0].group(1) or 1))]


def _free_name(layout: Layout, name: str, digest: str) -> str:
    """A name for a new build. What an interrupted run left half-built goes first."""
    number = 1
    for build in _builds(layout, name, digest):
        unfinished = not layout.is_complete(build) and not layout.in_use(build)
        # The one that is linked may have lost its record: it serves until the new one is there.
        if unfinished and build != layout.current(name):
            files.remove_tree(layout.build(build))
        else:
            number = int(build[len(f"{name}-{digest}") + 1 :] or 1) + 1
    return f"{name}-{digest}" + (f"-{number}" if number > 1 else "")


@contextlib.contextmanager
def _kept_on_failure(layout: Layout, name: str, build: str) -> Iterator[None]:
    """A build that fails leaves nothing behind, and the message says what is still in use."""
    try:
        yield
    except BaseException as error:
        files.remove_tree(layout.build(build))
        stays = _stays(layout, name)
        if "No space left" in str(error) or "os error 28" in str(error):
            free = shutil.disk_usage(layout.root).free // 1_000_000
            raise GroundcrewError(
                f"No space is left for building '{name}' in {layout.root} ({free} MB are free after removing what was half-built)."
                f" Make room, or remove old builds: sudo groundcrew-conda prune. Then run it again. {stays}"
            ) from error
        if isinstance(error, GroundcrewError):
            raise GroundcrewError(f"{error} {stays}") from None
        if isinstance(error, Exception):
            raise GroundcrewError(f"Building '{name}' failed: {error}. {stays}") from error
        raise


def _stays(layout: Layout, name: str) -> str:
    current = layout.current(name)
    return f"'{name}' stays at {current}." if current else f"There is no '{name}' on this host yet."


def _build(
    layout: Layout,
    name: str,
    build: str,
    packages: PlatformLock,
    settings: Settings,
) -> int:
    """Returns the number of files that were downloaded."""
    # Here and not above: an unchanged environment needs none of it.
    import asyncio

    rattler = tools.rattler(layout)
    from rattler.config import Config
    from rattler.package_cache import PackageCache, ValidationMode

    for path in (layout.environments, layout.archives, layout.packages):
        path.mkdir(parents=True, exist_ok=True)
    prefix = layout.build(build)
    downloaded = downloads.fetch(packages.conda, layout.archives, settings.channels)

    async def link() -> int:
        records, again = await _records(rattler, layout, packages, settings)
        # With the origin in its key, a file of the same name from another channel is another entry. Every file of an entry is compared
        # with its hash each time: where environments share files, one that was edited must not get into the next.
        cache = PackageCache.new_layered(
            [layout.packages],
            cache_origin=True,
            validation_mode=ValidationMode.full(),
        )
        await rattler.install(
            records,
            prefix,
            package_cache=cache,
            show_progress=False,
            execute_link_scripts=False,
            # Symbolic links are those that a package itself has. Without leave to make them rattler copies what they point to, and
            # fails where that is a folder.
            config=Config.from_toml(
                f"allow-symbolic-links = true\nallow-hard-links = {str(settings.hard_links).lower()}\n"
            ),
        )
        return again

    downloaded += asyncio.run(link())
    _install_pip(layout, prefix, packages, settings)
    for library in prefix.glob("lib/*/site-packages"):
        library.parent.joinpath("EXTERNALLY-MANAGED").write_text(
            EXTERNALLY_MANAGED.format(name=name)
        )
    installed, known = _installed(prefix, {p.name: p for p in packages.conda})
    compiled = bytecode.add(layout, prefix, _modules(installed, known), settings.hard_links)
    files.protect(prefix)
    write_json(
        layout.record_path(build),
        {
            "environment": name,
            "digest": packages.digest,
            "platform": settings.platform,
            "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "packages": installed,
            "files": _listed(prefix, known, compiled),
        },
    )
    return downloaded


async def _records(
    rattler: Any, layout: Layout, packages: PlatformLock, settings: Settings
) -> tuple[list[Any], int]:
    """What rattler needs to know of each package, read from its file, whose hash is checked on the way; a damaged one is fetched anew."""
    import asyncio

    again = 0
    records = []
    paths = [downloads.path_of(layout.archives, package) for package in packages.conda]
    read = await asyncio.gather(*(_record(rattler, path) for path in paths))
    for package, path, record in zip(packages.conda, paths, read):
        if record is None or record.sha256.hex() != package.sha256:
            path.unlink()
            again += downloads.fetch([package], layout.archives, settings.channels)
            record = await _record(rattler, path)
            if record is None:
                raise GroundcrewError(
                    f"{package.file_name} has the sha256 of the lock but is no package that can be read."
                    f" It is broken in channel '{package.channel}' itself. Leave this version out and run `make lock`."
                )
        records.append(record)
    return records, again


async def _record(rattler: Any, path: Path) -> Any:
    try:
        return await rattler.RepoDataRecord.from_package_archive(path)
    except Exception:  # rattler's errors have no common ancestor; the caller says what it means
        return None


def _forget_unverifiable(layout: Layout) -> None:
    """Extracted packages that say no hash for some file (old ones) cannot be compared with anything: they are extracted anew."""
    for folder in _directories(layout.packages):
        try:
            paths = json.loads((folder / "info/paths.json").read_text())["paths"]
            verifiable = all("sha256" in p for p in paths if p["path_type"] == "hardlink")
        except (OSError, ValueError, KeyError, TypeError):
            verifiable = False
        if not verifiable:
            files.remove_tree(folder)


def _install_pip(layout: Layout, prefix: Path, packages: PlatformLock, settings: Settings) -> None:
    if not packages.pip:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        for package in packages.pip:
            hashes = " ".join(f"--hash=sha256:{digest}" for digest in package.sha256)
            requirements.write(f"{package.name}=={package.version} {hashes}\n")
        requirements.flush()
        environment = {**os.environ, "UV_CACHE_DIR": str(layout.pip), "UV_NO_PROGRESS": "1"}
        bundle = "/etc/ssl/certs/ca-certificates.crt"
        if os.path.exists(bundle):
            environment.setdefault("SSL_CERT_FILE", bundle)
        if settings.pip_index:
            environment["UV_DEFAULT_INDEX"] = settings.pip_index
        done = subprocess.run(
            [
                str(tools.uv(layout)),
                "pip",
                "install",
                "--quiet",
                f"--python={prefix}/bin/python",
                "--no-deps",
                "--require-hashes",
                # Never linked: an edit in one environment would be in uv's cache, which uv does not verify.
                "--link-mode=copy",
                "--requirements",
                requirements.name,
            ],
            # Not where the run was started: a project's own uv settings may lie there.
            cwd=layout.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        names = ", ".join(f"{p.name}=={p.version}" for p in packages.pip)
        raise GroundcrewError(
            f"The pip packages ({names}) could not be installed: {without_secrets(done.stderr.strip())}."
        )


# Path -> package, sha256 here, sha256 anywhere; None is what the package does not say.
_Known = dict[str, tuple[str, Optional[str], Optional[str]]]


def _installed(
    prefix: Path, conda: Mapping[str, CondaPackage]
) -> tuple[dict[str, dict[str, Any]], _Known]:
    """The packages of a build, and their files as the packages' own metadata have them."""
    packages: dict[str, dict[str, Any]] = {}
    known: _Known = {}
    for path in sorted(prefix.glob("conda-meta/*.json")):
        meta = json.loads(path.read_text())
        name = meta["name"]
        packages[name] = {
            "kind": "conda",
            "version": meta["version"],
            "build": meta["build"],
            "sha256": conda[name].sha256,
            "extracted": meta["extracted_package_dir"],
        }
        for entry in meta["paths_data"]["paths"]:
            original, here = entry.get("sha256"), entry.get("sha256_in_prefix")
            if entry.get("path_type") == "unix_python_entry_point":
                original = None  # it has the prefix in its first line
            known[entry["_path"]] = (name, here or original, original if here else None)
    for path in sorted(prefix.glob("lib/*/site-packages/*.dist-info/RECORD")):
        relative = path.relative_to(prefix).as_posix()
        if relative in known:
            continue
        name, version = files.distribution(path.parent)
        packages[name] = {"kind": "pip", "version": version}
        for row in filter(None, csv.reader(path.read_text().splitlines())):
            inside = os.path.normpath(path.parent.parent / row[0])
            if inside.startswith(f"{prefix}/"):
                known[os.path.relpath(inside, prefix)] = (name, None, None)
    return packages, known


def _modules(packages: Mapping[str, Mapping[str, Any]], known: _Known) -> dict[str, list[str]]:
    """The Python modules of each package, by the sha256 of its file; of packages without one under ""."""
    found: dict[str, list[str]] = {}
    for path, (name, _, _) in known.items():
        if path.endswith(".py") and "/site-packages/" in path:
            found.setdefault(packages[name].get("sha256", ""), []).append(path)
    return found


def _listed(prefix: Path, known: _Known, compiled: Mapping[str, str]) -> dict[str, list[Any]]:
    """Every file of a finished build: what the drift scan compares with."""
    listed: dict[str, list[Any]] = {}
    for entry in files.walk(prefix):
        package, sha256, portable = known.get(entry.path, ("", None, None))
        if package == "" and entry.is_bytecode:
            # Python runs it without a look at its source, so it counts; but another host's may have been compiled at another path.
            digest = compiled.get(entry.path) or files.sha256(f"{prefix}/{entry.path}", entry.size)
            listed[entry.path] = ["file", digest, entry.size, "", ""]
            continue
        if entry.link is not None:
            listed[entry.path] = ["link", entry.link, 0, package, None]
            continue
        if sha256 is None or (portable is None and entry.path.startswith("bin/")):
            sha256, portable = files.hashes(prefix, entry)
        listed[entry.path] = ["file", sha256, entry.size, package, portable]
    return listed


def _switch(layout: Layout, name: str, build: str, damaged: str | None = None) -> None:
    """Point the environment's link at another build, in one step. A damaged build is no place to go back to."""
    current, previous = layout.current(name), layout.previous(name)
    if current not in (None, build, damaged) and layout.is_complete(str(current)):
        previous = current
    if previous is not None and previous != build:
        write_json(layout.state_path(name), {"previous": previous})
    temporary = layout.environments / f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    os.symlink(build, temporary)
    os.replace(temporary, layout.link(name))
    # Only now: the link never names a build without a record.
    if damaged is not None:
        with contextlib.suppress(FileNotFoundError):
            layout.record_path(damaged).unlink()


def _has_lock(layout: Layout, name: str, text: str) -> bool:
    path = layout.lock_path(name)
    return path.exists() and path.read_text() == text


def _write_lock(layout: Layout, name: str, text: str) -> None:
    if not _has_lock(layout, name, text):
        write_text(layout.lock_path(name), text)


def _directories(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [Path(e.path) for e in os.scandir(path) if e.is_dir(follow_symlinks=False)]
