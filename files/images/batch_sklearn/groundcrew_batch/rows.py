"""Rows of CSV and Parquet files as arrays of numbers, and the rows that cannot be scored with the reason.

Files are read in blocks. What a block gives depends on the block alone, so that blocks are converted
beside each other: a CSV block is parsed straight to numbers, and only one with a row that cannot be
scored is parsed again as text, to say why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from groundcrew.errors import GroundcrewError
from groundcrew_prediction.contract import BadRequest, Signature, check_number

from . import csv_blocks
from .source import File, Input

ID = "id"
_BLOCK_NUMBERS = 250_000
_BUFFER_BYTES = 8 << 20
_BLANKS = " \t"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_IS_NUMBER = re.compile(_NUMBER.replace("$", r"\Z"))
_MOST_NAMED = 5


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be scored: its id (None without one), its number in its file from 1, why,
    and the file when the input is several."""

    id: str | None
    row: int
    reason: str
    file: str | None = None


@dataclass
class Block:
    """Rows of one file: those to score as ids, instances (n, numbers) and row numbers (from 1, as
    the rejected rows' are, once :meth:`placed`), and the rejected ones. ``rows`` counts both,
    ``size`` is bytes of the input."""

    ids: pa.Array
    values: np.ndarray[Any, Any]
    numbers: np.ndarray[Any, Any]
    rejected: list[Rejected]
    rows: int
    size: int

    def placed(self, file: File, before: int) -> Block:
        """The same after ``before`` rows of its file."""
        self.numbers = self.numbers + before
        self.rejected = [
            Rejected(one.id, one.row + before, one.reason, file.name) for one in self.rejected
        ]
        return self


@dataclass(frozen=True)
class Columns:
    """The feature columns in the order of the model, and every column of a file in its order."""

    features: list[str]
    every: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Unread:
    """A block whose rows nobody has looked at yet."""

    file: File
    convert: Callable[[], Block]

    def read(self) -> Block:
        """Its rows; may be called in any thread. Raises GroundcrewError when they cannot be read."""
        try:
            return self.convert()
        except pa.ArrowException as error:
            raise _unreadable(self.file, error) from error


def blocks(
    source: Input, signature: Signature, names: Sequence[str] | None = None
) -> Iterator[Unread]:
    """The input's blocks in their order.

    names: the features of the model in its order; without them the columns are taken in the order of
    the first file. Raises GroundcrewError when a file cannot be read or its columns do not fit.
    """
    first: Columns | None = None
    for file in source.files:
        if file.suffix not in (".csv", ".parquet"):
            raise GroundcrewError(f"the input {file.uri} must be a .csv or .parquet file")
        read = _csv if file.suffix == ".csv" else _parquet
        wanted = names or (first.features if first else None)
        try:
            for columns, convert in read(file, signature, wanted, named=bool(names)):
                first = first or columns
                yield Unread(file, convert)
        except pa.ArrowException as error:
            raise _unreadable(file, error) from error


def _unreadable(file: File, error: Exception) -> GroundcrewError:
    return GroundcrewError(f"cannot read the input {file.uri}: {error}")


_Part = tuple[Columns, Callable[[], Block]]


