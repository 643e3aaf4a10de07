"""The client of the prediction service, which it reaches through the gateway, and what to answer when it cannot.

    client = PredictionClient(url, "churn", read_api_key(path), ca_file=ca, fallback=lambda row: Fallback(prediction=0.27))
    answer = client.predict(row, request_id)
    answer.predictions[0], answer.source        # source: prediction, stale or fallback

A call ends within its deadline. It is made once more only when the connection broke or could not be opened, which is safe because a
prediction changes nothing; never after a timeout, and never after an answer, since the gateway has then tried other hosts already.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from groundcrew.errors import GroundcrewError

from .circuit import OPEN, CircuitBreaker

PREDICTION, STALE, FALLBACK, EMBEDDED = "prediction", "stale", "fallback", "embedded"
_TIMING = re.compile(r"([\w-]+)\s*;\s*dur=([0-9]+(?:\.[0-9]*)?)")
_CONNECT_SECONDS = 2.0
_MOST_BYTES = 64 * 1024 * 1024


class PredictionError(Exception):
    """No usable answer. ``status`` is what an application may answer with: 502, 503 or 504.

    answered: the status that the gateway or the service answered with, None for no valid answer. refused: this request was understood
    and refused, so another one may do well. retry_after_seconds: as the gateway said, or until a broken circuit is tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        answered: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.answered = answered
        self.retry_after_seconds = retry_after_seconds

    @property
    def refused(self) -> bool:
        return self.answered in (400, 413, 415)


@dataclass(frozen=True)
class Answer:
    """One answer: a prediction for each instance, where it comes from, and how long it took.

    source: prediction (the service, now), stale (the service, ``age_seconds`` ago, for the same instance), fallback (what the team
    gives instead; its age where that has one) or embedded (a model in this process). problem: why it is neither prediction nor
    embedded. timing_ms: what Server-Timing told (queue, model, total).
    """

    predictions: list[Any]
    source: str = PREDICTION
    version: str | None = None
    age_seconds: float | None = 0.0
    latency_ms: float = 0.0
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Fallback:
    """What a team answers without the service: of the shape of a prediction. The rest as in Answer."""

    prediction: Any
    version: str | None = None
    age_seconds: float | None = None


class Hooks:
    """What happens in a client, for logs and metrics. Override what you need; nothing here may take long."""

    def answered(self, source: str, seconds: float) -> None:
        """An answer of this source was given; ``seconds`` until then."""

    def failed(self, error: PredictionError) -> None:
        """A call to the service failed, whether or not there was something to answer instead."""

    def retried(self) -> None:
        """A call was made a second time."""

    def circuit(self, state: str) -> None:
        """The circuit breaker is now closed, open or half_open."""


