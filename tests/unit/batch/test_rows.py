"""Rows of CSV and Parquet files, and what is wrong with those that cannot be scored."""

from __future__ import annotations

import csv
import io
import tempfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from groundcrew.errors import GroundcrewError
from groundcrew_batch import csv_blocks, rows
from groundcrew_batch.rows import Rejected
from groundcrew_batch.source import obtain
from groundcrew_prediction.contract import Signature
from hypothesis import given, settings
from hypothesis import strategies as st


def signature(count: int = 3, dtype: str = "float64") -> Signature:
    inputs = {"shape": [count], "dtype": dtype, "minimum": 0, "maximum": 16}
    return Signature.from_manifest({"signature": {"inputs": inputs, "outputs": {"shape": [2]}}})


def read(
    path: Path | str, names: list[str] | None = None, taken: Signature | None = None
) -> tuple[list[tuple[int, str, list[float]]], list[Rejected]]:
    """(row, id, numbers) of each row that can be scored, and the rejected ones."""
    scored, rejected = [], []
    with obtain(None, str(path), Path(tempfile.gettempdir())) as source:
        file, before = None, 0
        for unread in rows.blocks(source, taken or signature(), names):
            if unread.file is not file:
                file, before = unread.file, 0
            block = unread.read().placed(unread.file, before)
            before += block.rows
            assert block.rows == len(block.ids) + len(block.rejected)
            scored += zip(
                block.numbers.tolist(), block.ids.to_pylist(), block.values.tolist(), strict=True
            )
            rejected += block.rejected
    return scored, rejected


def read_bytes(data: bytes, **keywords: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.csv"
        path.write_bytes(data)
        return read(path, **keywords)


HEADER = b"id,a,b,c\n"
TEXTS = [
    "1",
    "16",
    "0.5",
    "17",
    "x",
    "",
    "nan",
    "1e999",
    "0x1",
    "1_0",
    " 1",
    "+2",
    "-0",
    "1e",
    "\t3",
]
VALID = {"1", "16", "0.5", " 1", "+2", "-0", "\t3"}


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=4), max_size=30))
def test_every_row_is_either_scored_or_rejected_once(lines):
    text = "".join(f"r{i}," + ",".join(line) + "\n" for i, line in enumerate(lines, 1))
    scored, rejected = read_bytes(HEADER + text.encode())
    expected = [i for i, line in enumerate(lines, 1) if len(line) == 3 and set(line) <= VALID]
    assert [(row, name) for row, name, _ in scored] == [(i, f"r{i}") for i in expected]
    assert [v for *_, v in scored] == [[float(x) for x in lines[i - 1]] for i in expected]
    assert [one.row for one in rejected] == sorted(set(range(1, len(lines) + 1)) - set(expected))


def rfc(value: str) -> str:
    if any(c in value for c in ',"\r\n'):
        return '"' + value.replace('"', '""') + '"'
    return value


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from('ab",\n\r é'), min_size=1, max_size=6).filter(
                lambda name: name.strip("\r\n ")
            ),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(3, 40),
)
def test_quoted_values_survive_wherever_a_block_ends(names, end, last, block_bytes):
    """As Python's csv module reads them, with every value in quotes or only where it must be."""
    lines = [
        f'"{name.replace(chr(34), chr(34) * 2)}","1",2,"3"' if every else f"{rfc(name)},1,2,3"
        for name, every in names
    ]
    text = end.join(["id,a,b,c", *lines]) + (end if last else "")
    patch = pytest.MonkeyPatch()
    header = csv_blocks.read_header(io.BytesIO(text.encode()), "x")
    stream = io.BytesIO(text.encode()[header[1] :])
    patch.setattr(csv_blocks, "BLOCK_BYTES", block_bytes)
    try:
        parts = list(csv_blocks.split(stream))
    finally:
        patch.undo()
    assert all(isinstance(part, csv_blocks.Text) for part in parts), parts
    assert b"".join(part.data for part in parts) == text.encode()[header[1] :]
    for part in parts[:-1]:
        assert part.data.endswith(b"\n")
    columns = rows.Columns(["a", "b", "c"], ["id", "a", "b", "c"])
    found = [
        name
        for part in parts
        for name in rows._convert_csv(part, columns, signature()).ids.to_pylist()
    ]
    assert found == [row[0] for row in list(csv.reader(io.StringIO(text, newline="")))[1:]]


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(3, 20))
def test_any_bytes_are_rows_or_reasons_and_the_sizes_add_up(data, block_bytes):
    patch = pytest.MonkeyPatch()
    patch.setattr(csv_blocks, "BLOCK_BYTES", block_bytes)
    patch.setattr(csv_blocks, "ROW_BYTES", 30)
    try:
        parts = list(csv_blocks.split(io.BytesIO(data)))
    finally:
        patch.undo()
    assert sum(part.size for part in parts) == len(data)


