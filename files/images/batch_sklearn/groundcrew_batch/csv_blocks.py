"""CSV as blocks of whole rows, so that blocks can be parsed beside each other and a broken row costs itself alone.

The form is RFC 4180's: commas, values in quotes where they hold commas, quotes (doubled) or line
ends. A quote inside a value that does not begin with one is a character like any other.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from groundcrew.errors import GroundcrewError

BLOCK_BYTES = 2 << 20
# A row that is longer is no row: a quote that nothing ends would else swallow the file.
ROW_BYTES = 8 << 20
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
# A quote at the beginning of a value, what follows it, and the quote that ends the value.
_QUOTED = re.compile(rb'(?:(?<=[,\n\r])|\A)"[^"]*+(?:""[^"]*+)*+("?)')
_AFTER = frozenset(b",\r\n")


@dataclass(frozen=True)
class Text:
    """Whole rows. ``quoted``: there are quotes among them."""

    data: bytes
    quoted: bool
    size: int


@dataclass(frozen=True)
class Broken:
    """A line that is no row, and why."""

    reason: str
    size: int


def read_header(stream: Any, uri: str) -> tuple[list[str], int]:
    """The names in the first row, and its length in bytes. Raises GroundcrewError without one."""
    start = stream.read(BLOCK_BYTES)
    if not start:
        raise GroundcrewError(
            f"the input {uri} is empty; it must have a header, even when it has no rows"
        )
    if start.startswith(_WIDE_BOMS):
        raise GroundcrewError(f"the input {uri} is UTF-16; write it as UTF-8")
    skipped = len(_BOM) if start.startswith(_BOM) else 0
    rest = start[skipped:].lstrip(b"\r\n")
    skipped = len(start) - len(rest)
    end = _row_end(rest)
    if not end and len(start) == BLOCK_BYTES:
        raise GroundcrewError(f"the input {uri} has no header: its first line does not end")
    line = rest[: end or len(rest)]
    try:
        names = next(csv.reader([line.decode().strip("\r\n")], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise GroundcrewError(
            f"cannot read the input {uri}: its first line, {line[:40]!r}, is no header in UTF-8 "
            f"({error})"
        ) from error
    stream.seek(skipped + len(line))
    return names, skipped + len(line)


def _row_end(data: bytes) -> int:
    """Where the first row ends, 0 when it does not."""
    position = 0
    for found in _QUOTED.finditer(data):
        if re.search(rb"[\r\n]", data[position : found.start()]):
            break
        position = found.end()
    end = re.compile(rb"\r\n|\n|\r").search(data, position)
    return end.end() if end else 0


def split(stream: Any) -> Iterator[Text | Broken]:
    """Everything after the header. The sizes add up to the bytes that were read."""
    left = b""
    ended = False
    while left or not ended:
        block = b"" if ended else stream.read(BLOCK_BYTES)
        ended = ended or not block
        data = left + block if left else block
        start = 0
        while start < len(data):
            quoted = data.find(b'"', start) >= 0
            end, broken = _whole_rows(data, start, ended) if quoted else (data.rfind(b"\n") + 1, "")
            if not quoted and ended:
                end = len(data)
            if end > start:
                yield Text(data[start:end], quoted, end - start)
                start = end
            if not broken and start < len(data) and (ended or len(data) - start >= ROW_BYTES):
                broken = f"is longer than {ROW_BYTES >> 20} MiB, or has a quote that nothing ends"
            if not broken:
                break
            line = data.find(b"\n", start) + 1
            size = line - start
            if not line:
                size = len(data) - start + _skip_line(stream)
                line = len(data)
            yield Broken(broken, size)
            start = line
        left = data[start:]


def _skip_line(stream: Any) -> int:
    """Read to the end of a line; how many bytes that were."""
    size = 0
    while part := stream.readline(BLOCK_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _whole_rows(data: bytes, start: int, ended: bool) -> tuple[int, str]:
    """Where the last whole row from ``start`` ends, and what is wrong with the line after it."""
    end = _end_by_parity(data, start, ended)
    if end is not None:
        return end, ""
    last = position = start
    for found in _QUOTED.finditer(data, start):
        line = data.rfind(b"\n", position, found.start())
        last = line + 1 if line >= 0 else last
        end = found.end()
        if end == len(data):
            if found[1] and ended:
                return end, ""
            return last, "has a quote that nothing ends" if ended else ""
        if data[end] not in _AFTER:
            return last, "has a quote inside a value in quotes; it must be doubled"
        position = end
    if ended:
        return len(data), ""
    line = data.rfind(b"\n", position)
    return (line + 1 if line >= 0 else last), ""


def _end_by_parity(data: bytes, start: int, ended: bool) -> int | None:
    """Where the last whole row ends; None unless every quote begins, ends or is doubled in a value.

    Then a line end belongs to a row when the number of quotes before it is even.
    """
    codes = np.frombuffer(data, np.uint8)[start:]
    quotes = np.flatnonzero(codes == ord('"'))
    opening, closing = quotes[0::2], quotes[1::2]
    doubled = np.zeros(len(quotes), bool)
    doubled[1:] = np.diff(quotes) == 1
    fine = doubled[0::2] | (opening == 0) | _ends_value(codes[np.maximum(opening - 1, 0)])
    if not fine.all():
        return None
    # Of the last byte nobody knows what follows.
    inner = closing[closing < len(codes) - 1]
    followed = np.zeros(len(closing), bool)
    followed[: len(quotes[2::2])] = doubled[2::2]
    if not (followed[: len(inner)] | _ends_value(codes[inner + 1])).all():
        return None
    if ended:
        return len(data) if len(quotes) % 2 == 0 else None
    line = data.rfind(b"\n", start)
    while line >= 0:
        before = int(np.searchsorted(quotes, line - start))
        if before % 2 == 0:
            return line + 1
        # Inside a value: on before the quote that may have opened it.
        line = data.rfind(b"\n", start, start + int(quotes[before - 1]))
    return start


def _ends_value(codes: Any) -> Any:
    return (codes == ord(",")) | (codes == ord("\n")) | (codes == ord("\r"))
