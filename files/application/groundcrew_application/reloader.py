"""The newest run of a batch job, kept in memory and replaced whenever a newer one is complete.

    reloader = Reloader(objects.open_client(), bucket, "churn_nightly", load=scores_of)
    reloader.start()
    ...
    loaded = reloader.current          # never blocks; None before the first run
    if loaded is not None:
        score = loaded.value.get(customer)

``load`` makes of a run whatever the application wants to hold. It runs in the reloader's thread, beside requests, so it should spend
its time in code that lets go of the interpreter (pyarrow, numpy), not in a loop over rows; see docs/your-own-application.md.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from groundcrew import batch_store, objects

T = TypeVar("T")

_UNCHANGED = frozenset({"304", "NotModified"})
# A run that cannot be loaded is read again after so many polls at most, as long as LATEST names it: it may be large.
_MOST_POLLS_WAITED = 32


class Hooks:
    """What happens in a reloader, for logs and metrics. Override what you need; nothing here may take long."""

    def loaded(self, run_id: str, seconds: float) -> None:
        """A run was loaded and is ``current``."""

    def problem(self, problem: str, kept: str | None) -> None:
        """Something is wrong, since now: called once for each problem, not at every poll. ``kept``: the run that stays."""


@dataclass
class Incoming:
    """A run as it comes from the store, part by part, so that a large one need not be in memory twice.

    A reloader does not believe a run before every part of it was right, also those that ``load`` did not ask for.
    """

    client: Any
    bucket: str
    job: str
    run_id: str
    manifest: dict[str, Any]
    manifest_sha256: str
    _verified: set[str] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        """The part files, in order."""
        return batch_store.part_names(self.manifest)

    def parts(self) -> Iterator[bytes]:
        """The bytes of each part (Parquet), in order and verified. Raises GroundcrewError when one is missing or differs."""
        for name in self.names:
            yield self._part(name)

    def whole(self) -> batch_store.Run:
        """All of it at once."""
        return batch_store.Run(self.run_id, self.manifest, list(self.parts()), self.manifest_sha256)

    def verify_rest(self) -> None:
        """Read the parts that nobody has asked for. Raises GroundcrewError as parts does."""
        for name in self.names:
            if name not in self._verified:
                self._part(name)

    def _part(self, name: str) -> bytes:
        data = batch_store.read_part(
            self.client, self.bucket, self.job, self.run_id, self.manifest, name
        )
        self._verified.add(name)
        return data


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A complete, verified run, and what ``load`` made of it."""

    run_id: str
    value: T
    manifest: dict[str, Any]
    manifest_sha256: str
    finished: datetime
    load_seconds: float

    @property
    def age_seconds(self) -> float:
        """Since the batch job finished it."""
        return max(0.0, (datetime.now(UTC) - self.finished).total_seconds())


@dataclass(frozen=True)
class Status:
    """How a reloader is doing. problem: what is wrong now, None when nothing is; times in seconds."""

    run: str | None
    age_seconds: float | None
    checked_seconds_ago: float | None  # since the store last answered; None: never
    loading_seconds: float | None  # since the load in progress began; None: none is
    problem: str | None
    failures: int  # since the start


