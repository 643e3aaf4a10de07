"""Package files from channels into the archive cache: in parallel, verified, each whole or not at all."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import GroundcrewError
from .addresses import VARIABLE, address, without_secrets
from .lock import CondaPackage

PARALLEL = 8
ATTEMPTS = 3
SILENCE_SECONDS = 60
_CHUNK = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({401, 403, 407})
_WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504})


def url_of(package: CondaPackage, channels: Mapping[str, str]) -> str:
    """Where a package file is: the channel's address, the subdir and the file name.

    Raises GroundcrewError: no address is known for the channel.
    """
    return f"{address(package.channel, channels)}/{package.subdir}/{package.file_name}"


def path_of(archives: Path, package: CondaPackage) -> Path:
    """The folder is named after the hash, so that two channels' files of one name never meet."""
    return archives / package.sha256 / package.file_name


def fetch(packages: Sequence[CondaPackage], archives: Path, channels: Mapping[str, str]) -> int:
    """Make ``archives`` hold every package; what is there already is not asked for again.

    Returns the number of files that were downloaded. A file that could not be fetched stops the rest; those that were complete stay
    for the next try.

    Raises GroundcrewError: naming the file, its address, and what to do.
    """
    missing = [p for p in packages if not path_of(archives, p).exists()]
    urls = {package: url_of(package, channels) for package in missing}
    with ThreadPoolExecutor(PARALLEL) as pool:
        pending = [pool.submit(_one, p, urls[p], archives) for p in missing]
        try:
            for done in pending:
                done.result()
        except BaseException as error:
            for other in pending:
                other.cancel()
            if not isinstance(error, GroundcrewError):
                raise
            here = len(packages) - sum(not path_of(archives, p).exists() for p in packages)
            raise GroundcrewError(f"{error} {here} of {len(packages)} packages are here.") from None
    return len(missing)


def _one(package: CondaPackage, url: str, archives: Path) -> None:
    final = path_of(archives, package)
    final.parent.mkdir(parents=True, exist_ok=True)
    # One program at a time works in a root: what is there is of one that was killed.
    for dead in final.parent.glob(".*.part"):
        dead.unlink()
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        got = _with_retries(url, part, package)
        if got != package.sha256:
            raise GroundcrewError(
                f"{package.file_name} from channel '{package.channel}' is not the file in the lock: its sha256 is {got},"
                f" the lock has {package.sha256}. It was damaged on the way, or replaced in the channel ({without_secrets(url)})."
                " Nothing of it was used. Try again; if it stays, ask the channel's owner, then run `make lock` and review."
            )
        os.replace(part, final)
    except OSError as error:
        if error.errno in _FULL:
            raise GroundcrewError(
                f"No space is left in {archives} while fetching {package.file_name}. Make room there, then run it again."
            ) from None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _with_retries(url: str, part: Path, package: CondaPackage) -> str:
    shown = without_secrets(url)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download(url, part)
        except urllib.error.HTTPError as error:
            if error.code in _REFUSED:
                raise GroundcrewError(
                    f"Channel '{package.channel}' refuses {package.subdir}/{package.file_name}: {shown} answered {error.code}."
                    f" Check the name and password, or the token, in {VARIABLE}."
                ) from None
            if error.code not in _WORTH_RETRYING:
                raise GroundcrewError(
                    f"Channel '{package.channel}' has no {package.subdir}/{package.file_name}: {shown} answered {error.code}."
                    " It was taken back, or a mirror lacks it. Mend the mirror, or run `make lock` for what there is today."
                ) from None
            reason = f"it answered {error.code}"
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, FileNotFoundError):
                raise GroundcrewError(
                    f"Channel '{package.channel}' has no {package.subdir}/{package.file_name}: {shown} does not exist."
                    f" Check {VARIABLE}, or run `make lock` for what there is today."
                ) from None
            if isinstance(cause, OSError) and cause.errno in (*_FULL, errno.EROFS, errno.EACCES):
                raise cause from None
            reason = str(cause) or type(cause).__name__
        if attempt < ATTEMPTS:
            time.sleep(attempt)
    raise GroundcrewError(
        f"Channel '{package.channel}' does not answer at {shown} ({reason}; {ATTEMPTS} tries). Check the network, or name a mirror"
        f" in {VARIABLE}."
    )


def _download(url: str, part: Path) -> str:
    """Write the address's content to ``part``; returns its SHA-256."""
    digest = hashlib.sha256()
    with _open(url) as answer, part.open("wb") as file:
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        # http.client takes a connection that was cut for the end of the file.
        expected = answer.headers.get("Content-Length", "")
        if expected.isdigit() and file.tell() != int(expected):
            raise ConnectionError(f"the connection was cut after {file.tell()} of {expected} bytes")
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _open(url: str) -> http.client.HTTPResponse:
    """As urlopen, which knows no name and password in an address; they are not told to where it redirects to."""
    parts = urllib.parse.urlsplit(url)
    account, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=place).geturl())
    if account:
        token = base64.b64encode(urllib.parse.unquote_to_bytes(account)).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SILENCE_SECONDS)
    return answer