class PredictionClient:
    """Keeps connections to the gateway open between requests; safe to use from many threads."""

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str,
        *,
        ca_file: Path | None = None,
        timeout_seconds: float = 5.0,
        connections: int = 16,
        check: Callable[[Any], object] = lambda prediction: None,
        breaker: CircuitBreaker | None = None,
        stale_entries: int = 1000,
        stale_seconds: float = 3600.0,
        fallback: Callable[[Any], Fallback | None] | None = None,
        hooks: Hooks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """url: of the gateway. timeout_seconds: of a whole call, with its retry. check: raises ValueError for a prediction that is
        not of the expected form. stale_entries: answers kept, the last asked for; 0 keeps none. stale_seconds: none older is given.
        fallback: for an instance without a kept answer; None for none."""
        options: dict[str, Any] = {}
        if url.startswith("https:"):
            options = {"cert_reqs": "CERT_REQUIRED", "ca_certs": ca_file and str(ca_file)}
        self._pool = urllib3.connection_from_url(url, maxsize=connections, retries=False, **options)
        self._path = f"/v1/models/{model}:predict"
        self._headers = {"Content-Type": "application/json", "X-Api-Key": api_key}
        self._timeout_seconds = timeout_seconds
        self._check = check
        self._hooks = hooks or Hooks()
        self.breaker = breaker or CircuitBreaker(changed=self._hooks.circuit)
        self._fallback = fallback
        self._kept = _Kept(stale_entries, stale_seconds, clock)
        self._clock = clock
        self.version: str | None = None  # that answered last
        self._answered: float | None = None  # when, by the clock
        self.problem: str | None = None  # of the last call, when it failed

    def predict(self, instance: Any, request_id: str) -> Answer:
        """Predict one instance: by the service, else the answer kept for the same instance, else the fallback. Raises
        PredictionError when there is none of them, or the service refuses the instance itself."""
        began = time.perf_counter()
        key = _key(instance)
        try:
            answer = self.ask([instance], request_id)
        except PredictionError as error:
            found = None if error.refused else self._instead(instance, key, error, began)
            if found is None:
                raise
            self._hooks.answered(found.source, time.perf_counter() - began)
            return found
        self._kept.put(key, answer)
        self._hooks.answered(answer.source, time.perf_counter() - began)
        return answer

    def ask(self, instances: Sequence[Any], request_id: str) -> Answer:
        """Predict instances by the service or not at all. Raises PredictionError."""
        permit = self.breaker.acquire()
        if permit is None:
            seconds = self.breaker.probe_in_seconds
            error = PredictionError(
                503,
                f"{self.problem}; it is asked again shortly",
                retry_after_seconds=seconds,
            )
            self._hooks.failed(error)
            raise error
        told = False
        try:
            answer = self._ask(list(instances), request_id)
            told = True
            self.breaker.succeeded(permit)
        except PredictionError as error:
            told = True
            # 4xx: the service is there, the request or our rights are the matter.
            if error.answered is not None and error.answered < 500:
                self.breaker.succeeded(permit)
            else:
                self.breaker.failed(permit)
            if not error.refused:
                self.problem = str(error)
            self._hooks.failed(error)
            raise
        finally:
            if not told:
                self.breaker.abandoned(permit)
        self.version, self._answered = answer.version, self._clock()
        # An answer to a request of before says nothing of a service that has failed since.
        if self.breaker.state != OPEN:
            self.problem = None
        return answer

    @property
    def answered_seconds_ago(self) -> float | None:
        """Since the service last answered; None: never."""
        return None if self._answered is None else self._clock() - self._answered

    def _instead(
        self, instance: Any, key: bytes, error: PredictionError, began: float
    ) -> Answer | None:
        def answer(source: str, prediction: Any, version: str | None, age: float | None) -> Answer:
            took = (time.perf_counter() - began) * 1000
            return Answer([prediction], source, version, age, took, problem=str(error))

        kept = self._kept.get(key)
        if kept is not None:
            prediction, version, age = kept
            return answer(STALE, prediction, version, age)
        given = self._fallback(instance) if self._fallback else None
        if given is None:
            return None
        return answer(FALLBACK, given.prediction, given.version, given.age_seconds)

    def _ask(self, instances: list[Any], request_id: str) -> Answer:
        body = json.dumps({"instances": instances}).encode()
        headers = {**self._headers, "X-Request-Id": request_id}
        began = time.perf_counter()
        status, answered, data = self._post(body, headers, began + self._timeout_seconds)
        latency_ms = (time.perf_counter() - began) * 1000
        if status != 200:
            raise _refusal(status, answered, data)
        return Answer(
            predictions=self._predictions(data, len(instances)),
            version=answered.get("X-Model-Version"),
            latency_ms=latency_ms,
            timing_ms={
                name: float(value)
                for name, value in _TIMING.findall(answered.get("Server-Timing", ""))
            },
        )

    def _post(
        self, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            try:
                return self._post_once(body, headers, deadline)
            except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ProtocolError):
                # Most often a kept connection that the gateway closed a moment ago.
                if time.perf_counter() >= deadline:
                    raise
                self._hooks.retried()
                return self._post_once(body, headers, deadline)
        except urllib3.exceptions.NewConnectionError as error:  # in urllib3 a TimeoutError too
            raise PredictionError(502, "the prediction service cannot be reached") from error
        except (urllib3.exceptions.TimeoutError, TimeoutError) as error:
            raise PredictionError(504, "the prediction service did not answer in time") from error
        except urllib3.exceptions.SSLError as error:
            raise PredictionError(502, "the gateway's certificate is not trusted") from error
        except urllib3.exceptions.HTTPError as error:
            raise PredictionError(502, "the prediction service cannot be reached") from error

    def _post_once(
        self, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        left = max(0.001, deadline - time.perf_counter())
        response = self._pool.request(
            "POST",
            self._path,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=min(_CONNECT_SECONDS, left), read=left),
            preload_content=False,
        )
        try:
            data = bytearray()
            # A read timeout is that of one read: an answer that comes drop by drop would never meet it.
            while block := response.read1(1 << 20):
                data += block
                if time.perf_counter() > deadline:
                    raise TimeoutError
                if len(data) > _MOST_BYTES:
                    raise PredictionError(
                        502, f"the prediction service's answer is longer than {_MOST_BYTES} bytes"
                    )
        except BaseException:
            response.close()  # half read, it is of no use to the next call
            raise
        return response.status, response.headers, bytes(data)

    def _predictions(self, data: bytes, instances: int) -> list[Any]:
        try:
            predictions = json.loads(data)["predictions"]
            if not isinstance(predictions, list) or len(predictions) != instances:
                raise ValueError("not a prediction for each instance")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise PredictionError(502, "the prediction service's answer is malformed") from error
        try:
            for prediction in predictions:
                self._check(prediction)
        except (ValueError, TypeError) as error:
            raise PredictionError(502, f"the prediction service did not give {error}") from error
        return predictions


