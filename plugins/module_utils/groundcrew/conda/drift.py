"""What differs between an environment and its lock: packages and files, with who and when."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import stat
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import GroundcrewError
from . import files
from .layout import Layout

SHOWN_FILES = 20
_DIST_INFO = re.compile(r"(lib/[^/]+/site-packages/[^/]+\.dist-info)/METADATA\Z")
_CONDA_META = re.compile(r"conda-meta/([^/]+)-([^-/]+)-([^-/]+)\.json\Z")


# Device and inode -> SHA-256 of what was read before: a file that environments share is read once for all of them.
Known = dict[tuple[int, int], "str | None"]


def scan_all(layout: Layout, names: Iterable[str]) -> list[dict[str, Any]]:
    """A report for each environment, as scan has it."""
    known: Known = {}
    return [scan(layout, name, known) for name in names]


def scan(layout: Layout, name: str, known: Known | None = None) -> dict[str, Any]:
    """Compare the build in use with its record, every file by its content, and the cache where hard links share it.

    Returns {"environment", "build", "digest", "ok", "notes", "packages": [{"name", "change", "expected", "found", "by"}],
    "files": [{"path", "change", "package", "owner", "modified"}], "cache": [path], "fingerprint", "scanned", "seconds"}.
    ``change`` is added, removed or changed for packages; changed, removed or foreign for files.
    """
    started = time.monotonic()
    build = layout.current(name)
    with layout.using(build) if build is not None else contextlib.nullcontext():
        report = _scan(layout, name, build, {} if known is None else known)
    report["seconds"] = round(time.monotonic() - started, 2)
    return report


def _scan(layout: Layout, name: str, build: str | None, known: Known) -> dict[str, Any]:
    notes: list[str] = []
    report: dict[str, Any] = {
        "environment": name,
        "build": build,
        "digest": None,
        "ok": False,
        "notes": notes,
        "packages": [],
        "files": [],
        "cache": [],
        "fingerprint": None,
        "scanned": 0,
        "seconds": 0.0,
    }
    if build is None or not layout.is_complete(build):
        notes.append(
            f"{build or name} is not there, or was never finished: deploy, and it is built anew."
        )
        return report
    record = layout.record(build)
    report["digest"] = record["digest"]
    try:
        lock = layout.lock(name)
        wanted_digest = lock.platform(record["platform"]).digest if lock else record["digest"]
    except (GroundcrewError, UnicodeDecodeError) as error:
        notes.append(f"The lock of this host cannot be read: {error} Deploy: it is brought anew.")
    else:
        if wanted_digest != record["digest"]:
            notes.append(
                f"{build} is in use, but the lock of this host is {wanted_digest} (a rollback does that): deploy to go to the lock's."
            )
    prefix = layout.build(build)
    entries = {e.path: e for e in files.walk(prefix)}
    expected: dict[str, list[Any]] = record["files"]
    present = [
        e for p, e in entries.items() if e.link is None and (p in expected or not e.is_bytecode)
    ]
    unread = [e for e in present if e.links == 1 or e.identity not in known]
    read = files.sha256_of_many([(f"{prefix}/{e.path}", e.size) for e in unread])
    digests = {e.path: digest for e, digest in zip(unread, read)}
    known.update((e.identity, digests[e.path]) for e in unread if e.links > 1)
    digests.update((e.path, known[e.identity]) for e in present if e.path not in digests)

    found_files = []
    fingerprint = hashlib.sha256()
    for path in sorted(entries.keys() | expected.keys()):
        entry, wanted = entries.get(path), expected.get(path)
        if entry is None:
            assert wanted is not None
            found_files.append(_file(path, "removed", wanted[3], None))
            continue
        if wanted is None and entry.is_bytecode:
            continue
        actual = entry.link if entry.link is not None else digests[path]
        if wanted is not None and actual == wanted[1]:
            anywhere = wanted[1] if wanted[4] is None else wanted[4]
        else:
            change = "foreign" if wanted is None else "changed"
            found_files.append(_file(path, change, wanted[3] if wanted else "", entry))
            anywhere = str(actual)
        if anywhere:
            fingerprint.update(os.fsencode(f"{path}\0{anywhere}\n"))

    report["files"] = found_files
    report["packages"] = _packages(prefix, record, entries)
    shares = any(e.links > 1 for e in present)
    report["cache"] = _cache(record, known) if shares else []
    report["fingerprint"] = fingerprint.hexdigest()
    report["scanned"] = len(entries)
    report["ok"] = not (report["files"] or report["packages"] or report["cache"] or notes)
    return report


def lines(report: dict[str, Any]) -> list[str]:
    """A report for people."""
    name, build = report["environment"], report["build"]
    if report["ok"]:
        return [f"{name}: as its lock says ({build}, {report['scanned']} files)"]
    text = [f"{name}: differs from its lock ({build})", *(f"  {note}" for note in report["notes"])]
    for p in report["packages"]:
        versions = " -> ".join(v for v in (p["expected"], p["found"]) if v)
        text.append(f"  package {p['change']}: {p['name']} {versions} by {p['by']}")
    for f in report["files"][:SHOWN_FILES]:
        who = f", {f['owner']} at {f['modified']}" if f["owner"] else ""
        of = f" of {f['package']}" if f["package"] else ""
        text.append(f"  file {f['change']}: {f['path']}{of}{who}")
    if len(report["files"]) > SHOWN_FILES:
        text.append(f"  and {len(report['files']) - SHOWN_FILES} more files")
    text += [f"  in the cache too: {path}" for path in report["cache"][:SHOWN_FILES]]
    return text


def metrics(reports: Iterable[dict[str, Any]], now: float) -> str:
    """The reports for node exporter's textfile collector."""
    reports = list(reports)
    text = [
        "# HELP groundcrew_conda_drift Whether an environment differs from its lock (1) or not (0).",
        "# TYPE groundcrew_conda_drift gauge",
        *(
            f'groundcrew_conda_drift{{conda_environment="{r["environment"]}"}} {int(not r["ok"])}'
            for r in reports
        ),
        "# HELP groundcrew_conda_drift_differences Packages, files and cache files that differ.",
        "# TYPE groundcrew_conda_drift_differences gauge",
        *(
            f'groundcrew_conda_drift_differences{{conda_environment="{r["environment"]}"}}'
            f" {sum(len(r[k]) for k in ('packages', 'files', 'cache', 'notes'))}"
            for r in reports
        ),
        "# HELP groundcrew_conda_drift_checked_timestamp_seconds When the environments were compared with their locks.",
        "# TYPE groundcrew_conda_drift_checked_timestamp_seconds gauge",
        f"groundcrew_conda_drift_checked_timestamp_seconds {now:.0f}",
    ]
    return "\n".join(text) + "\n"