def _columns(
    file: File, every: list[str], signature: Signature, wanted: Sequence[str] | None, named: bool
) -> Columns:
    """The feature columns of a file. Raises GroundcrewError that names what is missing or too much."""
    found = [name for name in every if name != ID]
    count = int(np.prod(signature.shape))
    if every.count(ID) != 1:
        shown = ", ".join(map(repr, every[:_MOST_NAMED])) + (", …" if every[_MOST_NAMED:] else "")
        hint = "; separate values with commas" if len(every) == 1 and ";" in every[0] else ""
        raise GroundcrewError(
            f"the input {file.uri} has the columns {shown}; it must have one column {ID!r}{hint}"
        )
    twice = [name for name, times in Counter(found).items() if times > 1]
    if twice:
        raise GroundcrewError(
            f"the input {file.uri} has more than one column {_named(twice)}; no name may stand twice"
        )
    if wanted is None:
        if len(found) != count:
            raise GroundcrewError(
                f"the input {file.uri} has {len(found)} columns besides {ID!r}; the model takes "
                f"{count} numbers"
            )
        return Columns(found, every)
    missing = [name for name in wanted if name not in set(found)]
    extra = [name for name in found if name not in set(wanted)]
    if missing or extra:
        faults = [f"lacks {_named(missing)}"] if missing else []
        faults += [f"has {_named(extra)} besides"] if extra else []
        whose = "the model's features" if named else "the columns of the first file"
        raise GroundcrewError(
            f"the input {file.uri} {' and '.join(faults)}, compared with {whose}; correct the "
            "file, or INPUT"
        )
    return Columns(list(wanted), every)


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_MOST_NAMED]))
    rest = len(names) - _MOST_NAMED
    return f"{shown} and {rest} more" if rest > 0 else shown


# -- CSV -----------------------------------------------------------------------------------------


def _csv(
    file: File, signature: Signature, wanted: Sequence[str] | None, named: bool
) -> Iterator[_Part]:
    with file.open() as stream:
        every, size = csv_blocks.read_header(stream, file.uri)
        columns = _columns(file, every, signature, wanted, named)
        yield columns, lambda: _nothing(signature, [], size)
        for part in csv_blocks.split(stream):
            yield columns, _csv_converter(part, columns, signature)


def _csv_converter(
    part: csv_blocks.Text | csv_blocks.Broken, columns: Columns, signature: Signature
) -> Callable[[], Block]:
    if isinstance(part, csv_blocks.Broken):
        reason, size = part.reason, part.size
        return lambda: _nothing(signature, [Rejected(None, 1, reason)], size)
    text = part
    return lambda: _convert_csv(text, columns, signature)


def _nothing(signature: Signature, rejected: list[Rejected], size: int) -> Block:
    values = np.empty((0, int(np.prod(signature.shape))), signature.dtype)
    ids = pa.array([], pa.string())
    return Block(ids, values, np.empty(0, np.int64), rejected, len(rejected), size)


def _convert_csv(text: csv_blocks.Text, columns: Columns, signature: Signature) -> Block:
    types = {name: pa.float64() for name in columns.features}
    try:
        table, malformed = _parse(text, columns, {**types, ID: pa.string()})
    except pa.ArrowInvalid:
        # A value is no number, or an id no UTF-8.
        pass
    else:
        ids = _whole(table.column(ID))
        values = _matrix([_floats(table.column(name)) for name in columns.features], signature)
        if _all_fine(ids, values, signature):
            return _block(ids, values, None, malformed, text.size)
    table, malformed = _parse(text, columns, dict.fromkeys(columns.every, pa.binary()))
    raw = [_whole(table.column(name)) for name in columns.features]
    values = _matrix([_text_floats(column) for column in raw], signature)
    reasons = _Reasons(columns.features, raw, signature)
    return _sorted_out(_whole(table.column(ID)), values, reasons, malformed, text.size, signature)


def _parse(
    text: csv_blocks.Text, columns: Columns, types: dict[str, pa.DataType]
) -> tuple[pa.Table, list[Rejected]]:
    """The rows with as many values as the header, and the others. Empty lines are no rows."""
    malformed: list[Rejected] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"has {row.actual_columns} values; the header has {row.expected_columns}"
        malformed.append(Rejected(None, row.number, reason))
        return "skip"

    # Looked at first, for strip copies the block.
    if text.data[:1] in (b"\r", b"\n") and not text.data.strip(b"\r\n"):
        return pa.table({name: pa.array([], kind) for name, kind in types.items()}), malformed
    table = pyarrow.csv.read_csv(
        pa.BufferReader(text.data),
        # One block and one thread, for only so the numbers of malformed rows are told.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=len(text.data) + 1, column_names=columns.every
        ),
        parse_options=pyarrow.csv.ParseOptions(
            newlines_in_values=text.quoted, invalid_row_handler=skip
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=False
        ),
    )
    return table, malformed


