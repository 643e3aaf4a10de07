"""What every job that publishes a model version has in common.

A job claims its version, builds, passes the gate and publishes, its last file last; when it ends
without publishing it gives the claim back. A program is one call, see docs/training.md::

    def build(job: Job) -> dict:
        job.gate(metrics, evaluate)             # Refused ends the job here
        ...                                     # write files into job.directory
        job.write_golden(cases, tolerance=1e-6)
        return {"framework": "sklearn", "signature": {…}}

    sys.exit(training_job.main(build))

Progress goes to standard output; its last line is a JSON object with model, version, metrics and
manifest_sha256. Exit status: 0 published, 2 could not start or publish (a version that is taken, for
example), 3 refused by the gate. A variable that is empty counts as one that is not set:

    MODEL_NAME, STORE_BUCKET   what to publish, and where
    MODEL_VERSION              a whole number, or "next": the next one that nobody has or publishes
    GATE_METRIC                which of the job's metrics decides ("accuracy")
    GATE_MINIMUM               the least of it; with HIGHER_IS_BETTER=false the most
    GATE_MARGIN                how much worse than LIVE_VERSION it may be, on the same held-out data;
                               not set: they are not compared. One of these two must be set
    LIVE_VERSION               the version that serves now; none: nothing to compare with
    HIGHER_IS_BETTER           true or false ("true")
    SEED                       for whatever is random (0)
    DATA                       s3://bucket/prefix/ of a data set, which lies in job.data before build
    DATA_SHA256                its digest by data_digest(); not set: what is found is noted
    CHECKPOINT_DIRECTORY       a directory that outlives the container; not set: no checkpoints
    ATTEMPT                    1 for the first, more for one that follows an interrupted one (1)
    CODE_REVISION, IMAGE_DIGEST, ENVIRONMENT_FINGERPRINT    for the manifest
    CLAIM_OWNER                who publishes (the host's name)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from . import model_store, objects
from .errors import GroundcrewError

FAILED, REFUSED = 2, 3
# How often a job that trains for days says that it still lives; claims expire after a day.
RENEW_SECONDS = 3600.0
KEPT_CHECKPOINTS = 2

_STEP = "step-"
_SUMS = "checkpoint.json"
_NOTE = "claim.json"
_DOWNLOADS_AT_ONCE = 8

# The metrics of the model whose files lie in a directory, on the job's own held-out data.
Evaluate = Callable[[Path], Mapping[str, float]]


class Refused(Exception):
    """The model is not good enough to be published."""


# -- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """What a model must reach; see the module's docstring."""

    metric: str = "accuracy"
    minimum: float | None = None
    margin: float | None = None
    higher_is_better: bool = True
    live_version: str | None = None


@dataclass(frozen=True)
class DataSource:
    """Where a data set lies: the objects whose key begins with ``prefix``."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class Settings:
    """What the environment says; see the module's docstring. ``version`` may be "next"."""

    model: str
    version: str
    bucket: str
    gate: Gate
    seed: int = 0
    code_revision: str | None = None
    image_digest: str | None = None
    environment_fingerprint: str | None = None
    owner: str = ""
    data: DataSource | None = None
    data_sha256: str | None = None
    checkpoint_directory: Path | None = None
    attempt: int = 1

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Raises GroundcrewError that names the variable."""
        model, version, bucket = required(env, "MODEL_NAME", "MODEL_VERSION", "STORE_BUCKET")
        checkpoints = env.get("CHECKPOINT_DIRECTORY")
        settings = cls(
            model=model_store.check_model(model),
            version=version if version == model_store.NEXT else model_store.check_version(version),
            bucket=bucket,
            gate=_gate(env),
            seed=_whole(env, "SEED", "0", 0, 2**32 - 1),
            code_revision=env.get("CODE_REVISION") or None,
            image_digest=env.get("IMAGE_DIGEST") or None,
            environment_fingerprint=env.get("ENVIRONMENT_FINGERPRINT") or None,
            owner=env.get("CLAIM_OWNER") or socket.gethostname(),
            data=parse_source(env["DATA"]) if env.get("DATA") else None,
            data_sha256=env.get("DATA_SHA256") or None,
            checkpoint_directory=Path(checkpoints) if checkpoints else None,
            attempt=_whole(env, "ATTEMPT", "1", 1, 10**6),
        )
        if settings.data_sha256 and settings.data is None:
            raise GroundcrewError(
                f"DATA_SHA256 is {settings.data_sha256!r} and DATA is not set; set DATA to the "
                "s3://bucket/prefix/ that has this digest, or leave DATA_SHA256 empty"
            )
        if checkpoints and not Path(checkpoints).is_dir():
            raise GroundcrewError(
                f"CHECKPOINT_DIRECTORY is {checkpoints!r}, which is not a directory here; mount "
                "one that outlives the container, or leave it empty"
            )
        return settings


def required(env: Mapping[str, str], *names: str) -> list[str]:
    """The values of these variables. Raises GroundcrewError that names those that are not set."""
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise GroundcrewError(f"{', '.join(missing)} must be set in the job's environment")
    return [env[name] for name in names]


def parse_source(text: str) -> DataSource:
    """An address such as s3://bucket/data/digits/. Raises GroundcrewError."""
    scheme, _, rest = text.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket or not prefix.endswith("/"):
        raise GroundcrewError(
            f"the data set {text!r} is no address of one; write s3://<bucket>/<prefix>/ with a "
            "slash at the end"
        )
    return DataSource(bucket, prefix)