class _Kept:
    """The last answers by instance, bounded in number and age."""

    def __init__(self, entries: int, seconds: float, clock: Callable[[], float]) -> None:
        self._entries, self._seconds, self._clock = entries, seconds, clock
        self._lock = threading.Lock()
        self._answers: OrderedDict[bytes, tuple[float, Any, str | None]] = OrderedDict()

    def put(self, key: bytes, answer: Answer) -> None:
        if self._entries < 1:
            return
        with self._lock:
            self._answers[key] = (self._clock(), answer.predictions[0], answer.version)
            self._answers.move_to_end(key)
            if len(self._answers) > self._entries:
                self._answers.popitem(last=False)

    def get(self, key: bytes) -> tuple[Any, str | None, float] | None:
        with self._lock:
            found = self._answers.get(key)
        if found is None:
            return None
        when, prediction, version = found
        age = self._clock() - when
        return None if age > self._seconds else (prediction, version, age)


def _key(instance: Any) -> bytes:
    """Equal for equal instances; 1 and 1.0 are told apart, which costs an entry and no wrong answer."""
    return hashlib.sha256(json.dumps(instance, sort_keys=True).encode()).digest()


def read_api_key(path: Path) -> str:
    """The key in a file, without the newline at its end. Raises GroundcrewError."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise GroundcrewError(f"API_KEY_FILE {path} cannot be read: {error}") from error
    if not key:
        raise GroundcrewError(f"API_KEY_FILE {path} is empty; it must hold a key of the gateway")
    return key


def _refusal(status: int, headers: Mapping[str, str], data: bytes) -> PredictionError:
    if status == 504:
        return PredictionError(504, "the prediction service did not answer in time", answered=504)
    if status == 429:
        after = headers.get("Retry-After", "")
        return PredictionError(
            503,
            "too many predictions at once, try again in a moment",
            answered=429,
            retry_after_seconds=float(after) if after.isascii() and after.isdecimal() else 1.0,
        )
    if status == 503:
        return PredictionError(
            503, "no prediction host is ready, try again in a moment", answered=503
        )
    if status == 401:
        return PredictionError(502, "the gateway refuses this application's key", answered=401)
    try:
        detail = str(json.loads(data)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        detail = "no reason given"
    return PredictionError(
        502, f"the prediction service answered {status}: {detail}", answered=status
    )
