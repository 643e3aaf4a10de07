"""The application below a path of its own, such as /reports/, as one of several behind a gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


def below(prefix: str, application: Wsgi) -> Wsgi:
    """The application at ``prefix`` (it begins and ends with "/"), whether or not the gateway takes the prefix off.

    Other paths are served as they are: health checks ask for /healthz, and a gateway may have taken the prefix off.
    """
    if prefix == "/":
        return application

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == prefix[:-1]:
            # Links of the page are relative, so it has to end with "/".
            start_response(
                "308 Permanent Redirect", [("Location", prefix), ("Content-Length", "0")]
            )
            return [b""]
        if path.startswith(prefix):
            environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + prefix[:-1]
            environ["PATH_INFO"] = path[len(prefix) - 1 :]
        return application(environ, start_response)

    return serve
