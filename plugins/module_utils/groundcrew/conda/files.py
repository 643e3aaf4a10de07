"""Walking, hashing, protecting and removing the files of an environment."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PLACEHOLDER = b"/PREFIX"
SPECIAL = "(neither a file nor a link)"
_CHUNK = 1 << 18
_WORKERS = min(8, os.cpu_count() or 1)
# What differs between two builds of one lock although they are the same: where they are is written into them.
_NOT_PORTABLE = re.compile(r"conda-meta/|.*\.dist-info/RECORD\Z")
_READ = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_ENTER = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


class Entry(NamedTuple):
    """One file or symbolic link, by its path inside the environment."""

    path: str
    size: int
    modified: float  # seconds since the epoch
    owner: int  # user id
    identity: tuple[int, int]  # device and inode: hard links of one file share it
    links: int
    link: str | None = (
        None  # where a symbolic link points to; SPECIAL for what is neither file nor link
    )

    @property
    def is_bytecode(self) -> bool:
        """Whether Python wrote it by itself beside a module."""
        return self.path.endswith(".pyc") and "__pycache__/" in self.path and self.link is None


def walk(prefix: Path) -> Iterator[Entry]:
    """Every file and symbolic link below a folder; folders themselves do not count."""
    waiting = [str(prefix)]
    start = len(str(prefix)) + 1
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                s = entry.stat(follow_symlinks=False)
                link = None
                if not stat.S_ISREG(s.st_mode):
                    link = os.readlink(entry.path) if stat.S_ISLNK(s.st_mode) else SPECIAL
                yield Entry(
                    entry.path[start:],
                    s.st_size,
                    s.st_mtime,
                    s.st_uid,
                    (s.st_dev, s.st_ino),
                    s.st_nlink,
                    link,
                )


def sha256(path: str, size: int = _CHUNK) -> str:
    """SHA-256 of a regular file's content; with its size a small one costs one read."""
    # A pipe that took the file's place must not make this wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        wanted = min(size + 1, _CHUNK)
        digest = hashlib.sha256()
        while content := os.read(handle, wanted):
            digest.update(content)
            if len(content) < wanted:  # its end: regular files give as much as there is
                break
            wanted = _CHUNK
    finally:
        os.close(handle)
    return digest.hexdigest()


def sha256_of_many(sizes: Sequence[tuple[str, int]]) -> list[str | None]:
    """Of each path and size, in order; None where the file vanished or cannot be read."""

    def one(path: str, size: int) -> str | None:
        try:
            return sha256(path, size)
        except OSError:
            return None

    def some(chunk: Sequence[tuple[str, int]]) -> list[str | None]:
        return [one(path, size) for path, size in chunk]

    # Hashing and reading leave the interpreter lock, so threads pay.
    chunks = [sizes[i : i + 64] for i in range(0, len(sizes), 64)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        return [digest for part in pool.map(some, chunks) for digest in part]


def hashes(prefix: Path, entry: Entry) -> tuple[str, str | None]:
    """SHA-256 of a small file that was made in place, and what it would be anywhere: with the path of the environment taken out.

    The second is "" for files that say nothing about what is installed, and None when it equals the first.
    """
    content = (prefix / entry.path).read_bytes()
    here = hashlib.sha256(content).hexdigest()
    if _NOT_PORTABLE.match(entry.path):
        return here, ""
    anywhere = hashlib.sha256(content.replace(str(prefix).encode(), PLACEHOLDER)).hexdigest()
    return here, None if anywhere == here else anywhere


def distribution(dist_info: Path) -> tuple[str, str]:
    """Normalised name and version of an installed Python distribution, from its folder's name."""
    name, _, version = dist_info.name[: -len(".dist-info")].partition("-")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def protect(prefix: Path) -> None:
    """Take the write permission from everything, so that an accident by its owner is refused too (root may write all the same).

    Everybody may read: rattler writes its records in conda-meta for their owner alone, and everybody's `conda list` needs them.
    """
    waiting = [str(prefix)]
    while waiting:
        folder = waiting.pop()
        _protect_one(folder, os.lstat(folder).st_mode, _READ | _ENTER)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    _protect_one(entry.path, entry.stat(follow_symlinks=False).st_mode, _READ)


def _protect_one(path: str, mode: int, allowed: int) -> None:
    wanted = mode & ~_WRITE | allowed
    if mode != wanted:
        os.chmod(path, stat.S_IMODE(wanted))


def remove_tree(path: Path) -> None:
    """Remove a folder, also one that is protected against writing."""
    if not path.is_dir() or path.is_symlink():
        return
    for folder, folders, _ in os.walk(path):
        os.chmod(folder, 0o755)
        for name in folders:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                os.chmod(inner, 0o755)
    shutil.rmtree(path)
