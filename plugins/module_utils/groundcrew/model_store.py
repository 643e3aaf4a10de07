"""Model versions in the store and on hosts.

Layout under one bucket, immutable once the manifest is there::

    models/<model>/<version>/claim.json      who is publishing this version, since when
    models/<model>/<version>/<files…>        the artifact and golden.json
    models/<model>/<version>/manifest.json   files with sha256 and size, framework, signature,
    metrics,
                                             data digest, …; written last: no manifest, no model

On a host the same files, without the claim, lie in ``<directory>/<model>/<version>/``. A version
appears there by one rename, after every checksum was right. Beside the versions:

    .verified-<version>.json   sizes and modification times as of the last full verification
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from . import golden, objects
from .errors import GroundcrewError

MANIFEST = "manifest.json"
GOLDEN = "golden.json"
CLAIM = "claim.json"
NEXT = "next"
CLAIM_EXPIRES_SECONDS = 24 * 3600.0

_MODEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_LOCK_WAIT_SECONDS = 60.0
_SPARE_BYTES = 64 * 1024 * 1024
# So many publishers of one model at once are a fault of whoever starts them.
_MOST_CLAIMS_PASSED = 100


class TakenError(GroundcrewError):
    """A version is published already, or somebody else is publishing it."""


@dataclass(frozen=True)
class Claim:
    """The right to publish one version; ``token`` tells this publisher from any other."""

    model: str
    version: str
    owner: str
    token: str
    created: str


@dataclass(frozen=True)
class Listed:
    """An object as a listing of the store shows it; size in bytes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Version:
    """A verified version on a host: its directory, its manifest and the manifest's sha256."""

    path: Path
    manifest: dict[str, Any]
    manifest_sha256: str


@dataclass(frozen=True)
class Ownership:
    """Owner and group ids (None: as they are) and the mode of files; directories may be
    searched."""

    uid: int | None = None
    gid: int | None = None
    mode: int = 0o644


@dataclass
class Outcome:
    """What :func:`reconcile` did, or would do in check mode.

    ``fetched``, ``repaired`` and ``pruned`` hold "<model>/<version>"; ``models`` one entry a listed
    version (name, version, path, manifest_sha256, metrics).
    """

    fetched: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ownership_changed: bool = False

    @property
    def changed(self) -> bool:
        return bool(self.fetched or self.repaired or self.pruned or self.ownership_changed)


# -- names ---------------------------------------------------------------------------------------


def check_model(model: str) -> str:
    """``model`` itself. Raises GroundcrewError when it cannot name a model."""
    if not _MODEL.match(model):
        raise GroundcrewError(
            f"model {model!r} is not a valid name; use lower-case letters, digits, '-' and '_', "
            "at most 63, the first a letter or digit"
        )
    return model


def is_version(version: str) -> bool:
    """Whether this is a whole number of 1 or more."""
    return _VERSION.match(version) is not None


def check_version(version: str) -> str:
    """``version`` itself. Raises GroundcrewError unless it is a whole number of 1 or more."""
    if not is_version(version):
        raise GroundcrewError(
            f"model version {version!r} is not valid; it must be a whole number of 1 or more, "
            'quoted in YAML, such as version: "3"'
        )
    return version


def prefix(model: str, version: str) -> str:
    """The key prefix of one version, with a slash at the end."""
    return f"models/{check_model(model)}/{check_version(version)}/"


def is_safe_name(name: Any) -> bool:
    """Whether a file of this name lies below the directory that it is written into."""
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    return not (
        path.is_absolute()
        or str(path) != name
        or ".." in path.parts
        or name == "."
        or any(ord(character) < 32 or character == "\\" for character in name)
    )


def _check_file_name(name: Any, source: str) -> str:
    """Refuse names that would leave the version's directory or collide with the store's own
    files."""
    if not is_safe_name(name) or name in (MANIFEST, CLAIM):
        raise GroundcrewError(
            f"{source} lists the file {name!r}, which is not a safe relative path"
        )
    return str(name)


# -- manifests -----------------------------------------------------------------------------------


