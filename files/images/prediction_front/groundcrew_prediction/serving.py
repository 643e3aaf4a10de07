"""How requests get their turn: at a model in this process, in batches, or at a server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import numpy as np
import orjson

from .contract import BadRequest, instances_of, to_array
from .engine import Engine, Model, checked, golden_fault
from .request import Refused
from .settings import Backend
from .transform import Array

# Rows that a model may predict while everything else waits: well under a millisecond.
_INLINE_ROWS = 32
_MOST_BATCH_ROWS = 256
_GOLDEN_PAUSE_SECONDS = (0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """Predictions, how long they waited for the model, how long it took, and of how many rows."""

    predictions: Array
    queue_seconds: float
    model_seconds: float
    batch_rows: int


class Server(Protocol):
    """What answers requests for one model version."""

    @property
    def model(self) -> Model: ...

    @property
    def unavailable(self) -> str | None:
        """Why requests cannot be answered now, None when they can."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def predict(self, instances: Array, request_id: str) -> Answer:
        """Raises BadRequest and Refused; anything else is a failure of this one request."""
        ...


def not_available(server: Server) -> Refused:
    """The answer of a server that is unavailable."""
    reason = f"{server.model.what} is not available: {server.unavailable}"
    return Refused(503, reason, ("retry-after", "1"))


class Direct:
    """A fast model: one request, one call. Large requests have a thread, so that others go on."""

    unavailable = None

    def __init__(self, engine: Engine) -> None:
        self.model = engine.model
        self._engine = engine
        self._thread = ThreadPoolExecutor(1)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self._thread.shutdown()

    async def predict(self, instances: Array, request_id: str) -> Answer:
        asked = time.perf_counter()
        rows = len(instances)
        if rows <= _INLINE_ROWS:
            predictions = self._engine.predict(instances)
            return Answer(predictions, 0.0, time.perf_counter() - asked, rows)
        loop = asyncio.get_running_loop()
        started, predictions = await loop.run_in_executor(self._thread, self._timed, instances)
        return Answer(predictions, started - asked, time.perf_counter() - started, rows)

    def _timed(self, instances: Array) -> tuple[float, Array]:
        return time.perf_counter(), self._engine.predict(instances)


@dataclass(slots=True)
class _Waiting:
    instances: Array
    asked: float
    answer: asyncio.Future[Answer]


class MicroBatch:
    """A model with a high price a call: requests that arrive while it works are its next call.

    Nobody waits for company: a request that finds the model idle is predicted at once.
    """

    unavailable = None

    def __init__(self, engine: Engine, most_rows: int = _MOST_BATCH_ROWS) -> None:
        self.model = engine.model
        self._engine = engine
        self._most_rows = most_rows
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        if self._work is not None:
            await self._work
        self._thread.shutdown()

    async def predict(self, instances: Array, request_id: str) -> Answer:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(instances, time.perf_counter(), loop.create_future())
        self._waiting.append(waiting)
        if self._work is None:
            self._work = loop.create_task(self._drain())
        return await waiting.answer

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [self._waiting.popleft()]
            rows = len(batch[0].instances)
            while self._waiting and rows + len(self._waiting[0].instances) <= self._most_rows:
                batch.append(self._waiting.popleft())
                rows += len(batch[-1].instances)
            started = time.perf_counter()
            results = await loop.run_in_executor(self._thread, self._predict, batch)
            seconds = time.perf_counter() - started
            for waiting, result in zip(batch, results, strict=True):
                if waiting.answer.cancelled():
                    continue
                if isinstance(result, Exception):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(
                        Answer(result, started - waiting.asked, seconds, rows)
                    )
        self._work = None

    def _predict(self, batch: list[_Waiting]) -> list[Array | Exception]:
        if len(batch) > 1:
            with contextlib.suppress(Exception):
                together = self._engine.predict(np.concatenate([w.instances for w in batch]))
                ends = np.cumsum([len(w.instances) for w in batch])[:-1]
                return list(np.split(together, ends))
        # One by one, so that the request that is the trouble is the only one that fails.
        results: list[Array | Exception] = []
        for waiting in batch:
            try:
                results.append(self._engine.predict(waiting.instances))
            except Exception as error:
                results.append(error)
        return results


