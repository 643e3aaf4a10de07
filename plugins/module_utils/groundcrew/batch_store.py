"""Batch predictions in the store.

Layout under one bucket, written in this order and never changed afterwards, except LATEST::

    predictions/<job>/<run>/part-00000.parquet …   predictions, one file a chunk
    predictions/<job>/<run>/rejected.parquet       rows that could not be scored, with the reason
    predictions/<job>/<run>/manifest.json          rows, rejected, model version, input digest,
                                                   sha256 and size of each file
    predictions/<job>/LATEST                       {"run": <run>, "manifest_sha256": …}, replaced
                                                   in one conditional write

A run id is the UTC time at which the run was due, such as ``20260131T040506Z``, with an optional
suffix; ids sort by time as text. LATEST only ever moves to a later run.

A manifest with ``held_back`` (the reason) is that of a complete run which LATEST does not name until
somebody accepts it; LATEST then has ``"accepted": true`` beside the two keys. Each object of a run
carries its sha256 and rows as metadata, and a part the ``identity`` of what it was made from: a run
that was killed and is started again keeps the parts whose identity is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import objects
from .errors import GroundcrewError

REJECTED = "rejected.parquet"
_JOB = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_RUN = re.compile(r"[0-9]{8}T[0-9]{6}Z(-[a-z0-9]+)?\Z")
_PART = re.compile(r"part-[0-9]{5,}\.parquet\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_LATEST_ATTEMPTS = 10


@dataclass(frozen=True)
class Latest:
    """What LATEST names: a run and the sha256 of its manifest. Cheap to read, so readers poll
    it."""

    run_id: str
    manifest_sha256: str


@dataclass(frozen=True)
class Run:
    """A complete, verified run: its manifest and the bytes of its part files (Parquet), in
    order."""

    run_id: str
    manifest: dict[str, Any]
    parts: list[bytes]
    manifest_sha256: str = ""


def new_run_id(now: datetime | None = None) -> str:
    """A run id for a moment (now by default), in UTC with whole seconds."""
    moment = now or datetime.now(timezone.utc)
    return moment.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def check_job(job: str) -> str:
    """``job`` itself. Raises GroundcrewError when it cannot name a job."""
    if not _JOB.match(job):
        raise GroundcrewError(
            f"batch job {job!r} is not a valid name; use lower-case letters, "
            "digits, '-' and '_', at most 63"
        )
    return job


def check_run_id(run_id: str) -> str:
    """``run_id`` itself. Raises GroundcrewError when it is not of the form
    20260131T040506Z[-suffix]."""
    if not _RUN.match(run_id):
        raise GroundcrewError(
            f"run id {run_id!r} is not valid; it must look like 20260131T040506Z, in UTC"
        )
    return run_id


def run_prefix(job: str, run_id: str) -> str:
    """The key prefix of one run, with a slash at the end."""
    return f"predictions/{check_job(job)}/{check_run_id(run_id)}/"


def latest_key(job: str) -> str:
    """The key of a job's LATEST."""
    return f"predictions/{check_job(job)}/LATEST"


# -- reading -------------------------------------------------------------------------------------


def read_pointer(client: Any, bucket: str, job: str) -> Latest | None:
    """What LATEST names, or None when the job has never finished a run. Raises GroundcrewError when
    it is malformed."""
    stored = objects.get(client, bucket, latest_key(job))
    return None if stored is None else parse_latest(stored.data, f"s3://{bucket}/{latest_key(job)}")


def read_latest(client: Any, bucket: str, job: str, max_parts: int | None = None) -> Run | None:
    """The newest complete run, or None when the job has never finished one.

    Everything read is verified: the manifest against LATEST, each part against the manifest.
    ``max_parts`` reads only the first parts (the manifest still tells the totals). Raises
    GroundcrewError when anything is missing or differs; a reader that holds an earlier run keeps
    it.
    """
    latest = read_pointer(client, bucket, job)
    return None if latest is None else read_run(client, bucket, job, latest, max_parts)


def read_run(
    client: Any, bucket: str, job: str, latest: Latest, max_parts: int | None = None
) -> Run:
    """The run that ``latest`` names, verified as in :func:`read_latest`."""
    prefix = run_prefix(job, latest.run_id)
    source = f"s3://{bucket}/{prefix}"
    stored = objects.get(client, bucket, prefix + "manifest.json")
    if stored is None:
        raise GroundcrewError(
            f"{source}manifest.json is missing although LATEST names it; {_again(job)}"
        )
    found = hashlib.sha256(stored.data).hexdigest()
    if found != latest.manifest_sha256:
        raise GroundcrewError(
            f"{source}manifest.json has sha256 {found}, LATEST expects "
            f"{latest.manifest_sha256}; {_again(job)}"
        )
    manifest = _parse_manifest(stored.data, source + "manifest.json")
    parts = [
        read_part(client, bucket, job, latest.run_id, manifest, name)
        for name in part_names(manifest)[:max_parts]
    ]
    return Run(run_id=latest.run_id, manifest=manifest, parts=parts, manifest_sha256=found)