@settings(deadline=None)
@given(st.text(st.sampled_from('ab",\n1'), max_size=40), st.integers(3, 20))
def test_whatever_the_quotes_every_good_row_after_a_whole_line_is_found(text, block_bytes):
    """The last two lines are right: one of them at least stands alone, whatever precedes them."""
    data = text.encode() + b"\nyes,1,2,3\nagain,1,2,3\n"
    patch = pytest.MonkeyPatch()
    patch.setattr(csv_blocks, "BLOCK_BYTES", block_bytes)
    columns = rows.Columns(["a", "b", "c"], ["id", "a", "b", "c"])
    try:
        found = [
            name
            for part in csv_blocks.split(io.BytesIO(data))
            if isinstance(part, csv_blocks.Text)
            for name in rows._convert_csv(part, columns, signature()).ids.to_pylist()
        ]
    finally:
        patch.undo()
    assert "again" in found


def test_row_numbers_are_right_over_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 4096)
    path = tmp_path / "in.csv"
    lines = (f"r{n},1,2,3\n" if n % 5 else f"r{n},1\n" for n in range(1, 5001))
    path.write_bytes(HEADER + "".join(lines).encode())
    scored, rejected = read(path)
    assert [(row, name) for row, name, _ in scored] == [
        (n, f"r{n}") for n in range(1, 5001) if n % 5
    ]
    assert [one.row for one in rejected] == list(range(5, 5001, 5))


def test_one_quote_too_many_costs_one_line():
    scored, rejected = read_bytes(HEADER + b'"a,1,2,3\n"b",1,2,3\nc,1,2,3\n"d" e,1,2,3\nf,1,2,3\n')
    assert [name for _, name, _ in scored] == ["b", "c", "f"]
    assert [(one.row, one.reason) for one in rejected] == [
        (1, "has a quote inside a value in quotes; it must be doubled"),
        (4, "has a quote inside a value in quotes; it must be doubled"),
    ]
    scored, rejected = read_bytes(HEADER + b'x,1,2,3\n"a,1,2,3\nb,1,2,3\nc,1,2,3')
    assert [name for _, name, _ in scored] == ["x", "b", "c"]
    assert [(one.row, one.reason) for one in rejected] == [(2, "has a quote that nothing ends")]
    scored, _ = read_bytes(HEADER + b'5" pipe,1,2,3\n6"",1,2,3\n')
    assert [name for _, name, _ in scored] == ['5" pipe', '6""']


def test_a_long_value_is_a_value_and_an_endless_one_costs_its_row():
    long = b"x" * (5 << 20)
    scored, rejected = read_bytes(HEADER + long + b",1,2,3\ny,1,2,3\n")
    assert [len(name) for _, name, _ in scored] == [5 << 20, 1]
    assert not rejected
    for broken in (
        b"x" * (9 << 20) + b",1,2,3",
        b'"a,1,2,3' + b"\nb,1,2,3" * 10 + b"x" * (9 << 20),
    ):
        scored, rejected = read_bytes(HEADER + broken + b"\nz,1,2,3\n")
        assert scored[-1][1] == "z"
        assert "is longer than 8 MiB, or has a quote" in rejected[0].reason