def parse_manifest(data: bytes | str, source: str) -> dict[str, Any]:
    """A manifest from JSON, its shape checked. Raises GroundcrewError that names ``source``."""
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise GroundcrewError(
            f"{source} is not JSON ({error}); publish the model under a new version"
        ) from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise GroundcrewError(f"{source} lists no files; publish the model under a new version")
    for name, entry in files.items():
        _check_file_name(name, source)
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("sha256"), str)
            or not _SHA256.match(entry["sha256"])
            or type(entry.get("size")) is not int
            or entry["size"] < 0
        ):
            raise GroundcrewError(
                f"{source}: the entry of {name!r} needs a sha256 and a size in bytes"
            )
    for key, kind in (("framework", str), ("signature", dict), ("metrics", dict)):
        if not isinstance(manifest.get(key), kind):
            raise GroundcrewError(
                f"{source}: {key!r} is {manifest.get(key)!r}, not a {kind.__name__}"
            )
    return dict(manifest)


def sha256_file(path: Path) -> tuple[str, int]:
    """The sha256 (hexadecimal) and size (bytes) of a file, read once."""
    with path.open("rb") as stream:
        return read_sha256(stream)


def read_sha256(stream: Any, copy: Any = None) -> tuple[str, int]:
    """The sha256 (hexadecimal) and size (bytes) of what is left in a stream, written to ``copy``."""
    digest = hashlib.sha256()
    size = 0
    while block := stream.read(1 << 20):
        digest.update(block)
        size += len(block)
        if copy is not None:
            copy.write(block)
    return digest.hexdigest(), size


def list_objects(client: Any, bucket: str, start: str) -> list[Listed]:
    """The objects under a key prefix, sorted by key. Raises GroundcrewError without the bucket."""
    found = []
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
            found += [
                Listed(str(entry["Key"]), int(entry["Size"]), str(entry["ETag"]))
                for entry in page.get("Contents", [])
            ]
    except client.exceptions.ClientError as error:
        if objects.error_code(error) == "NoSuchBucket":
            raise objects.missing_bucket(bucket) from error
        raise
    return sorted(found, key=lambda entry: entry.key)


def versions(client: Any, bucket: str, model: str) -> list[str]:
    """The published versions of a model, oldest first. Raises GroundcrewError without the
    bucket."""
    start = f"models/{check_model(model)}/"
    found = []
    for key in objects.list_keys(client, bucket, start):
        version, _, name = key[len(start) :].partition("/")
        if name == MANIFEST and _VERSION.match(version):
            found.append(version)
    return sorted(found, key=int)


def read_manifest(client: Any, bucket: str, model: str, version: str) -> tuple[dict[str, Any], str]:
    """A version's manifest and its sha256.

    Raises GroundcrewError when the version is not in the store; the message lists those that are.
    """
    data = _read_manifest_object(client, bucket, model, version)
    manifest = parse_manifest(data, f"s3://{bucket}/{prefix(model, version)}{MANIFEST}")
    return manifest, hashlib.sha256(data).hexdigest()


def _read_manifest_object(client: Any, bucket: str, model: str, version: str) -> bytes:
    stored = objects.get(client, bucket, prefix(model, version) + MANIFEST)
    if stored is None:
        raise missing_version(model, version, versions(client, bucket, model), bucket)
    return stored.data


def missing_version(
    model: str, version: str, available: Sequence[str], bucket: str
) -> GroundcrewError:
    """The error for a version that the store does not have."""
    has = f"has versions {', '.join(available)}" if available else "has no version of it"
    return GroundcrewError(
        f"model {model} version {version} is not in the store; s3://{bucket} {has}. "
        "Correct the version under models: in the inventory, or train and publish it"
    )


# -- publishing ----------------------------------------------------------------------------------


