"""The input of a run as it is at one moment: files to read, and what identifies them.

A file of this machine is read where it is. Objects of S3 are copied into one file without a name in
the work directory: the kernel frees it however the process ends.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from groundcrew import objects
from groundcrew.errors import GroundcrewError

from .patience import TRANSIENT, Patience
from .progress import Progress

SUFFIXES = (".csv", ".parquet")
_S3 = re.compile(r"s3://([^/]+)/(.*)\Z", re.DOTALL)
_BLOCK = 1 << 20
_MISSING = objects.MISSING | {"NoSuchBucket"}
_CHANGED = ("412", "PreconditionFailed")


@dataclass(frozen=True)
class File:
    """One file of the input: ``name`` below the input's prefix, None when it is the whole input."""

    name: str | None
    uri: str
    size: int
    sha256: str
    open: Callable[[], Any]

    @property
    def suffix(self) -> str:
        return Path(self.uri).suffix.lower()


@dataclass(frozen=True)
class Input:
    """What a run reads. ``sha256`` is the file's own or, of a prefix, that of the JSON list of
    [name, size, sha256] of each file; ``size`` is bytes."""

    uri: str
    files: tuple[File, ...]
    sha256: str
    size: int


@contextmanager
def obtain(
    client: Any,
    uri: str,
    directory: Path,
    say: Callable[[str], None] = lambda _text: None,
    patience: Patience | None = None,
) -> Iterator[Input]:
    """The input, open until the block ends.

    Raises GroundcrewError when it does not exist, changes while it is read or does not fit into
    ``directory``.
    """
    match = _S3.match(uri)
    if match is None:
        yield _local(uri)
        return
    if not match[2]:
        raise GroundcrewError(f"the input {uri} names no object; INPUT must be s3://bucket/key")
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        except OSError as error:
            raise _work_directory_error(uri, directory, error) from error
        yield _copied(client, uri, match, copy, directory, say, patience or Patience())


def _local(uri: str) -> Input:
    path = _local_path(uri)
    if not uri.endswith("/"):
        file = _local_file(path, None, uri)
        return Input(uri, (file,), file.sha256, file.size)
    if not path.is_dir():
        raise GroundcrewError(f"the input {uri} is no folder; correct INPUT")
    found = sorted(
        (each.relative_to(path).as_posix(), each)
        for each in path.rglob("*")
        if each.suffix.lower() in SUFFIXES and each.is_file()
    )
    return _several(uri, [_local_file(each, name, str(each)) for name, each in found])


def _local_path(uri: str) -> Path:
    if not uri.startswith("file:"):
        return Path(uri)
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise GroundcrewError(
            f"the input {uri} is on the host {parts.netloc!r}; INPUT must be file:///path, "
            "with three slashes"
        )
    return Path(unquote(parts.path))


def _local_file(path: Path, name: str | None, uri: str) -> File:
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as stream:
            before = _state(stream)
            while count := stream.readinto(buffer):
                digest.update(view[:count])
            after = _state(stream)
    except OSError as error:
        raise GroundcrewError(
            f"cannot read the input {uri}: {error.strerror}; correct INPUT"
        ) from error
    if before != after:
        raise _changed(uri)

    @contextmanager
    def reopen() -> Iterator[BinaryIO]:
        try:
            stream = path.open("rb")
        except OSError as error:
            raise _changed(uri) from error
        with stream:
            if _state(stream) != before:
                raise _changed(uri)
            yield stream
            if _state(stream) != before:
                raise _changed(uri)

    return File(name, uri, before[0], digest.hexdigest(), reopen)