class Reloader(Generic[T]):
    """Follows a job's LATEST in a thread of its own, so that no request ever waits for the store.

    ``current`` is the last good run, or None before the first one. It changes by one assignment: who has read it keeps a whole run
    for as long as they want. A run that is missing, corrupt, truncated or older than ``current`` is told to the hooks and changes
    nothing.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        job: str,
        load: Callable[[Incoming], T],
        *,
        poll_seconds: float = 10.0,
        jitter: float = 0.2,
        niceness: int = 10,
        hooks: Hooks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """client: of objects.open_client. poll_seconds: between two looks at LATEST, give or take ``jitter`` of it, so that many hosts
        do not ask at once; a look costs one conditional request. niceness: of the thread (0 to 19), so that requests go first."""
        self.current: Loaded[T] | None = None
        self.failures = 0  # reloads that failed since the start
        self._client, self._bucket, self._job = client, bucket, batch_store.check_job(job)
        self._load = load
        self._poll_seconds = poll_seconds
        self._jitter = jitter
        self._niceness = niceness
        self._hooks = hooks or Hooks()
        self._clock = clock
        self._reloading = threading.Lock()
        self._problem: str | None = None
        self._etag: str | None = None  # of the LATEST that names ``current``
        self._bad_etag: str | None = None  # of a LATEST whose run could not be loaded,
        self._bad_times = 0  # so many times,
        self._retry_at = 0.0  # and is tried again then
        self._checked: float | None = None
        self._load_began: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="batch-reloader", daemon=True)

    def start(self) -> None:
        """Load the newest run now, and look for a newer one every ``poll_seconds``. Returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a load in progress is finished first."""
        self._stopped.set()
        self._thread.join()

    def status(self) -> Status:
        """Never blocks."""
        held, checked, began, now = self.current, self._checked, self._load_began, self._clock()
        return Status(
            run=held.run_id if held else None,
            age_seconds=held.age_seconds if held else None,
            checked_seconds_ago=None if checked is None else now - checked,
            loading_seconds=None if began is None else now - began,
            problem=self._problem,
            failures=self.failures,
        )

    def reload(self) -> bool:
        """Load the run that LATEST names if it is newer. Returns whether ``current`` changed; never raises."""
        return self._reload(patiently=False)

    def _reload(self, patiently: bool) -> bool:
        with self._reloading:
            began = self._clock()
            try:
                loaded = self._newer(patiently)
            except (
                Exception
            ) as error:  # whatever is wrong with the store or a run, the last good one stays
                self._report(f"{type(error).__name__}: {error}")
                return False
            finally:
                self._load_began = None
            if loaded is None:
                return False
            self.current = loaded
            self._hooks.loaded(loaded.run_id, self._clock() - began)
            return True

    def _newer(self, patiently: bool) -> Loaded[T] | None:
        """What LATEST names, loaded; None when there is nothing to do. Raises anything."""
        held = self.current
        waiting = patiently and self._bad_etag is not None and self._clock() < self._retry_at
        stored = self._changed_latest(self._bad_etag if waiting else self._etag)
        self._checked = self._clock()
        if stored is None:  # as it was
            if not waiting:
                self._problem = None
            return None
        data, etag = stored
        if data is None:
            if held:
                raise LookupError("LATEST is gone")
            self._problem = None
            return None
        key = batch_store.latest_key(self._job)
        latest = batch_store.parse_latest(data, f"s3://{self._bucket}/{key}")
        if held and latest.run_id < held.run_id:  # run ids sort by time
            raise LookupError(f"LATEST names run {latest.run_id}, which is older")
        if held and latest.run_id == held.run_id:
            if latest.manifest_sha256 != held.manifest_sha256:
                raise LookupError(
                    f"LATEST names run {latest.run_id} with another manifest than before"
                )
            self._good(etag)
            return None
        self._load_began = began = self._clock()
        try:
            loaded = self._loaded(latest, began)
        except BaseException:
            self._bad_times = self._bad_times + 1 if etag == self._bad_etag else 1
            self._bad_etag = etag
            polls = min(2**self._bad_times - 1, _MOST_POLLS_WAITED)
            self._retry_at = self._clock() + (polls - 0.5) * self._poll_seconds
            raise
        self._good(etag)
        return loaded

    def _loaded(self, latest: batch_store.Latest, began: float) -> Loaded[T]:
        # No parts yet: the manifest alone, verified against LATEST.
        run = batch_store.read_run(self._client, self._bucket, self._job, latest, max_parts=0)
        incoming = Incoming(
            self._client, self._bucket, self._job, run.run_id, run.manifest, run.manifest_sha256
        )
        finished = objects.parse_timestamp(run.manifest["finished"])
        value = self._load(incoming)
        incoming.verify_rest()
        return Loaded(
            run_id=run.run_id,
            value=value,
            manifest=run.manifest,
            manifest_sha256=run.manifest_sha256,
            finished=finished,
            load_seconds=self._clock() - began,
        )

    def _good(self, etag: str | None) -> None:
        self._etag, self._bad_etag, self._bad_times, self._problem = etag, None, 0, None

    def _changed_latest(self, etag: str | None) -> tuple[bytes | None, str | None] | None:
        """LATEST's bytes and entity tag, (None, None) when there is none; None when it is still the one with ``etag``."""
        condition = {} if etag is None else {"IfNoneMatch": etag}
        key = batch_store.latest_key(self._job)
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=key, **condition)
        except Exception as error:
            code = objects.error_code(error)
            if code in _UNCHANGED:
                return None
            if code == "NoSuchBucket":
                raise objects.missing_bucket(self._bucket) from error
            if code in objects.MISSING:
                return None, None
            raise
        return answer["Body"].read(), str(answer["ETag"])

    def _report(self, problem: str) -> None:
        self.failures += 1
        if problem != self._problem:
            self._problem = problem
            self._hooks.problem(problem, self.current.run_id if self.current else None)

    def _follow(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # Linux keeps a niceness for each thread.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while True:
            self._reload(patiently=True)
            share = random.uniform(1 - self._jitter, 1 + self._jitter)
            if self._stopped.wait(self._poll_seconds * share):
                return
