"""A person's CSV file of digits: a header ``id,p0,…,p63`` in any order (the id may be left out), then a row an image.

It is read whole or not at all: the first fault is named with its line and column. pyarrow reads it, which lets go of the interpreter.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from digits_application.digits import INK, PIXELS

NAMES = tuple(f"p{pixel}" for pixel in range(PIXELS))
_FORM = "the first line must be id,p0,p1,…,p63 (id may be left out)"
_CONVERSION = re.compile(
    r"In CSV column #([0-9]+): Row #([0-9]+): .*invalid value '(.*)'\Z", re.DOTALL
)
_LENGTH = re.compile(r"Row #([0-9]+): Expected ([0-9]+) columns, got ([0-9]+)")
_SHOWN = 40  # characters of a wrong value


class MalformedFile(Exception):
    """What is wrong with a file, in words for who made it. status: 400, or 413 when it is too large."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Rows:
    """The rows of a file; ids count from 1 where the file has none."""

    ids: list[str] | None
    pixels: list[pa.Array]  # 64 columns of float32

    def __len__(self) -> int:
        return len(self.pixels[0])

    def id(self, row: int) -> str:
        return str(row + 1) if self.ids is None else self.ids[row]

    def instances(self, start: int, count: int) -> list[list[float]]:
        """Some rows as instances."""
        columns = [column.slice(start, count).to_pylist() for column in self.pixels]
        return [list(pixels) for pixels in zip(*columns, strict=True)]


# The byte order mark that some editors begin UTF-8 with.
_MARK = b"\xef\xbb\xbf"


def read(data: bytes, most_rows: int) -> Rows:
    """The rows of a file. Raises MalformedFile."""
    if not data.removeprefix(_MARK).strip():
        raise MalformedFile(f"the file is empty; {_FORM}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        raise MalformedFile(
            "the file is not UTF-8 text (it may be UTF-16, or no CSV at all); save it as CSV, UTF-8"
        )
    data = data.removeprefix(_MARK)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MalformedFile(
            f"line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as CSV, UTF-8"
        ) from None
    header = _header(text)
    table = _table(data, header)
    if not table.num_rows:
        raise MalformedFile("the file has no row below its first line")
    if table.num_rows > most_rows:
        raise MalformedFile(f"the file has {table.num_rows} rows; it may have {most_rows}", 413)
    pixels = [_whole(table[name]) for name in NAMES]
    _check_range(pixels, data)
    return Rows(table["id"].to_pylist() if "id" in header else None, pixels)


def _header(text: str) -> list[str]:
    first = text.lstrip("\r\n").splitlines()[0]
    try:
        (names,) = csv.reader([first], strict=True)
    except (csv.Error, ValueError):
        raise MalformedFile(f"line 1 is not CSV; {_FORM}") from None
    names = [name.strip() for name in names]
    if len(names) == 1 and re.search(r"[;\t]", first):
        raise MalformedFile(
            f"the columns are separated by {'tabs' if chr(9) in first else 'semicolons'}; separate them by commas"
        )
    missing = [name for name in NAMES if name not in names]
    extra = [name for name in names if name not in (*NAMES, "id")]
    twice = sorted({name for name in names if names.count(name) > 1})
    for what, found in (("lacks", missing), ("has the unknown", extra), ("has twice", twice)):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            listed = ", ".join(repr(name[:_SHOWN]) for name in found[:3])
            raise MalformedFile(
                f"line 1 {what} {'columns' if len(found) > 1 else 'column'} {listed}{more}; {_FORM}"
            )
    return names


def _table(data: bytes, header: list[str]) -> pa.Table:
    # A first line without an end is one that pyarrow cannot skip.
    data = data.lstrip(b"\r\n") + b"\n"
    types: dict[str, Any] = {name: pa.float32() for name in NAMES}
    try:
        return arrow_csv.read_csv(
            pa.BufferReader(data),
            # In one block and one thread: only then an error tells the row.
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=len(data) + 1, column_names=header, skip_rows=1
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={**types, "id": pa.string()}, null_values=[], strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _fault(str(error), data, header) from None


def _fault(said: str, data: bytes, header: list[str]) -> MalformedFile:
    if match := _CONVERSION.search(said):
        name = header[int(match[1])]
        value = match[3] if len(match[3]) <= _SHOWN else match[3][:_SHOWN] + "…"
        what = "is empty" if not value.strip() else f"is {value!r}"
        return MalformedFile(
            f"line {_line(data, int(match[2]))}: {name} {what}; it must be a number from 0 to {INK}"
        )
    if match := _LENGTH.search(said):
        return MalformedFile(
            f"line {_line(data, int(match[1]))} has {match[3]} columns; it must have {match[2]}, as line 1"
        )
    return MalformedFile(f"the file is not CSV: {said[:200]}")


def _check_range(pixels: list[pa.Array], data: bytes) -> None:
    first: tuple[int, int] | None = None
    for number, column in enumerate(pixels):
        # A comparison with NaN is false, so this finds it too.
        good = pc.and_(pc.greater_equal(column, 0), pc.less_equal(column, INK))
        row = pc.index(good, pa.scalar(False)).as_py()
        if row >= 0 and (first is None or row < first[0]):
            first = (row, number)
    if first is not None:
        row, number = first
        value = pixels[number][row].as_py()
        raise MalformedFile(
            f"line {_line(data.lstrip(bytes([13, 10])), row + 2)}: {NAMES[number]} is {value:g}; it must be a number from 0 to {INK}"
        )


def _line(data: bytes, row: int) -> int:
    """The line of the file's row number ``row``, from 1; empty lines are no rows."""
    for line, content in enumerate(data.splitlines(), 1):
        row -= bool(content)
        if not row:
            return line
    return row


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