def test_empty_lines_are_no_rows():
    scored, rejected = read_bytes(b"\xef\xbb\xbf\r\n" + HEADER + b"\r\na,1,2,3\r\n\n\nb,1,2\n\n\n")
    assert [(row, name) for row, name, _ in scored] == [(1, "a")]
    assert [one.row for one in rejected] == [2]


def test_what_is_no_utf_8_costs_its_row():
    data = b"\xe9,1,2,3\nb,1,\xe9,3\nc,1,2,3\nd\xc3\xa9,1,2,3\n"
    scored, rejected = read_bytes(HEADER + data)
    assert [name for _, name, _ in scored] == ["c", "dé"]
    assert [(one.id, one.row, one.reason) for one in rejected] == [
        ("\\xe9", 1, "id is not UTF-8"),
        ("b", 2, "b is '\ufffd'; it must be a number"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; it must have a header"),
        ("id,a,b,c\n1,2,3,4\n".encode("utf-16"), "is UTF-16; write it as UTF-8"),
        ("id,é,b,c\n1,2,3,4\n".encode("latin-1"), "is no header in UTF-8"),
        (b'"id,a,b,c\n1,2,3,4\n', "is no header"),
        (b"id;a;b;c\n1;2;3;4\n", "must have one column 'id'; separate values with commas"),
        (b"id,a,b\n1,2,3\n", "has 2 columns besides 'id'; the model takes 3"),
        (b"name,a,b,c\n1,2,3,4\n", "has the columns 'name', 'a', 'b', 'c'; it must have one"),
        (b"id,id,b,c\n1,2,3,4\n", "must have one column 'id'"),
        (b"id,a,a,c\n1,2,3,4\n", "more than one column 'a'; no name may stand twice"),
        (b"PK\x03\x04\x00\xff\xfe", "cannot read the input"),
        (b"x" * (3 << 20), "its first line does not end"),
    ],
)
def test_what_is_wrong_with_a_whole_file_is_said(data, message):
    with pytest.raises(GroundcrewError, match=message):
        read_bytes(data)


def test_features_are_matched_by_the_names_of_the_signature():
    scored, _ = read_bytes(b"c,id,a,b\n3,x,1,2\n", names=["a", "b", "c"])
    assert scored == [(1, "x", [1, 2, 3])]
    for header, message in (
        (b"id,a,b\n", "lacks 'c', compared with the model's features"),
        (b"id,a,b,c,d,e\n", "has 'd', 'e' besides"),
        (b"id,a,b,d\n", "lacks 'c' and has 'd' besides"),
    ):
        with pytest.raises(GroundcrewError, match=message):
            read_bytes(header + b"1,2,3,4\n", names=["a", "b", "c"])