def claim(
    client: Any,
    bucket: str,
    model: str,
    version: str,
    owner: str | None = None,
    expires_seconds: float = CLAIM_EXPIRES_SECONDS,
    resume: bool = True,
) -> Claim:
    """Claim a version for publishing, so that two publishers never mix their files.

    ``owner`` (default: the host's name) may take its own unfinished claim over at once, which is
    how an interrupted job is run again: whoever starts jobs runs one a model and owner at a time.
    With ``resume=False`` it may not. Anybody may take a claim over that is older than
    ``expires_seconds``. Raises TakenError when the version is published, or claimed by somebody
    else.
    """
    mine = Claim(
        model=model,
        version=version,
        owner=owner or socket.gethostname(),
        token=uuid.uuid4().hex,
        created=objects.timestamp(),
    )
    where = prefix(model, version)
    data = objects.to_json({"owner": mine.owner, "token": mine.token, "created": mine.created})
    for _attempt in range(3):
        if objects.get(client, bucket, where + MANIFEST) is not None:
            raise _taken(client, bucket, model, version)
        stored = objects.get(client, bucket, where + CLAIM)
        if stored is not None and stored.data == data:
            return mine
        if stored is not None:
            holder, created = _parse_claim(stored.data)
            age = (datetime.now(timezone.utc) - created).total_seconds()
            own = resume and holder == mine.owner
            if not own and age < expires_seconds:
                raise TakenError(
                    f"model {model} version {version} is being published by {holder} since "
                    f"{objects.timestamp(created)}. Wait for it, choose another version, or, when "
                    f"that publisher is gone, run: aws s3 rm s3://{bucket}/{where}{CLAIM}"
                )
        try:
            objects.put(
                client,
                bucket,
                where + CLAIM,
                data,
                absent=stored is None,
                etag=stored.etag if stored else None,
            )
        except objects.ConflictError:
            continue
        return mine
    raise TakenError(
        f"model {model} version {version} is being claimed by several publishers at once; "
        "choose another version"
    )


def claim_next(
    client: Any,
    bucket: str,
    model: str,
    owner: str | None = None,
    expires_seconds: float = CLAIM_EXPIRES_SECONDS,
) -> Claim:
    """Claim the lowest version above all published ones that nobody else is publishing.

    Two publishers at once get two versions, of the same owner too: here nobody can tell an owner's
    second job from its dead first one, so a claim is only taken over when it is older than
    ``expires_seconds``. Versions may have gaps, after a gate refused one for example.
    """
    published = versions(client, bucket, model)
    first = max((int(number) for number in published), default=0) + 1
    for number in range(first, first + _MOST_CLAIMS_PASSED):
        try:
            return claim(client, bucket, model, str(number), owner, expires_seconds, resume=False)
        except TakenError:
            continue
    raise GroundcrewError(
        f"model {model}: versions {first} to {number} are all being published; remove the claims "
        f"of publishers that are gone: aws s3 rm --recursive --exclude '*' --include '*/{CLAIM}' "
        f"s3://{bucket}/models/{model}/"
    )


def renew(client: Any, bucket: str, held: Claim) -> bool:
    """Make a claim as young as a new one, so that long work does not lose it; whether it is held."""
    where = prefix(held.model, held.version) + CLAIM
    stored = objects.get(client, bucket, where)
    if stored is None or _token(stored.data) != held.token:
        return False
    document = {"owner": held.owner, "token": held.token, "created": objects.timestamp()}
    try:
        objects.put(client, bucket, where, objects.to_json(document), etag=stored.etag)
    except objects.ConflictError:
        # Taken over, unless boto3 repeated a write whose answer was lost.
        return _holds(client, bucket, held)
    return True


def claimed_by(client: Any, bucket: str, model: str, version: str) -> str | None:
    """The token of a version's claim, which stays after it is published; None without one."""
    stored = objects.get(client, bucket, prefix(model, version) + CLAIM)
    return None if stored is None else _token(stored.data)


def release(client: Any, bucket: str, held: Claim) -> None:
    """Give a claim back, after a gate refused the model for example. Does nothing when it was
    lost."""
    if _holds(client, bucket, held):
        client.delete_object(Bucket=bucket, Key=prefix(held.model, held.version) + CLAIM)


