"""The input of a run: a CSV or Parquet file with a column ``id`` and one column a number."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from groundcrew import objects
from groundcrew.errors import GroundcrewError
from groundcrew_prediction.contract import BadRequest, Signature, check_number

ID = "id"
_S3 = re.compile(r"s3://([^/]+)/(.+)\Z")
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Input:
    """A local copy of the input and what identifies it: sha256 (hexadecimal) and size (bytes)."""

    uri: str
    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be scored: its id (None without one), its number from 1, why."""

    id: str | None
    row: int
    reason: str


@dataclass
class Chunk:
    """Rows to score, as ids and instances (n, *shape), and the rejected rows among them."""

    ids: list[str]
    instances: np.ndarray[Any, Any]
    rejected: list[Rejected] = field(default_factory=list)


def obtain(client: Any, uri: str, directory: Path) -> Input:
    """Copy the input to ``directory``, so that a run reads one state of it from start to end.

    Raises GroundcrewError when it does not exist.
    """
    match = _S3.match(uri)
    path = directory / ("input" + Path(uri).suffix)
    digest = hashlib.sha256()
    size = 0
    try:
        with _open(client, match, uri) as stream, path.open("wb") as copy:
            while block := stream.read(_BLOCK):
                copy.write(block)
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise GroundcrewError(
            f"cannot copy the input {uri} to {directory}: {error.strerror}; correct INPUT, or give "
            "the job a WORK_DIRECTORY with space for it"
        ) from error
    return Input(uri, path, digest.hexdigest(), size)


def _open(client: Any, match: re.Match[str] | None, uri: str) -> Any:
    if match is None:
        return Path(uri).open("rb")
    try:
        return client.get_object(Bucket=match[1], Key=match[2])["Body"]
    except client.exceptions.ClientError as error:
        if objects.error_code(error) not in ("NoSuchKey", "NoSuchBucket", "404"):
            raise
        raise GroundcrewError(f"the input {uri} does not exist; correct INPUT") from error


def chunks(source: Input, signature: Signature, chunk_rows: int) -> Iterator[Chunk]:
    """The input's rows in their order, ``chunk_rows`` readable ones at a time.

    Memory holds a few chunks, whatever the input's size. A chunk depends on the input, the
    signature and ``chunk_rows`` alone. Raises GroundcrewError when the columns do not fit.
    """
    suffix = source.path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise GroundcrewError(f"the input {source.uri} must be a .csv or .parquet file")
    malformed: list[Rejected] = []
    last_row = 0
    try:
        if suffix == ".csv":
            names, batches = _read_csv(source, malformed)
        else:
            names, batches = _read_parquet(source, chunk_rows)
        columns = _feature_columns(source.uri, names, signature)
        for table in _rechunk(batches, chunk_rows):
            rows = _row_numbers(last_row, table.num_rows, malformed)
            last_row = int(rows[-1])
            chunk = _convert(table, columns, signature, rows)
            chunk.rejected += _take(malformed, last_row)
            chunk.rejected.sort(key=lambda rejected: rejected.row)
            yield chunk
    except pa.ArrowException as error:
        raise GroundcrewError(f"cannot read the input {source.uri}: {error}") from error
    if malformed:
        empty = np.empty((0, *signature.shape), dtype=signature.dtype)
        yield Chunk([], empty, _take(malformed, malformed[-1].row))


def _read_csv(
    source: Input, malformed: list[Rejected]
) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    """Column names and batches of text; rows of another length go to ``malformed``."""
    with source.path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        names = next(csv.reader(stream), [])

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"has {row.actual_columns} values; the header has {row.expected_columns}"
        malformed.append(Rejected(None, row.number - 1, reason))
        return "skip"

    reader = pyarrow.csv.open_csv(
        source.path,
        # Only a single thread tells the numbers of malformed rows.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK),
        parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip),
        convert_options=pyarrow.csv.ConvertOptions(
            # Text, so that a value that is not a number costs a row and not the run.
            column_types={name: pa.string() for name in names},
            strings_can_be_null=False,
        ),
    )
    return names, iter(reader)