def part_names(manifest: Mapping[str, Any]) -> list[str]:
    """The part files of a run, in order."""
    return sorted((name for name in manifest["files"] if _PART.match(name)), key=_part_number)


def read_part(
    client: Any, bucket: str, job: str, run_id: str, manifest: Mapping[str, Any], name: str
) -> bytes:
    """One part file, verified against the run's manifest. Raises GroundcrewError when it is missing
    or differs."""
    key = run_prefix(job, run_id) + name
    part = objects.get(client, bucket, key)
    if part is None:
        raise GroundcrewError(
            f"s3://{bucket}/{key} is missing although the manifest lists it; {_again(job)}"
        )
    expected = manifest["files"][name]
    digest = hashlib.sha256(part.data).hexdigest()
    if digest != expected["sha256"] or len(part.data) != expected["size"]:
        raise GroundcrewError(
            f"s3://{bucket}/{key} has sha256 {digest} and {len(part.data)} bytes, the manifest "
            f"expects {expected['sha256']} and {expected['size']} bytes; {_again(job)}"
        )
    return part.data


def _again(job: str) -> str:
    return f"run the batch job {job!r} again"


def _part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _part_number(name: str) -> int:
    return int(name[len("part-") : -len(".parquet")])


def parse_latest(data: bytes, source: str) -> Latest:
    """What the bytes of a LATEST name. Raises GroundcrewError, which names ``source``."""
    try:
        document = json.loads(data)
        run_id, digest = document["run"], document["manifest_sha256"]
        valid = bool(_RUN.match(run_id)) and bool(_SHA256.match(digest))
    except (ValueError, TypeError, KeyError):
        valid = False
    if not valid:
        raise GroundcrewError(
            f"{source} is malformed: {data[:80]!r}; run the batch job again, it replaces the file"
        )
    return Latest(run_id=run_id, manifest_sha256=digest)


def _parse_manifest(data: bytes, source: str) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        valid = isinstance(manifest, dict) and all(
            _SHA256.match(entry["sha256"])
            and type(entry["size"]) is int
            and type(entry["rows"]) is int
            for entry in manifest["files"].values()
        )
        valid = valid and type(manifest["rows"]) is int and type(manifest["rejected"]) is int
    except (ValueError, TypeError, KeyError, AttributeError):
        valid = False
    if not valid:
        raise GroundcrewError(f"{source} is not a batch manifest; run the batch job again")
    return dict(manifest)


def finished(client: Any, bucket: str, job: str, run_id: str) -> str | None:
    """The sha256 of a run's manifest, or None when the run is not finished.

    A run that was killed after its manifest and before LATEST is completed by :func:`move_latest`.
    """
    found = read_manifest(client, bucket, job, run_id)
    return None if found is None else found[1]


def read_manifest(
    client: Any, bucket: str, job: str, run_id: str
) -> tuple[dict[str, Any], str] | None:
    """A finished run's manifest and its sha256, or None when the run is not finished. Raises
    GroundcrewError when it is malformed."""
    key = run_prefix(job, run_id) + "manifest.json"
    stored = objects.get(client, bucket, key)
    if stored is None:
        return None
    manifest = _parse_manifest(stored.data, f"s3://{bucket}/{key}")
    return manifest, hashlib.sha256(stored.data).hexdigest()


# -- writing -------------------------------------------------------------------------------------