# -- Parquet -------------------------------------------------------------------------------------


def _parquet(
    file: File, signature: Signature, wanted: Sequence[str] | None, named: bool
) -> Iterator[_Part]:
    with file.open() as stream:
        try:
            # pre_buffer would read a whole row group, and one may be the whole file.
            reader = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)
            columns = _columns(file, list(reader.schema_arrow.names), signature, wanted, named)
            count = len(columns.features)
            reader = pyarrow.parquet.ParquetFile(
                stream,
                metadata=reader.metadata,
                pre_buffer=False,
                buffer_size=min(1 << 20, max(1 << 14, _BUFFER_BYTES // (count + 1))),
            )
            total = reader.metadata.num_rows
            batches = reader.iter_batches(
                batch_size=max(1, min(65_536, _BLOCK_NUMBERS // count)),
                columns=[ID, *columns.features],
                use_threads=False,
            )
            yield columns, lambda: _nothing(signature, [], 0)
            for batch in batches:
                size = file.size * batch.num_rows // max(1, total)
                yield columns, _parquet_converter(batch, columns, signature, size)
        except OSError as error:
            raise _unreadable(file, error) from error


def _parquet_converter(
    batch: pa.RecordBatch, columns: Columns, signature: Signature, size: int
) -> Callable[[], Block]:
    return lambda: _convert_parquet(batch, columns, signature, size)


def _convert_parquet(
    batch: pa.RecordBatch, columns: Columns, signature: Signature, size: int
) -> Block:
    ids = _texts(batch.column(batch.schema.get_field_index(ID)))
    raw = [_plain(batch.column(batch.schema.get_field_index(name))) for name in columns.features]
    values = _matrix([_floats(column) for column in raw], signature)
    if pa.types.is_string(ids.type) and _all_fine(ids, values, signature):
        return _block(ids, values, None, [], size)
    return _sorted_out(ids, values, _Reasons(columns.features, raw, signature), [], size, signature)


def _plain(column: pa.Array) -> pa.Array:
    """Text as bytes, everything else as it is; a dictionary's values in its place."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.binary())
    return column


def _texts(column: pa.Array) -> pa.Array:
    """Ids as text, or as bytes when some are no UTF-8."""
    column = _plain(column)
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return column.cast(pa.binary())


# -- numbers -------------------------------------------------------------------------------------


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array: a block has one chunk, or none."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _matrix(columns: list[np.ndarray[Any, Any]], signature: Signature) -> np.ndarray[Any, Any]:
    values = np.empty((len(columns[0]), len(columns)), signature.dtype)
    with np.errstate(over="ignore"):
        for position, column in enumerate(columns):
            values[:, position] = column
    return values


def _floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column as float64, NaN where it holds no number."""
    if isinstance(column, pa.ChunkedArray):
        column = _whole(column)
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _text_floats(column)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return np.full(len(column), np.nan)
    if not pa.types.is_float64(kind):
        column = column.cast(pa.float64(), safe=False)
    if column.null_count:
        column = column.fill_null(np.nan)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _text_floats(column: pa.Array) -> np.ndarray[Any, Any]:
    """The same of bytes that spell numbers."""
    # Spelled numbers are ASCII: what is no UTF-8 is no number either.
    text = (column if pa.types.is_binary(column.type) else column.cast(pa.binary())).view(
        pa.string()
    )
    try:
        return _floats(text.cast(pa.float64()))
    except pa.ArrowInvalid:
        pass
    text = pc.ascii_trim(text, _BLANKS)
    fine = pc.match_substring_regex(text.view(pa.binary()), _NUMBER)
    text = pc.if_else(fine, text, pa.scalar(None, pa.string()))
    text = pc.ascii_ltrim(text, "+")
    return _floats(text.cast(pa.float64()))


def _all_fine(ids: pa.Array, values: np.ndarray[Any, Any], signature: Signature) -> bool:
    if not len(values):
        return True
    low, high = signature.range
    # False for NaN, which the smallest of numbers with one among them is.
    inside = float(values.min()) >= low and float(values.max()) <= high
    return inside and not ids.null_count and bool(pc.min(pc.binary_length(ids)).as_py())


def _block(
    ids: pa.Array,
    values: np.ndarray[Any, Any],
    kept: np.ndarray[Any, Any] | None,
    rejected: list[Rejected],
    size: int,
) -> Block:
    """A block of whose parsed rows those in ``kept`` are scored; malformed ones stand between them."""
    rows = len(values) + len(rejected)
    numbers = np.arange(1, rows + 1)
    if rejected:
        numbers = np.setdiff1d(numbers, [one.row for one in rejected], assume_unique=True)
    if kept is None:
        return Block(ids, values, numbers, rejected, rows, size)
    return Block(ids.filter(pa.array(kept)), values[kept], numbers[kept], rejected, rows, size)


def _sorted_out(
    ids: pa.Array,
    values: np.ndarray[Any, Any],
    reasons: _Reasons,
    malformed: list[Rejected],
    size: int,
    signature: Signature,
) -> Block:
    """The rows that can be scored, the others with their first fault."""
    block = _block(ids, values, None, malformed, size)
    # As float64, as the contract compares: a limit is not rounded to the model's type.
    low, high = (np.float64(limit) for limit in signature.range)
    fine_values = (values >= low) & (values <= high)
    fine_ids, texts = _check_ids(ids)
    kept = fine_values.all(axis=1) & fine_ids
    rejected = list(malformed)
    for index in np.flatnonzero(~kept):
        known = _id_text(ids[int(index)].as_py())
        reason = None
        if not fine_values[index].all():
            reason = reasons.of(int(index), int(np.argmin(fine_values[index])))
        if reason is None:
            reason = f"{ID} is not UTF-8" if known else f"{ID} is empty"
        rejected.append(Rejected(known or None, int(block.numbers[index]), reason))
    rejected.sort(key=lambda one: one.row)
    mask = pa.array(kept)
    return Block(texts.filter(mask), values[kept], block.numbers[kept], rejected, block.rows, size)


def _check_ids(ids: pa.Array) -> tuple[np.ndarray[Any, Any], pa.Array]:
    """Which ids can stand in the result, and all of them as text."""
    if not len(ids):
        return np.empty(0, bool), pa.array([], pa.string())
    fine = np.asarray(pc.fill_null(pc.greater(pc.binary_length(ids), 0), False))
    if not pa.types.is_string(ids.type):
        try:
            ids = ids.cast(pa.string())
        except pa.ArrowInvalid:
            fine = fine.copy()
            fine &= np.array([_is_text(value) for value in ids.to_pylist()])
            nothing = pa.scalar(None, ids.type)
            ids = pc.if_else(pa.array(fine), ids, nothing).cast(pa.string())
    return fine, ids


def _is_text(value: bytes | None) -> bool:
    try:
        return value is not None and bool(value.decode() or True)
    except UnicodeDecodeError:
        return False


def _id_text(value: str | bytes | None) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value or ""


class _Reasons:
    """Why a value cannot be given to the model."""

    def __init__(self, names: list[str], columns: list[pa.Array], signature: Signature) -> None:
        self._names, self._columns, self._signature = names, columns, signature

    def of(self, row: int, position: int) -> str | None:
        name, value = self._names[position], self._columns[position][row].as_py()
        shown, number = value, value
        if isinstance(value, bytes):
            shown = value.decode(errors="replace")
            text = shown.strip(_BLANKS)
            number = float(text) if _IS_NUMBER.match(text) else None
        elif isinstance(value, bool) or not hasattr(value, "__float__"):
            number = None
        if number is None or float(number) != float(number):
            return f"{name} is {str(shown)[:40]!r}; it must be a number"
        try:
            check_number(float(number), self._signature, name)
        except BadRequest as error:
            return str(error)
        return None
