"""Package files from channels into the archive cache: in parallel, verified, each whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import urllib.error
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
        except GroundcrewError as error:
            for other in pending:
                other.cancel()
            here = len(packages) - sum(not path_of(archives, p).exists() for p in packages)
            raise GroundcrewError(f"{error} {here} of {len(packages)} packages are here.") from None
    return len(missing)


def _one(package: CondaPackage, url: str, archives: Path) -> None:
    final = path_of(archives, package)
    final.parent.mkdir(parents=True, exist_ok=True)
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
        if error.errno == errno.ENOSPC:
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
            if error.code not in _WORTH_RETRYING:
                raise GroundcrewError(
                    f"Channel '{package.channel}' has no {package.subdir}/{package.file_name}: {shown} answered {error.code}."
                    " It was taken back, or a mirror lacks it. Mend the mirror, or run `make lock` for what there is today."
                ) from None
            reason = f"it answered {error.code}"
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, FileNotFoundError):
                raise GroundcrewError(
                    f"Channel '{package.channel}' has no {package.subdir}/{package.file_name}: {shown} does not exist."
                    f" Check {VARIABLE}, or run `make lock` for what there is today."
                ) from None
            if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
                raise cause from None
            reason = str(cause)
        if attempt < ATTEMPTS:
            time.sleep(attempt)
    raise GroundcrewError(
        f"Channel '{package.channel}' does not answer at {shown} ({reason}; {ATTEMPTS} tries). Check the network, or name a mirror"
        f" in {VARIABLE}."
    )


def _download(url: str, part: Path) -> str:
    """Write the address's content to ``part``; returns its SHA-256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as answer, part.open("wb") as file:
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