def _read_parquet(source: Input, chunk_rows: int) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    file = pyarrow.parquet.ParquetFile(source.path)
    return list(file.schema_arrow.names), file.iter_batches(batch_size=chunk_rows)


def _feature_columns(uri: str, names: list[str], signature: Signature) -> list[str]:
    """The columns other than id, in the file's order."""
    columns = [name for name in names if name != ID]
    wanted = int(np.prod(signature.shape))
    if names.count(ID) != 1 or len(set(columns)) != len(columns):
        raise GroundcrewError(
            f"the input {uri} has the columns {names[:5]}…; it must have one column {ID!r} and no "
            "name twice"
        )
    if len(columns) != wanted:
        raise GroundcrewError(
            f"the input {uri} has {len(columns)} columns besides {ID!r}; the model takes {wanted} "
            "numbers"
        )
    return columns


def _rechunk(batches: Iterator[pa.RecordBatch], chunk_rows: int) -> Iterator[pa.Table]:
    """Tables of exactly ``chunk_rows`` rows, but for the last."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        count += batch.num_rows
        if count >= chunk_rows:
            table = pa.Table.from_batches(waiting)
            start = 0
            while count >= chunk_rows:
                yield table.slice(start, chunk_rows)
                start += chunk_rows
                count -= chunk_rows
            waiting = table.slice(start).to_batches() if count else []
    if count:
        yield pa.Table.from_batches(waiting)


def _row_numbers(last_row: int, count: int, malformed: list[Rejected]) -> np.ndarray[Any, Any]:
    """The numbers of the next ``count`` rows after ``last_row`` that are not malformed."""
    candidates = np.arange(last_row + 1, last_row + 1 + count + len(malformed))
    skipped = [rejected.row for rejected in malformed]
    return candidates[~np.isin(candidates, skipped)][:count]


def _take(malformed: list[Rejected], last_row: int) -> list[Rejected]:
    """Remove and return the malformed rows up to ``last_row``; the reader reads ahead."""
    taken = [rejected for rejected in malformed if rejected.row <= last_row]
    malformed[:] = [rejected for rejected in malformed if rejected.row > last_row]
    return taken


def _convert(
    table: pa.Table, columns: list[str], signature: Signature, rows: np.ndarray[Any, Any]
) -> Chunk:
    """The rows that can be scored as an array, the others with their first fault."""
    names = table.column(ID).cast(pa.string()).to_pylist()
    flat = np.empty((table.num_rows, len(columns)), dtype=np.float64)
    for position, name in enumerate(columns):
        flat[:, position] = _numbers(table.column(name))
    with np.errstate(over="ignore"):
        values = flat.astype(signature.dtype)
    low = -np.inf if signature.minimum is None else signature.minimum
    high = np.inf if signature.maximum is None else signature.maximum
    # NaN stands for what is not a number and fails both comparisons.
    fine = (np.isfinite(values) & (values >= low) & (values <= high)).all(axis=1)
    fine &= np.array([bool(name) for name in names])
    rejected = []
    for index in np.flatnonzero(~fine):
        row = table.slice(int(index), 1)
        reason = _fault(row, columns, signature)
        rejected.append(Rejected(names[index] or None, int(rows[index]), reason))
    ids = [name for name, kept in zip(names, fine, strict=True) if kept]
    return Chunk(ids, values[fine].reshape(-1, *signature.shape), rejected)


def _numbers(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column as float64, NaN where it holds no number."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        matches = pc.match_substring_regex(column, _NUMBER)
        column = pc.if_else(matches, column, pa.scalar(None, column.type))
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return np.full(len(column), np.nan)
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy())


def _fault(row: pa.Table, columns: list[str], signature: Signature) -> str:
    """Why the one row of a table cannot be scored."""
    for name in columns:
        given = row.column(name)[0].as_py()
        number = float(_numbers(row.column(name))[0])
        if np.isnan(number):
            return f"{name} is {str(given)[:40]!r}; it must be a number"
        try:
            check_number(number, signature, name)
        except BadRequest as error:
            return str(error)
    return f"{ID} is empty"