def _gate(env: Mapping[str, str]) -> Gate:
    if env.get("GATE_ACCURACY"):
        raise GroundcrewError(
            f"GATE_ACCURACY is {env['GATE_ACCURACY']!r}, and is called GATE_MINIMUM now: set "
            f"GATE_MINIMUM={env['GATE_ACCURACY']} (GATE_METRIC says of what; accuracy when it is "
            "not set)"
        )
    metric = env.get("GATE_METRIC") or "accuracy"
    minimum, margin = _number(env, "GATE_MINIMUM"), _number(env, "GATE_MARGIN")
    if minimum is None and margin is None:
        raise GroundcrewError(
            "neither GATE_MINIMUM nor GATE_MARGIN is set, so anything would be published; set "
            f"GATE_MINIMUM to the least {metric} that is good enough"
        )
    if margin is not None and margin < 0:
        raise GroundcrewError(
            f"GATE_MARGIN is {env['GATE_MARGIN']!r}; it must be 0 or more: how much worse than the "
            "live version a model may be"
        )
    if metric == "accuracy" and minimum is not None and not 0 <= minimum <= 1:
        raise GroundcrewError(
            f"GATE_MINIMUM is {env['GATE_MINIMUM']!r}; of accuracy it must be a number from 0 to 1"
        )
    higher = env.get("HIGHER_IS_BETTER") or "true"
    if higher.lower() not in ("true", "false"):
        raise GroundcrewError(f"HIGHER_IS_BETTER is {higher!r}; it must be true or false")
    live = env.get("LIVE_VERSION")
    return Gate(
        metric=metric,
        minimum=minimum,
        margin=margin,
        higher_is_better=higher.lower() == "true",
        live_version=model_store.check_version(live) if live else None,
    )


def _number(env: Mapping[str, str], name: str) -> float | None:
    text = env.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise GroundcrewError(f"{name} is {text!r}; it must be a number")
    return value


def _whole(env: Mapping[str, str], name: str, default: str, least: int, most: int) -> int:
    text = env.get(name) or default
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise GroundcrewError(
            f"{name} is {text!r}; it must be a whole number from {least} to {most}"
        )
    return int(text)


# -- data sets -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataDigest:
    """A data set's digest (see data_digest), the number of its files and their bytes together."""

    sha256: str
    files: int
    bytes: int


@dataclass(frozen=True)
class DataSet:
    """A verified local copy of a data set: its files lie in ``directory`` under their names."""

    directory: Path
    source: DataSource
    digest: DataDigest


def data_digest(client: Any, source: DataSource) -> DataDigest:
    """The digest of a data set in S3, every object of which is read.

    It is the sha256 of one line an object, ``<sha256>  <name>``, sorted by the bytes of the name,
    which is the key without the prefix; so of a local copy of the files, in their directory::

        find * -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum

    Raises GroundcrewError when there is none, or one changes while it is read.
    """

    def read(entry: model_store.Listed) -> tuple[str, int]:
        return model_store.read_sha256(_open(client, source, entry))

    return _digest(_each(source, _objects(client, source), read))


