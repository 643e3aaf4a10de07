"""The lock of a Conda environment: which package files it is made of, by name and SHA-256.

A text file, one package a line, without any address (channels are mapped to addresses where it is used)::

    lock-version 1
    spec sha256:9f2c…
    platform linux-64
    conda conda-forge linux-64 numpy-2.4.6-py311h2ed4a0e_0.conda sha256:01ab…
    conda conda-forge noarch tzdata-2026b-h78e105d_0.conda sha256:77fe…
    pip requests==2.32.3 sha256:5536… sha256:7077…
    platform linux-aarch64
    …

Lines that start with ``#`` are comments. A ``pip`` line lists every file of the release that may be installed, as pip's own
``--require-hashes`` has it. The same packages always give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import GroundcrewError

VERSION = "1"
PLATFORMS = ("linux-64", "linux-aarch64")
DIGEST_CHARACTERS = 12

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*\Z")
_FILE = re.compile(r"([A-Za-z0-9_.-]+)-([^-\s/]+)-([^-\s/]+?)(\.conda|\.tar\.bz2)\Z")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})\Z")
_PIP = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)\Z")


@dataclass(frozen=True, order=True)
class CondaPackage:
    """One package file of a channel."""

    channel: str
    subdir: str
    file_name: str
    sha256: str

    @property
    def _parts(self) -> tuple[str, ...]:
        found = _FILE.match(self.file_name)
        if found is None:
            raise GroundcrewError(f"'{self.file_name}' is no name of a Conda package file.")
        return found.groups()

    @property
    def name(self) -> str:
        return self._parts[0].lower()

    @property
    def version(self) -> str:
        return self._parts[1]

    @property
    def build(self) -> str:
        return self._parts[2]

    @property
    def line(self) -> str:
        return f"conda {self.channel} {self.subdir} {self.file_name} sha256:{self.sha256}"


@dataclass(frozen=True, order=True)
class PipPackage:
    """One release of the Python package index, with the SHA-256 of each of its files that may be installed."""

    name: str
    version: str
    sha256: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"pip {self.name}=={self.version} " + " ".join(f"sha256:{h}" for h in self.sha256)


@dataclass(frozen=True)
class PlatformLock:
    """What an environment consists of on one platform."""

    conda: tuple[CondaPackage, ...] = ()
    pip: tuple[PipPackage, ...] = ()

    @property
    def lines(self) -> list[str]:
        return [package.line for package in sorted(self.conda) + sorted(self.pip)]

    @property
    def digest(self) -> str:
        """Names a build of the environment: other packages, another digest."""
        text = "".join(line + "\n" for line in self.lines)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]

    @property
    def versions(self) -> dict[str, str]:
        """Version and build by name, to compare two locks; part of the hash too, for a file that was replaced under its name."""
        versions = {p.name: f"{p.version} {p.build} {p.sha256[:8]}" for p in self.conda}
        versions.update({f"{p.name} (pip)": f"{p.version} {p.sha256[0][:8]}" for p in self.pip})
        return versions


@dataclass(frozen=True)
class Lock:
    """The lock of one environment for every platform that it is made for."""

    name: str
    spec_sha256: str
    platforms: Mapping[str, PlatformLock] = field(default_factory=dict)

    def platform(self, platform: str) -> PlatformLock:
        """The part for one platform.

        Raises GroundcrewError: the lock has none for it.
        """
        if platform not in self.platforms:
            raise GroundcrewError(
                f"The lock of environment '{self.name}' has no packages for {platform}, only for"
                f" {', '.join(sorted(self.platforms)) or 'no platform'}. Run: make lock conda={self.name}"
            )
        return self.platforms[platform]


def spec_digest(spec: bytes) -> str:
    """What tells that a lock was made from this very spec."""
    return hashlib.sha256(spec).hexdigest()


def check_name(name: str) -> str:
    """The name of an environment, which becomes part of paths.

    Raises GroundcrewError: it is not one.
    """
    if not _NAME.match(name):
        raise GroundcrewError(
            f"'{name}' is no name for a Conda environment: small letters, digits, _ and -, at most 63 characters,"
            " a letter or digit first. Rename its files in files/conda."
        )
    return name


def render(lock: Lock) -> str:
    """The text of a lock; the same lock always gives the same text."""
    lines = [
        f"# The packages of Conda environment {lock.name}, made from {lock.name}.yml by `make lock`.",
        f"# Do not edit: edit {lock.name}.yml, then run `make lock` and review the difference.",
        f"lock-version {VERSION}",
        f"spec sha256:{lock.spec_sha256}",
    ]
    for platform in sorted(lock.platforms):
        lines += [f"platform {platform}", *lock.platforms[platform].lines]
    return "\n".join(lines) + "\n"


def parse(name: str, text: str, source: str = "") -> Lock:
    """Read a lock's text. ``source`` names the file in messages.

    Raises GroundcrewError: with the line that is wrong.
    """
    source = source or f"{check_name(name)}.lock"
    mend = f"Locks are not edited by hand: restore it from git, or run: make lock conda={name}"
    head: dict[str, str] = {}
    conda: dict[str, list[CondaPackage]] = {}
    pip: dict[str, list[PipPackage]] = {}
    platform = ""

    def fail(number: int, line: str, why: str) -> GroundcrewError:
        return GroundcrewError(f"{source}, line {number}: {why}: '{line}'. {mend}")

    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        kind, rest = words[0], words[1:]
        if kind in ("lock-version", "spec") and len(rest) == 1 and not platform:
            head[kind] = rest[0]
        elif kind == "platform" and len(rest) == 1 and rest[0] not in conda:
            platform = rest[0]
            conda[platform], pip[platform] = [], []
        elif kind in ("conda", "pip") and platform:
            try:
                if kind == "conda":
                    conda[platform].append(_conda(rest))
                else:
                    pip[platform].append(_pip(rest))
            except ValueError as error:
                raise fail(number, line, str(error)) from None
        else:
            raise fail(number, line, "not a line of a lock")
    if head.get("lock-version") != VERSION:
        raise GroundcrewError(
            f"{source}: lock-version is {head.get('lock-version', 'missing')}, this repository reads {VERSION}. {mend}"
        )
    spec = _SHA256.match(head.get("spec", ""))
    if spec is None:
        raise GroundcrewError(f"{source}: the line `spec sha256:…` is missing or broken. {mend}")
    for platform, packages in conda.items():
        names = [package.name for package in packages]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise GroundcrewError(f"{source}: {twice[0]} is there twice for {platform}. {mend}")
    return Lock(
        name,
        spec.group(1),
        {p: PlatformLock(tuple(sorted(conda[p])), tuple(sorted(pip[p]))) for p in conda},
    )


def _conda(words: list[str]) -> CondaPackage:
    if len(words) != 4:
        raise ValueError("a conda line has a channel, a subdir, a file name and a sha256")
    channel, subdir, file_name, digest = words
    sha256 = _SHA256.match(digest)
    if not _CHANNEL.match(channel) or ".." in channel or subdir not in (*PLATFORMS, "noarch"):
        raise ValueError("channel or subdir is wrong")
    if not _FILE.match(file_name):
        raise ValueError("not a file name of a Conda package")
    if sha256 is None:
        raise ValueError("not a sha256")
    return CondaPackage(channel, subdir, file_name, sha256.group(1))


def _pip(words: list[str]) -> PipPackage:
    release = _PIP.match(words[0]) if words else None
    hashes = [_SHA256.match(word) for word in words[1:]]
    if release is None or not hashes or None in hashes:
        raise ValueError("a pip line has name==version and at least one sha256")
    return PipPackage(
        release.group(1), release.group(2), tuple(sorted(h.group(1) for h in hashes if h))
    )


def deployable(names: Iterable[str], directory: str) -> list[dict[str, str]]:
    """The locks of environments that are to be deployed: [{"name", "lock"}].

    Raises GroundcrewError: a spec or a lock is missing or broken, or the spec was edited after its lock was made; each is named.
    """
    found, wrong = [], []
    for name in names:
        spec = Path(os.path.relpath(directory)) / f"{check_name(name)}.yml"
        path = spec.with_suffix(".lock")
        if not spec.exists():
            specs = ", ".join(sorted(p.stem for p in spec.parent.glob("*.yml"))) or "none"
            wrong.append(f"Conda environment '{name}' has no {spec}. There are: {specs}.")
        elif not path.exists():
            wrong.append(f"{path} is missing. Make it with: make lock conda={name}")
        else:
            try:
                text = path.read_text()
                made_from = parse(name, text, str(path)).spec_sha256
            except UnicodeDecodeError:
                wrong.append(
                    f"{path} is no text. Restore it from git, or run: make lock conda={name}"
                )
                continue
            except GroundcrewError as error:
                wrong.append(str(error))
                continue
            if made_from != spec_digest(spec.read_bytes()):
                wrong.append(
                    f"{spec} was edited after its lock was made. Run: make lock conda={name}"
                )
            found.append({"name": name, "lock": text})
    if wrong:
        raise GroundcrewError(" ".join(wrong))
    return found


def difference(old: Lock | None, new: Lock) -> list[str]:
    """What another lock means, for people: one line a package added, removed or changed, by platform."""
    lines = []
    for platform in sorted(new.platforms):
        before = (
            old.platforms[platform].versions
            if old is not None and platform in old.platforms
            else {}
        )
        after = new.platforms[platform].versions
        changes = [
            *(f"  + {n} {after[n]}" for n in sorted(after.keys() - before.keys())),
            *(f"  - {n} {before[n]}" for n in sorted(before.keys() - after.keys())),
            *(
                f"  ~ {n} {before[n]} -> {after[n]}"
                for n in sorted(after.keys() & before.keys())
                if before[n] != after[n]
            ),
        ]
        if changes:
            lines += [f"{new.name}, {platform}: {_count(changes)}", *changes]
    return lines


def _count(changes: Iterable[str]) -> str:
    kinds = [change.strip()[0] for change in changes]
    return f"{kinds.count('+')} added, {kinds.count('-')} removed, {kinds.count('~')} changed"