def test_many_missing_columns_are_named_by_the_first():
    names = [f"x{n}" for n in range(30)]
    with pytest.raises(GroundcrewError, match="lacks 'x0', 'x1', 'x2', 'x3', 'x4' and 25 more"):
        read_bytes(b"id,y\n", names=names, taken=signature(30))


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.csv").write_bytes(HEADER + b"a1,1,2,3\na2,1,2\n")
    (tmp_path / "b" / "b.csv").write_bytes(b"id,c,b,a\nb1,3,2,x\nb2,3,2,1\n")
    table = pa.table({"id": ["c1"], "a": [1.0], "b": [2.0], "c": [3.0]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    scored, rejected = read(f"{tmp_path}/")
    assert scored == [(1, "a1", [1, 2, 3]), (2, "b2", [1, 2, 3]), (1, "c1", [1, 2, 3])]
    assert [(one.file, one.row) for one in rejected] == [("a.csv", 2), ("b/b.csv", 1)]
    (tmp_path / "d.csv").write_bytes(b"id,a,b,x\n")
    with pytest.raises(
        GroundcrewError, match="lacks 'c' and has 'x' besides, compared with the co"
    ):
        read(f"{tmp_path}/")


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_of_many_types(tmp_path):
    columns = {
        "id": pa.array(["x", "y"]).dictionary_encode(),
        "a": pa.array([1, 2], pa.uint8()),
        "b": pa.array(["3", " 4"], pa.large_string()),
        "c": pa.array([Decimal("5.5"), None], pa.decimal128(5, 2)),
    }
    scored, rejected = read(parquet(tmp_path / "in.parquet", columns))
    assert scored == [(1, "x", [1, 3, 5.5])]
    assert [one.reason for one in rejected] == ["c is 'None'; it must be a number"]
    columns["c"] = pa.array([True, False])
    _, rejected = read(parquet(tmp_path / "in.parquet", columns))
    assert [one.reason for one in rejected] == [
        "c is 'True'; it must be a number",
        "c is 'False'; it must be a number",
    ]
    columns["c"] = pa.array([datetime(2026, 1, 1)] * 2)
    _, rejected = read(parquet(tmp_path / "in.parquet", columns))
    assert rejected[0].reason == "c is '2026-01-01 00:00:00'; it must be a number"


def test_parquet_ids_of_other_types_and_none(tmp_path):
    columns = {"a": [1.0] * 3, "b": [1] * 3, "c": [float("nan"), 1.0, 17.0]}
    scored, rejected = read(parquet(tmp_path / "in.parquet", {"id": [1, 2, None], **columns}))
    assert [name for _, name, _ in scored] == ["2"]
    assert [(one.id, one.reason) for one in rejected] == [
        ("1", "c is 'nan'; it must be a number"),
        (None, "c is 17; it must be from 0 to 16"),
    ]
    columns["c"] = [1.0] * 3
    given_ids = pa.array([b"\xff", b"", b"ok"])
    scored, rejected = read(parquet(tmp_path / "in.parquet", {"id": given_ids, **columns}))
    assert [name for _, name, _ in scored] == ["ok"]
    assert [one.reason for one in rejected] == ["id is not UTF-8", "id is empty"]


def test_broken_parquet_is_named(tmp_path):
    path = parquet(
        tmp_path / "in.parquet", {"id": ["x"] * 999, **dict.fromkeys("abc", [1.0] * 999)}
    )
    whole = path.read_bytes()
    for broken in (b"PAR1 but not really", whole[:-100], whole[:20] + b"\0" * 200 + whole[220:]):
        path.write_bytes(broken)
        with pytest.raises(GroundcrewError, match="cannot read the input"):
            read(path)


def test_numbers_are_rounded_as_the_service_rounds_them(tmp_path):
    """To float64 first, then to what the model takes: the limit itself is not rounded."""
    single = signature(3, "float32")
    scored, rejected = read_bytes(HEADER + b"a,0.1,16.0000001,1\nb,1,1,16.01\n", taken=single)
    assert [values for *_, values in scored] == [[float(np.float32(0.1)), 16.0, 1.0]]
    assert [one.id for one in rejected] == ["b"]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(HEADER + b"a,1,2,3\n")
    with obtain(None, str(path), tmp_path) as source:
        path.write_bytes(HEADER + b"a,1,2,3\nb,1,2,3\n")
        with pytest.raises(GroundcrewError, match="changed while it was read"):
            list(rows.blocks(source, signature()))
        path.unlink()
        with pytest.raises(GroundcrewError, match="changed while it was read"):
            list(rows.blocks(source, signature()))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file://other/in.csv", "is on the host 'other'; INPUT must be file:///path"),
        ("s3://bucket/", "names no object"),
        ("/no/such/folder/", "is no folder"),
        ("/no/such.csv", "No such file"),
    ],
)
def test_inputs_that_are_not_there_are_named(uri, message):
    with pytest.raises(GroundcrewError, match=message), obtain(None, uri, Path("/tmp")):
        pass