def fetch_data(
    client: Any, source: DataSource, directory: Path, expected_sha256: str | None = None
) -> DataSet:
    """Make ``directory`` a verified copy of a data set, and of nothing besides.

    What an interrupted call fetched is not fetched again when it still has its checksum and the
    object is the same: ``<directory>.jsonl`` notes that. Raises GroundcrewError when the digest is
    not the expected one, with both.
    """
    entries = _objects(client, source)
    directory.mkdir(parents=True, exist_ok=True)
    _require_space(directory, entries)
    notes = directory.with_name(f"{directory.name}.jsonl")
    noted = _read_notes(notes)
    names = {entry.key[len(source.prefix) :] for entry in entries}
    for name in model_store.files_of(directory):
        if name not in names:
            (directory / name).unlink()
    for left in directory.parent.glob(f".{directory.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    lock = threading.Lock()
    # Beside the directory: any name inside it may be one of the data set's.
    with (
        notes.open("a", encoding="utf-8") as stream,
        tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as partials,
    ):
        # A line that a killed attempt left half must not swallow the next one.
        stream.write("\n")

        def fetch(entry: model_store.Listed) -> tuple[str, int]:
            name = entry.key[len(source.prefix) :]
            target = directory / name
            if noted.get(name, ("", ""))[0] == entry.etag and target.is_file():
                there = model_store.sha256_file(target)
                if there == (noted[name][1], entry.size):
                    return there
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(partials, hashlib.sha256(name.encode()).hexdigest())
            with partial.open("wb") as copy:
                found = model_store.read_sha256(_open(client, source, entry), copy)
            partial.replace(target)
            with lock:
                stream.write(json.dumps([name, entry.etag, found[0]]) + "\n")
                stream.flush()
            return found

        digest = _digest(_each(source, entries, fetch))
    if expected_sha256 and digest.sha256 != expected_sha256:
        raise GroundcrewError(
            f"the data set {source} has the digest {digest.sha256}, and DATA_SHA256 is "
            f"{expected_sha256}: its {digest.files} files are others than those that were meant. "
            "Restore them, or set DATA_SHA256 to the new digest when the change is wanted"
        )
    return DataSet(directory, source, digest)


def _objects(client: Any, source: DataSource) -> list[model_store.Listed]:
    entries = [
        entry
        for entry in model_store.list_objects(client, source.bucket, source.prefix)
        # Consoles make an empty object for a folder.
        if not entry.key.endswith("/")
    ]
    if not entries:
        raise GroundcrewError(
            f"the data set {source} has no objects; correct DATA, or upload the files: "
            f"aws s3 sync <folder> {source}"
        )
    for entry in entries:
        name = entry.key[len(source.prefix) :]
        if not model_store.is_safe_name(name):
            raise GroundcrewError(
                f"the data set {source} has the object {name!r}, which is not a safe relative "
                "path; rename it"
            )
    return entries


def _require_space(directory: Path, entries: list[model_store.Listed]) -> None:
    present = sum((directory / name).stat().st_size for name in model_store.files_of(directory))
    needed = sum(entry.size for entry in entries) - present
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise GroundcrewError(
            f"{directory} has {free >> 20} MiB free, the data set needs {needed >> 20} MiB more; "
            "give the job a CHECKPOINT_DIRECTORY on a disk that has them"
        )


def _open(client: Any, source: DataSource, entry: model_store.Listed) -> Any:
    """The object as it was when it was listed."""
    try:
        return client.get_object(Bucket=source.bucket, Key=entry.key, IfMatch=entry.etag)["Body"]
    except client.exceptions.ClientError as error:
        if objects.error_code(error) in ("412", "PreconditionFailed", "404", "NoSuchKey"):
            raise GroundcrewError(
                f"s3://{source.bucket}/{entry.key} changed while the data set was read; run the "
                "job again when nobody writes there"
            ) from error
        raise


def _each(
    source: DataSource,
    entries: list[model_store.Listed],
    read: Callable[[model_store.Listed], tuple[str, int]],
) -> dict[str, tuple[str, int]]:
    """Name to sha256 and size, read by several threads."""
    names = [entry.key[len(source.prefix) :] for entry in entries]
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        return dict(zip(names, pool.map(read, entries)))


def _digest(found: Mapping[str, tuple[str, int]]) -> DataDigest:
    lines = [f"{found[name][0]}  {name}\n" for name in sorted(found, key=str.encode)]
    return DataDigest(
        sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
        files=len(found),
        bytes=sum(size for _, size in found.values()),
    )


def _read_notes(path: Path) -> dict[str, tuple[str, str]]:
    """Name to entity tag and sha256 of what was fetched; lines that a crash tore are left out."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                name, etag, sha256 = json.loads(line)
                found[str(name)] = (str(etag), str(sha256))
    return found


# -- checkpoints ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the step that it was written after, and its files."""

    step: int
    directory: Path


class Checkpoints:
    """Checkpoints in one directory, each whole or not there; the last two are kept.

    ``identity`` is what a checkpoint depends on (seed, data, code, …): one of another identity is not
    found, and goes when the next is saved. Without a directory nothing is saved or found.
    """

    def __init__(self, directory: Path | None, identity: Mapping[str, Any] | None = None) -> None:
        self._directory = directory
        self._identity = hashlib.sha256(objects.to_json(dict(identity or {}))).hexdigest()

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep what ``write`` puts into the directory that it is given, as that of a step from 0."""
        if self._directory is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._directory))
        write(partial)
        files = {
            name: model_store.sha256_file(partial / name) for name in model_store.files_of(partial)
        }
        document = {"identity": self._identity, "files": files}
        (partial / _SUMS).write_bytes(objects.to_json(document))
        model_store.sync_tree(partial)
        target = self._directory / f"{_STEP}{step}"
        # Only a torn or foreign one has this name: a good one would have been resumed from.
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        model_store.sync(self._directory)
        self._prune(step)

    def latest(self) -> Checkpoint | None:
        """The checkpoint of the highest step whose files all have their checksums."""
        for step, path in self._steps():
            files = self._files(path)
            with contextlib.suppress(OSError, GroundcrewError):
                names = [name for name in model_store.files_of(path) if name != _SUMS]
                if files == {name: list(model_store.sha256_file(path / name)) for name in names}:
                    return Checkpoint(step, path)
        return None

    def clear(self) -> None:
        """Remove them all."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _steps(self) -> list[tuple[int, Path]]:
        """Steps and directories, the highest first."""
        if self._directory is None or not self._directory.is_dir():
            return []
        found = [
            (int(path.name[len(_STEP) :]), path)
            for path in self._directory.iterdir()
            if path.name.startswith(_STEP) and path.name[len(_STEP) :].isdecimal()
        ]
        return sorted(found, reverse=True)

    def _files(self, path: Path) -> Any:
        """The files that a checkpoint of ours lists; None when it is torn or of another identity."""
        try:
            document = json.loads((path / _SUMS).read_bytes())
            return document["files"] if document["identity"] == self._identity else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _prune(self, step: int) -> None:
        """Those above the step just saved were no good, or it would have been resumed from them."""
        kept = 0
        for other, path in self._steps():
            good = other <= step and self._files(path) is not None
            kept += good
            if not good or kept > KEPT_CHECKPOINTS:
                shutil.rmtree(path, ignore_errors=True)


# -- jobs ----------------------------------------------------------------------------------------


@dataclass
class Job:
    """A job whose version is claimed; what is in ``directory`` at the end is published.

    ``scratch`` is a directory for anything else, gone at the end. ``data`` is the copy of the data
    set that DATA names.
    """

    settings: Settings
    client: Any
    version: str
    directory: Path
    scratch: Path
    data: DataSet | None = None
    started: float = field(default_factory=time.monotonic)
    metrics: dict[str, float] | None = None
    passed: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.settings.model} version {self.version}"

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def gate(self, metrics: Mapping[str, float], evaluate: Evaluate | None = None) -> None:
        """Raises Refused when the metrics on the held-out data do not reach what is asked for.

        ``evaluate`` gives the metrics of a version's files on the same held-out data; it is needed
        where GATE_MARGIN is set. Raises GroundcrewError when GATE_METRIC is none of the metrics.
        """
        gate, found = self.settings.gate, {name: float(value) for name, value in metrics.items()}
        if gate.metric not in found:
            raise GroundcrewError(
                f"GATE_METRIC is {gate.metric!r}; this job measures "
                f"{', '.join(sorted(found)) or 'nothing'}"
            )
        value = found[gate.metric]
        _check_minimum(gate, value)
        if endless := sorted(name for name in found if not math.isfinite(found[name])):
            raise GroundcrewError(
                f"{endless[0]} is {found[endless[0]]}, which a manifest cannot hold; give "
                "job.gate() the metrics that are finite"
            )
        live = None
        # What is claimed is not published, so it serves nowhere, whatever an inventory says already.
        if gate.margin is not None and gate.live_version in (None, self.version):
            self.say("no version serves yet, so there is none to compare with")
        elif gate.margin is not None:
            live = self._live_value(evaluate)
            _check_margin(gate, value, live)
            self.say(
                f"{gate.metric} {value:.4f}; version {gate.live_version}, live, has {live:.4f}"
            )
        self.metrics = found
        self.passed = {
            "metric": gate.metric,
            "value": value,
            "minimum": gate.minimum,
            "margin": gate.margin,
            "higher_is_better": gate.higher_is_better,
            "live_version": gate.live_version,
            "live_value": live,
        }

    def _live_value(self, evaluate: Evaluate | None) -> float:
        gate = self.settings.gate
        version = str(gate.live_version)
        try:
            if evaluate is None:
                raise GroundcrewError(
                    "this job has no way to evaluate a version: job.gate() got none"
                )
            fetched = model_store.fetch(
                self.client,
                self.settings.bucket,
                self.settings.model,
                version,
                self.scratch / "live",
            )
            value = float(evaluate(fetched.path)[gate.metric])
            if not math.isfinite(value):
                raise GroundcrewError(f"its {gate.metric} is {value}")
        # Whatever a team's code makes of another version's files.
        except Exception as error:
            said = str(error) if isinstance(error, GroundcrewError) else repr(error)
            raise Refused(
                f"GATE_MARGIN asks for a comparison with version {version}, which is live, and that "
                f"cannot be evaluated: {said}. Nothing was published. Mend that, or unset "
                "GATE_MARGIN to publish by GATE_MINIMUM alone"
            ) from error
        return value

    def checkpoints(self, **identity: Any) -> Checkpoints:
        """The job's checkpoints, found again by an attempt with the same identity.

        Model, image (or, without one, code revision), seed and data count without being named;
        name whatever else the training depends on.
        """
        settings = self.settings
        where = settings.checkpoint_directory
        common = {
            "model": settings.model,
            "code": settings.image_digest or settings.code_revision,
            "seed": settings.seed,
            "data": self.data.digest.sha256 if self.data else None,
        }
        return Checkpoints(where / "checkpoints" if where else None, {**identity, **common})

    def write_golden(self, cases: list[dict[str, Any]], tolerance: float) -> None:
        document = {"cases": cases, "tolerance": tolerance}
        (self.directory / model_store.GOLDEN).write_bytes(objects.to_json(document))


