"""Turns, batches and the server behind: what happens between a request and a model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groundcrew_prediction import engine
from groundcrew_prediction.app import Application
from groundcrew_prediction.contract import BadRequest
from groundcrew_prediction.request import Refused
from groundcrew_prediction.serving import Behind, Direct, MicroBatch
from groundcrew_prediction.settings import Backend, Settings

ROW = np.zeros((1, 64))


class Slow:
    """An engine that notes what it is given, and works only while it is let."""

    def __init__(self, loaded: Any) -> None:
        self.model = loaded.model
        self.calls: list[int] = []
        self.go = threading.Event()

    def predict(self, instances: Any) -> Any:
        self.calls.append(len(instances))
        assert self.go.wait(10)
        if (instances == 13).any():
            raise ArithmeticError("thirteen")
        return np.repeat(instances[:, :1], 10, axis=1)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_requests_that_arrive_while_the_model_works_are_its_next_call(loaded):
    async def run() -> None:
        slow = Slow(loaded)
        server = MicroBatch(slow, most_rows=6)
        first = asyncio.create_task(server.predict(ROW, "a"))
        await until(lambda: slow.calls == [1])  # at once, though alone
        others = [asyncio.create_task(server.predict(ROW + n, "b")) for n in range(1, 9)]
        await asyncio.sleep(0)
        slow.go.set()
        answers = [await task for task in (first, *others)]
        assert slow.calls == [1, 6, 2]
        assert [answer.predictions[0, 0] for answer in answers] == list(range(9))
        assert [answer.batch_rows for answer in answers] == [1, *[6] * 6, 2, 2]
        assert answers[-1].queue_seconds > 0
        await server.stop()

    asyncio.run(run())


def test_a_request_that_the_model_fails_on_fails_alone(loaded):
    async def run() -> None:
        slow = Slow(loaded)
        server = MicroBatch(slow)
        first = asyncio.create_task(server.predict(ROW, "a"))
        await until(lambda: slow.calls == [1])
        others = [asyncio.create_task(server.predict(ROW + n, "b")) for n in (1, 13, 2)]
        await asyncio.sleep(0)
        slow.go.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert [isinstance(result, ArithmeticError) for result in results] == [
            False,
            False,
            True,
            False,
        ]
        await server.stop()

    asyncio.run(run())


def test_a_large_request_leaves_the_loop_to_others(loaded):
    async def run() -> None:
        slow = Slow(loaded)
        server = Direct(slow)
        large = asyncio.create_task(server.predict(np.zeros((100, 64)), "a"))
        await until(lambda: slow.calls == [100])
        await asyncio.sleep(0.01)  # it goes on
        assert not large.done()
        slow.go.set()
        assert (await large).batch_rows == 100
        await server.stop()

    asyncio.run(run())


def test_more_requests_than_the_queue_holds_are_refused_with_a_time_to_come_back(
    loaded, version_directory, client
):
    slow = Slow(loaded)
    settings = Settings("digits", "1", version_directory, max_queue=3)
    client.application = Application(MicroBatch(slow), settings)
    body = json.dumps({"instances": ROW.tolist()}).encode()

    async def run() -> list[Any]:
        path = "/v1/models/digits:predict"
        tasks = [asyncio.create_task(client.asked("POST", path, body)) for _ in range(5)]
        await until(lambda: sum(task.done() for task in tasks) == 2)
        slow.go.set()
        return [await task for task in tasks]

    answers = asyncio.run(run())
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 503, 503]
    (refused, _) = (answer for answer in answers if answer.status == 503)
    assert refused.headers["retry-after"] == "1" and "3 requests" in refused.json["error"]


class ModelServer:
    """Somebody's model server on loopback; `answer` is what it says to a body."""

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded
        self.status = 200
        self.say: Any = None
        self.seen: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, self.headers["X-Request-Id"], document))
                if outer.status == 0:
                    self.close_connection = True
                    return
                rows = np.array(document["rows"])
                said = outer.say or {"scores": outer.loaded.predict(rows).tolist()}
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._handler = Handler
        self.port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=[0.01]).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def model_server(loaded: Any) -> Iterator[ModelServer]:
    server = ModelServer(loaded)
    yield server
    server.stop()


def behind(server: ModelServer, directory: Path) -> Behind:
    model = engine.open_model(directory, "digits", "1")
    url = f"http://127.0.0.1:{server.port}/score"
    return Behind(model, Backend(url, "rows", "scores", 2))


def test_a_model_server_is_asked_in_its_own_words(model_server, version_directory, loaded):
    async def run() -> None:
        front = behind(model_server, version_directory)
        assert front.unavailable is not None
        await front.start()
        await until(lambda: front.unavailable is None)
        answer = await front.predict(ROW, "asked-here")
        assert np.allclose(answer.predictions, loaded.predict(ROW))
        path, request_id, document = model_server.seen[-1]
        assert (path, request_id, list(document)) == ("/score", "asked-here", ["rows"])
        await front.stop()

    asyncio.run(run())


def test_a_server_without_its_model_is_never_believed(model_server, version_directory):
    async def run() -> None:
        front = behind(model_server, version_directory)
        model_server.say = {"scores": [[0.2] * 10]}
        await front.start()
        await until(lambda: "golden case 0 wrong" in (front.unavailable or ""))
        model_server.say = None
        await until(lambda: front.unavailable is None)
        await front.stop()

    asyncio.run(run())


def test_a_server_that_ends_is_unavailable_until_it_answers_right_again(
    model_server, version_directory
):
    async def run() -> None:
        front = behind(model_server, version_directory)
        await front.start()
        await until(lambda: front.unavailable is None)
        await front.predict(ROW, "a")
        model_server.stop()
        await front._session.close()  # type: ignore[union-attr]
        await front.start()
        with pytest.raises(Refused, match="is not available: .*cannot be reached") as refused:
            await front.predict(ROW, "b")
        assert refused.value.status == 503
        assert front.unavailable is not None
        model_server.start()
        await until(lambda: front.unavailable is None)
        await front.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "say", "fault", "words"),
    [
        (400, {"error": "bad shape"}, BadRequest, "refused it (400): bad shape"),
        (500, b"<html>", RuntimeError, "answered 500: <html>"),
        (200, b"garbage", RuntimeError, 'no "scores"'),
        (200, {"scores": [[0.1] * 10] * 2}, RuntimeError, "no number for each of 1"),
        (200, {"scores": [["a"] * 10]}, RuntimeError, "no number"),
        (200, {"other": []}, RuntimeError, 'no "scores"'),
        (0, None, RuntimeError, "ended while it was asked"),
    ],
)
def test_what_a_server_says_is_told_apart(
    model_server, version_directory, status, say, fault, words
):
    async def run() -> None:
        front = behind(model_server, version_directory)
        await front.start()
        await until(lambda: front.unavailable is None)
        model_server.status, model_server.say = status, say
        with pytest.raises(fault) as caught:
            await front.predict(ROW, "a")
        assert words in str(caught.value)
        # One request may be the trouble; only a server that ended is lost.
        assert (front.unavailable is None) == (status != 0)
        await front.stop()

    asyncio.run(run())
