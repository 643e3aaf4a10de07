"""A channel on loopback that misbehaves as a test says; it counts what it was asked for."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Answers in a request's stead: returns whether it did. Arguments: the handler, how often this path was asked for, its content.
Fault = Callable[[BaseHTTPRequestHandler, int, bytes], bool]


@dataclass
class Channel:
    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)  # by file name
    halfway: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    headers: list[dict[str, str]] = field(default_factory=list)


def status(code: int, times: int = 1 << 30, of: str = "") -> Fault:
    """Answer with a status, the first times that a file is asked for."""

    def fault(handler: BaseHTTPRequestHandler, number: int, _: bytes) -> bool:
        if number > times or of not in handler.path:
            return False
        handler.send_error(code)
        return True

    return fault


def cut(after: int, times: int = 1 << 30) -> Fault:
    """Promise a whole file, send some of it and hang up."""

    def fault(handler: BaseHTTPRequestHandler, number: int, content: bytes) -> bool:
        if number > times:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:after])
        return True

    return fault


def slow(of: str) -> Fault:
    """Send half of one file, say so, and wait for the end of the test."""

    def fault(handler: BaseHTTPRequestHandler, _: int, content: bytes) -> bool:
        if of not in handler.path:
            return False
        channel: Channel = handler.server.channel  # type: ignore[attr-defined]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        channel.halfway.set()
        channel.ended.wait(60)
        return True

    return fault


@contextlib.contextmanager
def serve(folder: Path, *faults: Fault) -> Iterator[Channel]:
    """Serve a channel's folder; each request goes to the first fault that takes it."""
    channel = Channel()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            channel.asked[name] += 1
            channel.headers.append(dict(self.headers))
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            if any(fault(self, channel.asked[name], content) for fault in faults):
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.channel = channel  # type: ignore[attr-defined]
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        channel.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield channel
        finally:
            channel.ended.set()
            server.shutdown()
            thread.join()