def publish(
    client: Any, bucket: str, held: Claim, directory: Path, manifest: Mapping[str, Any]
) -> str:
    """Publish the files of ``directory`` as the claimed version; returns the manifest's sha256.

    ``manifest`` holds framework, signature, metrics and so on; ``files`` and, when missing,
    ``created`` are added. ``directory`` must hold golden.json. The manifest is written last and
    only when there is none. Raises GroundcrewError when the claim was lost or the version is taken.
    """
    where = prefix(held.model, held.version)
    golden.load(directory / GOLDEN)
    files: dict[str, dict[str, Any]] = {}
    for name in files_of(directory):
        digest, size = sha256_file(directory / name)
        files[_check_file_name(name, str(directory))] = {"sha256": digest, "size": size}
    document = {"created": objects.timestamp(), **manifest, "files": files}
    data = objects.to_json(document)
    parse_manifest(data, f"the manifest of {held.model} version {held.version}")

    for name, entry in files.items():
        _require_claim(client, bucket, held)
        client.upload_file(
            str(directory / name),
            bucket,
            where + name,
            ExtraArgs={"Metadata": {"sha256": entry["sha256"]}},
        )
    for name, entry in files.items():
        head = client.head_object(Bucket=bucket, Key=where + name)
        found = (head["Metadata"].get("sha256"), head["ContentLength"])
        if found != (entry["sha256"], entry["size"]):
            raise GroundcrewError(
                f"s3://{bucket}/{where}{name} holds sha256 {found[0]} and {found[1]} bytes, not "
                f"the {entry['sha256']} and {entry['size']} bytes just written: somebody else "
                "writes there; publish as another version"
            )
    _require_claim(client, bucket, held)
    try:
        objects.put(client, bucket, where + MANIFEST, data, absent=True)
    except objects.ConflictError:
        stored = objects.get(client, bucket, where + MANIFEST)
        if stored is None or stored.data != data:
            raise _taken(client, bucket, held.model, held.version) from None
    return hashlib.sha256(data).hexdigest()


def _taken(client: Any, bucket: str, model: str, version: str) -> TakenError:
    published = versions(client, bucket, model)
    following = max((int(number) for number in published), default=0) + 1
    return TakenError(
        f"model {model} version {version} is published already, and versions never change; "
        f"the next free version is {following}"
    )


def _parse_claim(data: bytes) -> tuple[str, datetime]:
    """Owner and time of a claim; a malformed one belongs to nobody and is as old as can be."""
    try:
        document = json.loads(data)
        return str(document["owner"]), objects.parse_timestamp(document["created"])
    except (ValueError, TypeError, KeyError):
        return "", datetime(1970, 1, 1, tzinfo=timezone.utc)


def _holds(client: Any, bucket: str, held: Claim) -> bool:
    return claimed_by(client, bucket, held.model, held.version) == held.token


def _token(data: bytes) -> str | None:
    try:
        return str(json.loads(data)["token"])
    except (ValueError, TypeError, KeyError):
        return None


def _require_claim(client: Any, bucket: str, held: Claim) -> None:
    if not _holds(client, bucket, held):
        raise GroundcrewError(
            f"another publisher took over model {held.model} version {held.version} while "
            f"{held.owner} was publishing it; nothing of it is visible. Publish as another version"
        )


def files_of(directory: Path) -> list[str]:
    """Relative names of the files below a directory, sorted. Raises GroundcrewError on a link."""
    names = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise GroundcrewError(
                f"{path} is not a plain file; a model version holds only plain files"
            )
        if path.is_file():
            names.append(path.relative_to(directory).as_posix())
    return names


def check_whole(
    client: Any, bucket: str, model: str, version: str, full: bool = True
) -> tuple[dict[str, Any], str]:
    """The manifest and its sha256 of a version of which every file is in the store.

    ``full`` reads each file and compares its sha256; without it sizes and the sha256 that publishing
    noted are compared. Raises GroundcrewError that names the first file that is missing or another.
    """
    manifest, digest = read_manifest(client, bucket, model, version)
    for name, entry in manifest["files"].items():
        key = prefix(model, version) + name
        try:
            if full:
                found = read_sha256(client.get_object(Bucket=bucket, Key=key)["Body"])
            else:
                head = client.head_object(Bucket=bucket, Key=key)
                found = (head["Metadata"].get("sha256", entry["sha256"]), head["ContentLength"])
        except client.exceptions.ClientError as error:
            if objects.error_code(error) not in ("404", "NoSuchKey"):
                raise
            raise GroundcrewError(
                f"s3://{bucket}/{key} is missing although the manifest lists it; publish the "
                "model under a new version"
            ) from error
        if found != (entry["sha256"], entry["size"]):
            raise GroundcrewError(
                f"s3://{bucket}/{key} has sha256 {found[0]} and {found[1]} bytes, the manifest "
                f"expects {entry['sha256']} and {entry['size']} bytes; publish the model under a "
                "new version"
            )
    return manifest, digest