@dataclass
class BatchWriter:
    """Writes one run: :meth:`add_part` a chunk, :meth:`add_rejected` once, then :meth:`finish`.

    Nothing is visible to readers before :meth:`finish`. Parts have the number of their chunk, so a
    killed run can be written again under the same run id; :meth:`keep_part` tells which parts need
    not be. Parts may be written by several threads. ``files`` is what was written or kept so far:
    name to sha256, size (bytes) and rows.
    """

    client: Any
    bucket: str
    job: str
    run_id: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if finished(self.client, self.bucket, self.job, self.run_id) is not None:
            raise GroundcrewError(
                f"run {self.run_id} of batch job {self.job!r} is complete and cannot be "
                "written again; give the new run another RUN_ID, or none"
            )

    def add_part(self, index: int, data: bytes, rows: int, identity: str = "") -> str:
        """Write the predictions of chunk ``index`` (from 0); ``data`` is a Parquet file of ``rows``
        rows. ``identity`` is the same for whatever would give the same part."""
        name = _part_name(index)
        self._put(name, data, rows, identity)
        return name

    def written_parts(self) -> set[int]:
        """The numbers of the parts that are in the store, whoever wrote them."""
        prefix = run_prefix(self.job, self.run_id)
        keys = objects.list_keys(self.client, self.bucket, prefix + "part-")
        names = (key[len(prefix) :] for key in keys)
        return {_part_number(name) for name in names if _PART.match(name)}

    def keep_part(self, index: int, rows: int, identity: str) -> bytes | None:
        """Part ``index`` of an earlier attempt, which then counts as written, or None when it is not
        there, is of another identity or number of rows, or is not what its sha256 says."""
        name = _part_name(index)
        key = run_prefix(self.job, self.run_id) + name
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
        except self.client.exceptions.ClientError as error:
            if objects.error_code(error) in objects.MISSING:
                return None
            raise
        told = answer.get("Metadata", {})
        if not identity or told.get("identity") != identity or told.get("rows") != str(rows):
            answer["Body"].close()
            return None
        data: bytes = answer["Body"].read()
        digest = hashlib.sha256(data).hexdigest()
        if digest != told.get("sha256"):
            return None
        self.files[name] = {"sha256": digest, "size": len(data), "rows": rows}
        return data

    def add_rejected(self, data: bytes | Path, rows: int) -> None:
        """Write the rejected rows: a Parquet file (bytes, or a path) with the columns id, row and
        reason."""
        self._put(REJECTED, data if isinstance(data, bytes) else data.read_bytes(), rows)

    def finish(self, details: Mapping[str, Any]) -> tuple[str, bool]:
        """Write the manifest, then move LATEST, unless the details have ``held_back``.

        ``details`` are further keys of the manifest (model_name, model_version, input, started, …).
        Returns the manifest's sha256 and whether LATEST now names this run; it does not when a
        later run finished first.
        """
        parts = {name: entry for name, entry in self.files.items() if name != REJECTED}
        if sorted(map(_part_number, parts)) != list(range(len(parts))):
            raise GroundcrewError(
                f"run {self.run_id} lacks parts, it has {sorted(parts)}; run the batch job again"
            )
        if REJECTED not in self.files:
            raise GroundcrewError(
                f"run {self.run_id} has no {REJECTED}; write it even when it is empty"
            )
        predicted = sum(entry["rows"] for entry in parts.values())
        rejected = self.files[REJECTED]["rows"]
        manifest = {
            "finished": objects.timestamp(),
            **details,
            "job": self.job,
            "run": self.run_id,
            "rows": predicted + rejected,
            "predicted": predicted,
            "rejected": rejected,
            "files": self.files,
        }
        data = objects.to_json(manifest)
        digest = hashlib.sha256(data).hexdigest()
        key = run_prefix(self.job, self.run_id) + "manifest.json"
        try:
            objects.put(self.client, self.bucket, key, data, absent=True)
        except objects.ConflictError:
            stored = objects.get(self.client, self.bucket, key)
            if stored is None or stored.data != data:
                raise GroundcrewError(
                    f"another process finished run {self.run_id} of batch job {self.job!r} at the "
                    "same time; run the batch job again with another RUN_ID"
                ) from None
        if "held_back" in manifest:
            return digest, False
        return digest, move_latest(
            self.client,
            self.bucket,
            self.job,
            self.run_id,
            digest,
            accepted="accepted" in manifest,
        )

    def _put(self, name: str, data: bytes, rows: int, identity: str = "") -> None:
        digest = hashlib.sha256(data).hexdigest()
        key = run_prefix(self.job, self.run_id) + name
        metadata = {"sha256": digest, "rows": str(rows)}
        if identity:
            metadata["identity"] = identity
        objects.put(self.client, self.bucket, key, data, metadata=metadata)
        self.files[name] = {"sha256": digest, "size": len(data), "rows": rows}


def move_latest(
    client: Any,
    bucket: str,
    job: str,
    run_id: str,
    manifest_sha256: str,
    *,
    accepted: bool = False,
) -> bool:
    """Let LATEST name this run, unless it names a later one. Returns whether it names this run now.

    ``accepted``: somebody accepted a run that was held back, which LATEST notes. A malformed LATEST
    is replaced. Raises GroundcrewError when the same run id was finished with another manifest, or
    when other writers win ten times in a row.
    """
    key = latest_key(job)
    check_run_id(run_id)
    note = {"accepted": True} if accepted else {}
    data = objects.to_json({"run": run_id, "manifest_sha256": manifest_sha256, **note})
    for _attempt in range(_LATEST_ATTEMPTS):
        stored = objects.get(client, bucket, key)
        if stored is not None:
            try:
                current = parse_latest(stored.data, key)
            except GroundcrewError:
                current = None
            if current is not None and current.run_id > run_id:
                return False
            if current is not None and current.run_id == run_id:
                if current.manifest_sha256 == manifest_sha256:
                    return True
                raise GroundcrewError(
                    f"LATEST of batch job {job!r} names run {run_id} with manifest "
                    f"{current.manifest_sha256}, not {manifest_sha256}; run the batch job again "
                    "with another RUN_ID"
                )
        try:
            objects.put(
                client,
                bucket,
                key,
                data,
                absent=stored is None,
                etag=stored.etag if stored else None,
            )
        except objects.ConflictError:
            continue
        return True
    raise GroundcrewError(
        f"s3://{bucket}/{key} changed {_LATEST_ATTEMPTS} times while it was written; {_again(job)}"
    )