def _state(stream: Any) -> tuple[int, ...]:
    found = os.fstat(stream.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


def _changed(uri: str) -> GroundcrewError:
    return GroundcrewError(
        f"the input {uri} changed while it was read; let what writes it replace it in one step, "
        "and run the job again"
    )


def _several(uri: str, files: list[File]) -> Input:
    if not files:
        raise GroundcrewError(f"there is no .csv or .parquet file below the input {uri}")
    listed = json.dumps([[file.name, file.size, file.sha256] for file in files])
    digest = hashlib.sha256(listed.encode()).hexdigest()
    return Input(uri, tuple(files), digest, sum(file.size for file in files))


# -- S3 ------------------------------------------------------------------------------------------


def _copied(
    client: Any,
    uri: str,
    match: re.Match[str],
    copy: BinaryIO,
    directory: Path,
    say: Callable[[str], None],
    patience: Patience,
) -> Input:
    bucket, key = match[1], match[2]
    listed = _listed(client, bucket, key, uri) if key.endswith("/") else [(key, None)]
    total = sum(size or 0 for _, size in listed)
    progress = Progress(say, total, "copied")
    files = []
    offset = 0
    for name, _size in listed:
        own = f"s3://{bucket}/{name}"
        try:
            digest, size = _download(client, bucket, name, own, copy, progress, patience)
        except OSError as error:
            raise _work_directory_error(own, directory, error) from error
        below = name[len(key) :] if key.endswith("/") else None
        files.append(File(below, own, size, digest, _window(copy, offset, size)))
        offset += size
    if key.endswith("/"):
        return _several(uri, files)
    return Input(uri, tuple(files), files[0].sha256, files[0].size)


def _listed(client: Any, bucket: str, prefix: str, uri: str) -> list[tuple[str, int | None]]:
    """Keys and sizes of the files below a prefix, in the order of their keys."""
    found: list[tuple[str, int | None]] = []
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                if Path(entry["Key"]).suffix.lower() in SUFFIXES:
                    found.append((str(entry["Key"]), int(entry["Size"])))
    except client.exceptions.ClientError as error:
        if objects.error_code(error) not in _MISSING:
            raise
        raise GroundcrewError(f"the input {uri} does not exist; correct INPUT") from error
    if not found:
        raise GroundcrewError(f"there is no .csv or .parquet file below the input {uri}")
    return sorted(found)


def _download(
    client: Any,
    bucket: str,
    key: str,
    uri: str,
    copy: BinaryIO,
    progress: Progress,
    patience: Patience,
) -> tuple[str, int]:
    """Append an object to the copy; its sha256 and size.

    A connection that ends early is taken up where it ended, of the same object. OSError is the
    copy's own.
    """
    digest = hashlib.sha256()
    received = 0
    etag = ""
    size: int | None = None
    tries = patience.tries()
    while size is None or received < size:
        before = received
        fault: Exception | None = None
        try:
            answer = _get(client, bucket, key, uri, received, etag)
            if size is None:
                etag, size = str(answer["ETag"]), int(answer["ContentLength"])
                progress.expect(size)
            body = answer["Body"]
            while True:
                block = body.read(_BLOCK)
                if not block:
                    break
                try:
                    copy.write(block)
                except OSError as error:
                    raise _CopyError from error
                digest.update(block)
                received += len(block)
                progress.add(len(block))
        except _CopyError as error:
            raise error.__cause__ or error from None
        except TRANSIENT as error:
            fault = error
        except client.exceptions.ClientError as error:
            if not patience.passes(error):
                raise
            fault = error
        if size is not None and received >= size:
            break
        if received > before:
            # Whatever came is kept, so the next cut is a fault of its own.
            tries = patience.tries()
        if not tries.again():
            at = f"{received} of {size} bytes" if size else "its first byte"
            raise GroundcrewError(
                f"the input {uri} broke off after {at}, {patience.attempts} times one after the "
                f"other ({fault or 'the connection was closed'}); check the network and run the "
                "job again"
            ) from fault
    if received != size:
        raise _changed(uri)
    copy.flush()
    return digest.hexdigest(), received


class _CopyError(Exception):
    """Writing the copy failed, not reading the object."""


def _get(client: Any, bucket: str, key: str, uri: str, start: int, etag: str) -> Any:
    more = {"Range": f"bytes={start}-"} if start else {}
    if etag:
        more["IfMatch"] = etag
    try:
        return client.get_object(Bucket=bucket, Key=key, **more)
    except client.exceptions.ClientError as error:
        code = objects.error_code(error)
        if code in _CHANGED or (etag and code in _MISSING):
            raise _changed(uri) from error
        if code in _MISSING:
            raise GroundcrewError(f"the input {uri} does not exist; correct INPUT") from error
        raise


def _work_directory_error(uri: str, directory: Path, error: OSError) -> GroundcrewError:
    return GroundcrewError(
        f"cannot copy the input {uri} to {directory}: {error.strerror or error}; give the job a "
        "WORK_DIRECTORY with space for it"
    )


def _window(copy: BinaryIO, offset: int, size: int) -> Callable[[], Any]:
    @contextmanager
    def reopen() -> Iterator[BinaryIO]:
        with io.BufferedReader(_Window(copy.fileno(), offset, size), _BLOCK) as stream:
            yield stream

    return reopen


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._offset, self._size, self._position = descriptor, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        count = os.preadv(self._descriptor, [view[:wanted]], self._offset + self._position)
        self._position += count
        return count