# -- on hosts ------------------------------------------------------------------------------------


def verify_directory(directory: str | Path) -> Version:
    """Verify a version's directory in full: every file's size and sha256, and no file besides.

    Raises GroundcrewError that names the file, the expected and the found value.
    """
    path = Path(directory)
    data = _read_manifest_file(path)
    manifest = parse_manifest(data, str(path / MANIFEST))
    expected: dict[str, dict[str, Any]] = manifest["files"]
    for name in files_of(path):
        if name != MANIFEST and name not in expected:
            raise GroundcrewError(
                f"{path / name} is not in the manifest; remove it, or fetch the version again"
            )
    for name, entry in expected.items():
        _verify_file(path / name, entry)
    return Version(path, manifest, hashlib.sha256(data).hexdigest())


def _read_manifest_file(path: Path) -> bytes:
    try:
        return (path / MANIFEST).read_bytes()
    except OSError as error:
        raise GroundcrewError(
            f"cannot read {path / MANIFEST}: {error.strerror}; fetch the model version to this host"
        ) from error


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    again = "fetch the model version again; if it fails again, publish it under a new version"
    try:
        digest, size = sha256_file(path)
    except OSError as error:
        raise GroundcrewError(f"cannot read {path}: {error.strerror}; {again}") from error
    if size != entry["size"]:
        raise GroundcrewError(
            f"{path} has {size} bytes, the manifest expects {entry['size']}; {again}"
        )
    if digest != entry["sha256"]:
        raise GroundcrewError(
            f"{path} has sha256 {digest}, the manifest expects {entry['sha256']}; {again}"
        )


def fetch(
    client: Any,
    bucket: str,
    model: str,
    version: str,
    destination: str | Path,
    ownership: Ownership | None = None,
) -> Version:
    """Download a version to the directory ``destination``, whole and verified or not at all.

    Files go to ``<parent>/.partial-*``, are verified and synced, then renamed into place; a
    directory that is there already is replaced. Raises GroundcrewError when the version is not in
    the store, when a file is missing there or its sha256 or size differs, or when the disk is too
    small.
    """
    target = Path(destination)
    source = prefix(model, version)
    data = _read_manifest_object(client, bucket, model, version)
    manifest = parse_manifest(data, f"s3://{bucket}/{source}{MANIFEST}")
    target.parent.mkdir(parents=True, exist_ok=True)
    _require_space(target.parent, manifest)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{version}-", dir=target.parent))
    try:
        for name, entry in manifest["files"].items():
            _download(client, bucket, source + name, partial / name, entry)
        (partial / MANIFEST).write_bytes(data)
        fetched = verify_directory(partial)
        _apply_ownership(partial, ownership or Ownership())
        sync_tree(partial)
        _replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Version(target, fetched.manifest, fetched.manifest_sha256)


def _require_space(directory: Path, manifest: Mapping[str, Any]) -> None:
    needed = sum(entry["size"] for entry in manifest["files"].values()) + _SPARE_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise GroundcrewError(
            f"{directory} has {free >> 20} MiB free, the model needs {needed >> 20} MiB; "
            "free some space or lower model_store's number of kept versions"
        )