class Behind:
    """An unmodified model server behind this one.

    It is available once it has answered the golden cases right, and no longer after it could not be
    reached: a server that answers its health check may have no model yet, or another one.
    """

    def __init__(self, model: Model, backend: Backend) -> None:
        self.model = model
        self.unavailable: str | None = "it has not answered its golden cases yet"
        self._backend = backend
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=1, keepalive_timeout=10),
            timeout=aiohttp.ClientTimeout(total=self._backend.timeout_seconds, sock_connect=2),
        )
        self._watch = asyncio.create_task(self._until_golden())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._session is not None:
            await self._session.close()

    async def predict(self, instances: Array, request_id: str) -> Answer:
        transform = self.model.transform
        started = time.perf_counter()
        rows = np.ascontiguousarray(transform.preprocess(instances))
        body = orjson.dumps({self._backend.request_key: rows}, option=orjson.OPT_SERIALIZE_NUMPY)
        answer = await self._ask(body, request_id)
        predictions = transform.postprocess(self._read(answer, len(rows)))
        return Answer(
            checked(self.model, predictions), 0.0, time.perf_counter() - started, len(rows)
        )

    async def _ask(self, body: bytes, request_id: str) -> bytes:
        """The body of a good answer. Raises BadRequest, Refused and RuntimeError (it failed)."""
        assert self._session is not None
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        for attempt in (1, 2):
            try:
                async with self._session.post(
                    self._backend.url, data=body, headers=headers
                ) as response:
                    data = await response.read()
                break
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                self._lost(f"its server cannot be reached: {error}")
                raise not_available(self) from error
            except TimeoutError as error:
                seconds = self._backend.timeout_seconds
                raise Refused(504, f"the model server did not answer within {seconds} s") from error
            except aiohttp.ClientError as error:
                # A kept connection that was closed under the request looks like a server that died
                # of it; only a second time it is one.
                if attempt == 2:
                    self._lost(f"its server ended while it was asked: {error}")
                    raise RuntimeError("the model server ended while it was asked") from error
        if response.status >= 500:
            # Not 502 or 503, which a gateway would try elsewhere: this request may be the trouble.
            raise RuntimeError(f"the model server answered {response.status}: {_words(data)}")
        if response.status >= 400:
            raise BadRequest(f"the model server refused it ({response.status}): {_words(data)}")
        return data

    def _read(self, data: bytes, rows: int) -> Array:
        key = self._backend.response_key
        try:
            document = orjson.loads(data)
            predictions = np.array(document[key])
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f'the model server\'s answer has no "{key}" that is an array: {_words(data)}'
            ) from error
        if predictions.dtype.kind not in "fiu" or predictions.ndim == 0 or len(predictions) != rows:
            raise RuntimeError(f"the model server gave no number for each of {rows} instances")
        return predictions

    def _lost(self, why: str) -> None:
        self.unavailable = why
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._until_golden())

    async def _until_golden(self) -> None:
        pauses = iter(_GOLDEN_PAUSE_SECONDS)
        while self.unavailable is not None:
            fault = await self._golden_fault()
            if fault is None:
                self.unavailable = None
                return
            self.unavailable = fault
            await asyncio.sleep(next(pauses, _GOLDEN_PAUSE_SECONDS[-1]))

    async def _golden_fault(self) -> str | None:
        for number, case in enumerate(self.model.golden.cases):
            try:
                instances = to_array(instances_of(case["request"]), self.model.signature)
                answer = await self.predict(instances, f"golden-{number}")
            except Exception as error:
                return str(error)
            said: Any = {"predictions": answer.predictions.tolist()}
            fault = golden_fault(self.model, number, said)
            if fault is not None:
                return fault
        return None


def _words(data: bytes) -> str:
    """The reason in an error's body, as far as one can be told."""
    with contextlib.suppress(orjson.JSONDecodeError):
        document = orjson.loads(data)
        if isinstance(document, dict):
            for key in ("error", "message"):
                if isinstance(document.get(key), str):
                    return str(document[key])[:300]
    return data[:300].decode("utf-8", "replace").strip() or "nothing"
