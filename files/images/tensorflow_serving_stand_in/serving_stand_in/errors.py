"""Errors with a status code of gRPC, and what REST makes of each (model_servers/http_server.cc)."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """Codes by their names in google.rpc.Code; the value is REST's HTTP status."""

    OK = 200
    CANCELLED = 499
    INVALID_ARGUMENT = 400
    DEADLINE_EXCEEDED = 504
    NOT_FOUND = 404
    RESOURCE_EXHAUSTED = 429
    # Different names, though the same HTTP status: an alias would lose the name.
    FAILED_PRECONDITION = "400 failed precondition"
    UNIMPLEMENTED = 501
    INTERNAL = 500
    UNAVAILABLE = 503

    @property
    def http(self) -> int:
        return 400 if self is Code.FAILED_PRECONDITION else int(self.value)


class ServingError(Exception):
    """A request, a configuration or a model that the server refuses."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        # As absl::Status prints itself; other errors quote it.
        return f"{self.code.name}: {self.message}"


def invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)