def _download(client: Any, bucket: str, key: str, path: Path, entry: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        client.download_file(bucket, key, str(path))
    except client.exceptions.ClientError as error:
        if objects.error_code(error) not in ("404", "NoSuchKey"):
            raise
        raise GroundcrewError(
            f"s3://{bucket}/{key} is missing although the manifest lists it; publish the model "
            "under a new version"
        ) from error
    digest, size = sha256_file(path)
    if (digest, size) != (entry["sha256"], entry["size"]):
        raise GroundcrewError(
            f"s3://{bucket}/{key} has sha256 {digest} and {size} bytes, the manifest expects "
            f"{entry['sha256']} and {entry['size']} bytes; nothing was installed. Fetch again; if "
            "it fails again, publish the model under a new version"
        )


def _apply_ownership(directory: Path, ownership: Ownership, dry_run: bool = False) -> bool:
    """Set owner, group and mode of a tree unless ``dry_run``; whether anything differed."""
    changed = False
    # Whoever may read a file may search the directories above it.
    search = ownership.mode | (ownership.mode & 0o444) >> 2
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        uid = status.st_uid if ownership.uid is None else ownership.uid
        gid = status.st_gid if ownership.gid is None else ownership.gid
        if (uid, gid) != (status.st_uid, status.st_gid):
            changed = True
            if not dry_run:
                os.chown(path, uid, gid, follow_symlinks=False)
        mode = search if path.is_dir() else ownership.mode
        if status.st_mode & 0o7777 != mode:
            changed = True
            if not dry_run:
                path.chmod(mode)
    return changed


def sync_tree(directory: Path) -> None:
    """Have everything below a directory, and itself, on the disk."""
    for path in [*directory.rglob("*"), directory]:
        sync(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``; one that is there moves aside first and is then removed."""
    aside = None
    if target.exists():
        # rename(2) replaces only an empty directory.
        aside = target.parent / f".replaced-{target.name}-{uuid.uuid4().hex[:8]}"
        target.rename(aside)
    partial.rename(target)
    sync(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def reconcile(
    client: Any,
    bucket: str,
    wanted: Sequence[tuple[str, str]],
    directory: str | Path,
    *,
    keep: int = 2,
    full: bool = False,
    check_mode: bool = False,
    ownership: Ownership | None = None,
    in_use: Iterable[str | Path] = (),
) -> Outcome:
    """Make a host's directory hold the wanted (model, version) pairs, verified.

    A version that is there is checked by size and modification time against its last verification,
    with ``full`` by sha256, and fetched again when it differs. Of each wanted model, the ``keep``
    highest other versions stay, and those whose directories are ``in_use``; older ones are removed. Models that are
    not wanted are left alone. In check mode nothing is written, and a store that cannot be reached,
    or lacks the bucket or the version, is a warning. Raises GroundcrewError otherwise.
    """
    root = Path(directory)
    rights = ownership or Ownership()
    used = {Path(path) for path in in_use}
    outcome = Outcome()
    for model, version in wanted:
        prefix(model, version)
    if check_mode:
        _reconcile_all(client, bucket, wanted, root, keep, full, True, rights, used, outcome)
        return outcome
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / ".lock"):
        _reconcile_all(client, bucket, wanted, root, keep, full, False, rights, used, outcome)
    return outcome


def _reconcile_all(
    client: Any,
    bucket: str,
    wanted: Sequence[tuple[str, str]],
    root: Path,
    keep: int,
    full: bool,
    check_mode: bool,
    rights: Ownership,
    used: set[Path],
    outcome: Outcome,
) -> None:
    for model in dict.fromkeys(model for model, _ in wanted):
        if not check_mode:
            _remove_leftovers(root / model)
    for model, version in dict.fromkeys(wanted):
        _reconcile_one(client, bucket, model, version, root, full, check_mode, rights, outcome)
    for model in dict.fromkeys(model for model, _ in wanted):
        pinned = {version for name, version in wanted if name == model}
        pinned |= {path.name for path in used if path.parent == root / model}
        for version in _prunable(root / model, pinned, keep):
            outcome.pruned.append(f"{model}/{version}")
            if not check_mode:
                shutil.rmtree(root / model / version)
                _record_path(root / model, version).unlink(missing_ok=True)


def _reconcile_one(
    client: Any,
    bucket: str,
    model: str,
    version: str,
    root: Path,
    full: bool,
    check_mode: bool,
    rights: Ownership,
    outcome: Outcome,
) -> None:
    target = root / model / version
    label = f"{model}/{version}"
    present = target.is_dir()
    installed = _present(target, full, check_mode) if present else None
    if installed is not None:
        if _apply_ownership(target, rights, dry_run=check_mode):
            outcome.ownership_changed = True
    else:
        (outcome.repaired if present else outcome.fetched).append(label)
        if check_mode:
            try:
                with objects.readable_errors(bucket):
                    manifest, digest = read_manifest(client, bucket, model, version)
            except GroundcrewError as error:
                outcome.warnings.append(str(error))
                return
            installed = Version(target, manifest, digest)
        else:
            installed = fetch(client, bucket, model, version, target, rights)
            _record(installed)
    if installed is not None:
        outcome.models.append(
            {
                "name": model,
                "version": version,
                "path": str(target),
                "manifest_sha256": installed.manifest_sha256,
                "metrics": installed.manifest["metrics"],
            }
        )


def _present(target: Path, full: bool, check_mode: bool) -> Version | None:
    """The version in ``target``, or None when it has to be fetched again."""
    if not full:
        unchanged = _unchanged(target)
        if unchanged is not None:
            return unchanged
    try:
        verified = verify_directory(target)
    except GroundcrewError:
        return None
    if not check_mode:
        _record(verified)
    return verified


def _record_path(parent: Path, version: str) -> Path:
    return parent / f".verified-{version}.json"


def _snapshot(target: Path) -> dict[str, list[int]]:
    """Size, modification time (ns) and inode of each file; an inode differs after a replacement."""
    snapshot = {}
    for name in files_of(target):
        status = (target / name).stat()
        snapshot[name] = [status.st_size, status.st_mtime_ns, status.st_ino]
    return snapshot


def _record(installed: Version) -> None:
    path = _record_path(installed.path.parent, installed.path.name)
    document = {
        "manifest_sha256": installed.manifest_sha256,
        "files": _snapshot(installed.path),
    }
    data = objects.to_json(document)
    if path.exists() and path.read_bytes() == data:
        return
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.replace(path)


def _unchanged(target: Path) -> Version | None:
    """The version in ``target`` when nothing changed since the last full verification, else
    None."""
    try:
        record = json.loads(_record_path(target.parent, target.name).read_bytes())
        if _snapshot(target) != record["files"]:
            return None
        data = (target / MANIFEST).read_bytes()
        manifest = parse_manifest(data, str(target / MANIFEST))
    except (OSError, ValueError, KeyError, TypeError, GroundcrewError):
        return None
    digest = hashlib.sha256(data).hexdigest()
    return Version(target, manifest, digest) if digest == record["manifest_sha256"] else None


def _prunable(parent: Path, pinned: set[str], keep: int) -> list[str]:
    if not parent.is_dir():
        return []
    others = [
        entry.name
        for entry in parent.iterdir()
        if entry.is_dir() and _VERSION.match(entry.name) and entry.name not in pinned
    ]
    return sorted(others, key=int, reverse=True)[keep:]


def _remove_leftovers(parent: Path) -> None:
    """Remove what an interrupted fetch left; safe under the lock, which its process held."""
    if parent.is_dir():
        for entry in parent.iterdir():
            if entry.name.startswith((".partial-", ".replaced-")):
                shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; waits up to a minute for another process on this host."""
    with path.open("a+") as stream:
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise GroundcrewError(
                        f"another process has held {path} for {_LOCK_WAIT_SECONDS:.0f} s: it is "
                        f"fetching models to this host; find it with: fuser {path}"
                    ) from error
                time.sleep(0.5)
        yield


def query(client: Any, bucket: str, wanted: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """What the store has of the wanted models: versions with manifests, and what is missing.

    ``wanted`` pairs a model with a version, or with None for all versions. Returns ``models``, one
    entry a model ({"name", "versions", "manifests": {version: manifest}}; manifests of the wanted
    versions, all of them for None) and ``missing``, one entry a wanted version that is not there
    ({"name", "version", "available", "message"}). Raises GroundcrewError without the bucket.
    """
    entries: dict[str, dict[str, Any]] = {}
    missing = []
    for model, version in wanted:
        entry = entries.get(model)
        if entry is None:
            available = versions(client, bucket, model)
            entry = {"name": model, "versions": available, "manifests": {}}
            entries[model] = entry
        for one in entry["versions"] if version is None else [check_version(version)]:
            if one not in entry["versions"]:
                message = str(missing_version(model, one, entry["versions"], bucket))
                missing.append(
                    {
                        "name": model,
                        "version": one,
                        "available": entry["versions"],
                        "message": message,
                    }
                )
            elif one not in entry["manifests"]:
                manifest, digest = read_manifest(client, bucket, model, one)
                entry["manifests"][one] = {**manifest, "manifest_sha256": digest}
    return {"models": list(entries.values()), "missing": missing}