def _check_minimum(gate: Gate, value: float) -> None:
    if not math.isfinite(value):
        raise Refused(
            f"{gate.metric} on the held-out data is {value}. Nothing was published. Mend the data "
            "or the training"
        )
    if gate.minimum is None:
        return
    if not (value >= gate.minimum if gate.higher_is_better else value <= gate.minimum):
        raise Refused(
            f"{gate.metric} {value:.4f} on the held-out data is "
            f"{'below' if gate.higher_is_better else 'above'} the gate of {gate.minimum:g}. "
            "Nothing was published. Mend the data or the training, or change GATE_MINIMUM if that "
            "is good enough"
        )


def _check_margin(gate: Gate, value: float, live: float) -> None:
    worse = live - value if gate.higher_is_better else value - live
    # 0.975 - 0.97 is a little more than 0.005 in floating point.
    if worse > (gate.margin or 0.0) + 1e-9:
        raise Refused(
            f"{gate.metric} {value:.4f} is worse than {live:.4f} of version {gate.live_version}, "
            f"which is live, by {worse:.4f} on the same held-out data; GATE_MARGIN allows "
            f"{gate.margin:g}. Nothing was published. Mend the data or the training, or raise "
            "GATE_MARGIN if that is good enough"
        )


# Calls job.gate() and fills the job's directory; returns framework, signature and whatever else the
# manifest is to hold.
Build = Callable[[Job], dict[str, Any]]