def _file(path: str, change: str, package: str, entry: files.Entry | None) -> dict[str, Any]:
    owner = modified = None
    if entry is not None:
        try:
            owner = pwd.getpwuid(entry.owner).pw_name
        except KeyError:
            owner = str(entry.owner)
        try:
            modified = datetime.fromtimestamp(entry.modified, timezone.utc).isoformat(
                timespec="seconds"
            )
        except (OverflowError, ValueError, OSError):  # a year that no calendar has
            modified = f"{entry.modified:.0f} s"
    return {
        "path": _printable(path),
        "change": change,
        "package": package,
        "owner": owner,
        "modified": modified,
    }


def _printable(path: str) -> str:
    """A file's name that is no text, or has a line break in it, without what a terminal or JSON would stumble over."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    )


def _packages(
    prefix: Path, record: dict[str, Any], entries: dict[str, files.Entry]
) -> list[dict[str, Any]]:
    """Packages by what their metadata on disk says: Python distributions, and Conda's own records."""
    changes: dict[str, dict[str, Any]] = {}

    def compare(kind: str, before: dict[str, str], now: dict[str, tuple[str, str]]) -> None:
        for name in before.keys() | now.keys():
            expected, (found, by) = before.get(name), now.get(name, (None, kind))
            if expected == found:
                continue
            change = "added" if expected is None else "removed" if found is None else "changed"
            changes.setdefault(
                name,
                {"name": name, "change": change, "expected": expected, "found": found, "by": by},
            )

    def distributions(paths: Iterable[str]) -> dict[str, Path]:
        return {m.group(1): prefix / m.group(1) for p in paths if (m := _DIST_INFO.match(p))}

    locked = distributions(record["files"])
    before = dict(files.distribution(folder) for folder in locked.values())
    now: dict[str, tuple[str, str]] = {}
    for relative, folder in sorted(distributions(entries).items(), key=lambda i: i[0] in locked):
        name, version = files.distribution(folder)
        # What is not of the lock is what counts: pip may leave the old metadata beside its own.
        if name not in now or relative not in locked:
            now[name] = (version, _installer(folder))
    compare("pip", before, now)

    def conda(paths: Iterable[str]) -> dict[str, tuple[str, str]]:
        found = (m for p in paths if (m := _CONDA_META.match(p)))
        return {m.group(1): (f"{m.group(2)} {m.group(3)}", "conda") for m in found}

    compare("conda", {n: v for n, (v, _) in conda(record["files"]).items()}, conda(entries))
    return [changes[name] for name in sorted(changes)]


def _installer(dist_info: Path) -> str:
    try:
        return dist_info.joinpath("INSTALLER").read_text().strip() or "pip"
    except OSError:
        return "pip"


def _cache(record: dict[str, Any], known: Known) -> list[str]:
    """Files of the extracted packages that are not what the package says. Those that an environment shares were hashed with it."""
    wrong = []
    unknown: list[tuple[str, int, str, tuple[int, int]]] = []
    for package in record["packages"].values():
        folder = Path(package.get("extracted", "/nonexistent"))
        try:
            paths = json.loads((folder / "info/paths.json").read_text())["paths"]
        except (OSError, ValueError, KeyError):
            continue
        for entry in paths:
            if entry.get("path_type") != "hardlink" or "sha256" not in entry:
                continue
            path = f"{folder}/{entry['_path']}"
            try:
                s = os.lstat(path)
            except OSError:
                wrong.append(path)
                continue
            identity = (s.st_dev, s.st_ino)
            if not stat.S_ISREG(s.st_mode):
                wrong.append(path)
            elif identity not in known:
                unknown.append((path, s.st_size, entry["sha256"], identity))
            elif known[identity] != entry["sha256"]:
                wrong.append(path)
    actual = files.sha256_of_many([(path, size) for path, size, *_ in unknown])
    for (path, _, wanted, identity), got in zip(unknown, actual):
        known[identity] = got
        if wanted != got:
            wrong.append(path)
    return sorted(wrong)
