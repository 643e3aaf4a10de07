"""From the bytes of a request's body to its instances."""

from __future__ import annotations

import json
import zlib
from typing import Any, NoReturn

import orjson

from .contract import BadRequest, instances_of


class Refused(Exception):
    """A request that is answered with a status and a reason instead of a prediction."""

    def __init__(self, status: int, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


def decoded(body: bytes, content_type: str | None, encoding: str | None, limit: int) -> bytes:
    """The body as it was before it was compressed, at most ``limit`` bytes.

    Raises Refused: 415 for another type than JSON or another encoding than gzip, 413 above the
    limit, 400 for a damaged body.
    """
    if content_type is not None:
        kind = content_type.partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, f"Content-Type is {kind or 'empty'}; it must be application/json")
    if encoding is None or encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() != "gzip":
        raise Refused(415, f"Content-Encoding is {encoding}; it must be gzip, or left out")
    unpack = zlib.decompressobj(wbits=31)
    try:
        data = unpack.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not gzip: {error}") from None
    if len(data) > limit:
        raise Refused(413, f"the body is larger than {limit} bytes when it is decompressed")
    if not unpack.eof or unpack.unused_data:
        raise Refused(400, "the body is not whole gzip data: it was cut off, or more follows it")
    return data


def instances(body: bytes, most: int) -> list[Any]:
    """The instances in a body. Raises BadRequest; Refused (413) when there are more than ``most``."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _say_what_is_wrong(body)
    found = instances_of(document)
    if len(found) > most:
        raise Refused(413, f'"instances" has {len(found)} entries; a request may have {most}')
    return found


def _say_what_is_wrong(body: bytes) -> NoReturn:
    # Slower, but it tells NaN from a misplaced comma.
    if not body:
        raise BadRequest('the body is empty; it must be JSON such as {"instances": [[…]]}')
    try:
        json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    raise BadRequest(
        "the body is not JSON: it is nested too deeply or holds text that is not UTF-8"
    )


def _refuse_constant(name: str) -> NoReturn:
    # Python's parser takes NaN and Infinity, which JSON does not have.
    raise BadRequest(f"the body holds {name}; every number must be finite")