def run(settings: Settings, client: Any, build: Build) -> dict[str, Any]:
    """Build and publish; the result for the last line. Raises Refused.

    The version is claimed before anything is computed.
    """
    note = _note(settings)
    if note and settings.attempt == 1:
        # What stands there is another run's.
        note.unlink(missing_ok=True)
    earlier = _earlier_claim(settings, client, note)
    if earlier is not None and _is_published(settings, client, earlier):
        manifest, digest = model_store.read_manifest(
            client, settings.bucket, settings.model, earlier
        )
        print(f"an earlier attempt published {settings.model} version {earlier}", flush=True)
        return _result(settings.model, earlier, manifest, digest)
    held = _claim(settings, client, earlier)
    if note:
        _write_note(note, held)
    with tempfile.TemporaryDirectory() as scratch, _renewed(settings, client, held):
        directory = Path(scratch, "version")
        directory.mkdir()
        job = Job(settings, client, held.version, directory, Path(scratch))
        job.say(f"claimed {job.name} in s3://{settings.bucket}")
        published = False
        try:
            if settings.data is not None:
                job.data = _fetch(settings, settings.data, job)
            manifest = _manifest(job, build(job))
            digest = model_store.publish(client, settings.bucket, held, directory, manifest)
            published = True
            job.say(f"published {job.name}")
        finally:
            if not published:
                model_store.release(client, settings.bucket, held)
        job.checkpoints().clear()
    return _result(settings.model, held.version, manifest, digest)


