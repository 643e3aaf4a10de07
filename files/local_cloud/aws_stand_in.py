"""The AWS API stand-in of the embedded default: moto's server, with a memory.

moto forgets everything when it stops. This program writes each request that changes something to a log and, at the next
start, sends the log through a fresh moto again. Each logged request runs with a random seed of its own, so instance
ids, addresses and version ids come back as they were. (moto's own recorder logs reads too, lets threads interleave
lines, and drawing an id for a read shifts every later one.)

Usage: aws_stand_in.py ADDRESS PORT STATE_DIRECTORY
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.ec2.models import ec2_backends
from moto.moto_api._internal import mock_random
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

ACCOUNT, REGION = (
    "123456789012",
    "us-east-1",
)  # moto's own account, and the only region of embedded environments
READ = re.compile(r"(^|[.=])(Describe|Get|List|Head|BatchGet|Filter|Lookup|Search)[A-Z]")
WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def is_read(method: str, target: str, body: bytes) -> bool:
    """Whether a request changes nothing, so that replaying it would only cost time."""
    if target:
        return bool(READ.search(target))
    if method == "POST" and (action := re.search(rb"(?:^|&)Action=(\w+)", body[:4096])):
        return bool(READ.match("=" + action.group(1).decode()))
    return method in ("GET", "HEAD")


class Remembering:
    """A WSGI application around moto that logs writes and can replay them."""

    def __init__(self, app: WSGI, log: Path) -> None:
        self.app, self.log = app, log
        self.lock = threading.Lock()
        self.count = 0

    @staticmethod
    def begin() -> None:
        """Make EC2's default network now: its ids would otherwise be drawn by whichever request comes first, a read perhaps, that
        no replay repeats, and all later ids with them.
        """
        mock_random.seed(0)
        ec2_backends[ACCOUNT][REGION].describe_vpcs()

    def replay(self) -> int:
        """Send every logged request through moto again; a line torn by a kill is cut off first."""
        self.begin()
        self.log.touch()
        data = self.log.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self.log.write_bytes(whole)
        client = Client(self.app, Response)
        for line in whole.splitlines():
            entry = json.loads(line)
            self._seed()
            base, target = re.fullmatch(r"(\w+://[^/]+)(.*)", entry["url"]).groups()  # type: ignore[union-attr]
            # What moto could not do when it was asked it cannot do now, and whoever asked was told so then.
            with contextlib.suppress(Exception):
                client.open(
                    target,
                    base_url=base,
                    method=entry["method"],
                    headers=entry["headers"],
                    data=base64.b64decode(entry["body"]),
                )
        return self.count

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        request = Request(environ)
        body = request.get_data()
        environ["wsgi.input"] = io.BytesIO(body)
        # One request at a time: a second thread would draw from the same random numbers.
        with self.lock:
            if not is_read(request.method, request.headers.get("X-Amz-Target", ""), body):
                entry = {
                    "method": request.method,
                    # As it came: decoded, a key with a percent sign would be another key.
                    "url": request.host_url.rstrip("/") + environ["REQUEST_URI"],
                    "headers": list(request.headers.items()),
                    "body": base64.b64encode(body).decode(),
                }
                with self.log.open("a") as log:
                    log.write(json.dumps(entry) + "\n")
                self._seed()
            response = Response.from_app(self.app, environ)
            chunks = [response.get_data()]
            start_response(response.status, list(response.headers.items()))
            return chunks

    def _seed(self) -> None:
        self.count += 1
        mock_random.seed(self.count)


class QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log failures only: a poll every few seconds is no news, and URLs may name secrets."""
        if str(code)[:1] == "5":
            super().log_request(code, size)


def main() -> None:
    address, port, state = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    os.umask(0o077)  # the log holds secrets
    state.mkdir(parents=True, exist_ok=True)
    cloud = Remembering(DomainDispatcherApplication(create_backend_app), state / "requests.jsonl")
    replayed = cloud.replay()
    # Listens only now: nobody ever sees a half-replayed cloud.
    server = make_server(address, port, cloud, threaded=True, request_handler=QuietHandler)
    # shutdown() waits for serve_forever to return, so it must run beside it.
    stop = threading.Thread(target=server.shutdown)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.start())
    print(f"ready on {address}:{port}, {replayed} requests replayed", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