def _manifest(job: Job, built: dict[str, Any]) -> dict[str, Any]:
    if job.passed is None:
        raise GroundcrewError(
            "the job never called job.gate(metrics), so nobody knows whether its model is good "
            "enough; call it before the end of build()"
        )
    settings = job.settings
    data = dict(built.get("data") or {})
    if job.data is not None:
        digest = job.data.digest
        data |= {
            "source": str(job.data.source),
            "sha256": digest.sha256,
            "files": digest.files,
            "bytes": digest.bytes,
        }
    return {
        **built,
        "metrics": job.metrics,
        "data": data or None,
        "gate": job.passed,
        "image": settings.image_digest,
        "code_revision": settings.code_revision,
        "environment_fingerprint": settings.environment_fingerprint,
        "attempt": settings.attempt,
        "duration_seconds": round(time.monotonic() - job.started, 1),
    }


def _result(model: str, version: str, manifest: Mapping[str, Any], digest: str) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "metrics": {name: round(value, 4) for name, value in manifest["metrics"].items()},
        "manifest_sha256": digest,
    }


def _fetch(settings: Settings, source: DataSource, job: Job) -> DataSet:
    where = (settings.checkpoint_directory or job.scratch) / "data"
    with objects.readable_errors(source.bucket):
        fetched = fetch_data(job.client, source, where, settings.data_sha256)
    digest = fetched.digest
    job.say(f"fetched {source}: {digest.files} files, {digest.bytes} bytes, sha256 {digest.sha256}")
    return fetched


def _claim(settings: Settings, client: Any, earlier: str | None) -> model_store.Claim:
    claim = (client, settings.bucket, settings.model)
    if settings.version != model_store.NEXT:
        return model_store.claim(*claim, settings.version, settings.owner)
    if earlier is not None:
        with contextlib.suppress(model_store.TakenError):
            return model_store.claim(*claim, earlier, settings.owner)
    return model_store.claim_next(*claim, settings.owner)


def _note(settings: Settings) -> Path | None:
    where = settings.checkpoint_directory
    return where / _NOTE if where else None


def _write_note(note: Path, held: model_store.Claim) -> None:
    """Note which version this job has, so that its next attempt goes on with the same one."""
    partial = note.with_name(f"{note.name}.partial")
    partial.write_bytes(
        objects.to_json({"model": held.model, "version": held.version, "token": held.token})
    )
    model_store.sync(partial)
    partial.replace(note)


def _earlier_claim(settings: Settings, client: Any, note: Path | None) -> str | None:
    """The version that an attempt before this one claimed, when nobody else took it since."""
    try:
        noted = json.loads(note.read_bytes()) if note else {}
        model, version, token = noted["model"], noted["version"], noted["token"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if model != settings.model or settings.version not in (version, model_store.NEXT):
        return None
    held = model_store.claimed_by(client, settings.bucket, model, version)
    return str(version) if held == token else None


def _is_published(settings: Settings, client: Any, version: str) -> bool:
    return version in model_store.versions(client, settings.bucket, settings.model)


@contextlib.contextmanager
def _renewed(settings: Settings, client: Any, held: model_store.Claim) -> Iterator[None]:
    """Renew the claim from time to time; when it was lost, publishing says so."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            # The store may be away for a while, which is no reason to stop training.
            with contextlib.suppress(Exception):
                model_store.renew(client, settings.bucket, held)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main(build: Build) -> int:
    """The whole program: environment, store, build, publish; returns the exit status."""
    signal.signal(signal.SIGTERM, _stop)
    name = "the model"
    try:
        settings = Settings.from_environment(os.environ)
        name = f"{settings.model} version {settings.version}"
        with objects.readable_errors(settings.bucket):
            result = run(settings, objects.open_client(), build)
    except GroundcrewError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED
    except Refused as refusal:
        print(f"error: {name} is refused: {refusal}", file=sys.stderr, flush=True)
        return REFUSED
    print(json.dumps(result), flush=True)
    if note := _note(settings):
        # Said, so no attempt has to say it again.
        note.unlink(missing_ok=True)
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # An exception, so that the claim is given back on the way out.
    raise SystemExit(143)
