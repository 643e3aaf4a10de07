"""Files of rows: what is read, and what is said of those that cannot be."""

from __future__ import annotations

import csv
import io
import random

import pytest
from digits_application.rows import NAMES, MalformedFile, read
from hypothesis import given, settings
from hypothesis import strategies as st

HEADER = ",".join(["id", *NAMES])
GOOD = ",".join(["1"] * 64)


def lines(*rows: str, header: str = HEADER, end: str = "\n") -> bytes:
    return end.join([header, *rows, ""]).encode()


def test_rows_with_and_without_ids() -> None:
    rows = read(lines(f"a,{GOOD}", f'"b,c",{GOOD}'), 10)
    assert (len(rows), [rows.id(row) for row in range(2)]) == (2, ["a", "b,c"])
    assert rows.instances(0, 10) == [[1.0] * 64] * 2
    rows = read(lines(GOOD, GOOD, header=",".join(NAMES)), 10)
    assert [rows.id(row) for row in range(2)] == ["1", "2"]


@pytest.mark.parametrize(
    "data",
    [
        lines(f"a,{GOOD}", end="\r\n"),
        b"\xef\xbb\xbf" + lines(f"a,{GOOD}"),
        lines(f"a,{GOOD}").rstrip(),
        b"\n\n" + lines("", f"a,{GOOD}", "", ""),
        lines(f"a,{GOOD}", header=HEADER.replace(",", " , ")),
        lines("é," + GOOD),
        lines("a," + ",".join(["1.50"] * 64)),
    ],
)
def test_harmless_differences(data: bytes) -> None:
    assert len(read(data, 10)) == 1


def test_columns_in_any_order() -> None:
    names = ["id", *NAMES]
    random.Random(1).shuffle(names)
    values = {name: str(index % 17) for index, name in enumerate(NAMES)} | {"id": "a"}
    rows = read(lines(",".join(values[name] for name in names), header=",".join(names)), 10)
    assert rows.instances(0, 1) == [[float(index % 17) for index in range(64)]]


def replaced(column: int, value: str) -> str:
    values = ["1"] * 64
    values[column] = value
    return "a," + ",".join(values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty; the first line must be id,p0"),
        (b" \n \n", "is empty"),
        (lines(), "no row below"),
        (HEADER.encode(), "no row below"),
        (b"not a csv at all", "line 1 lacks columns 'p0', 'p1', 'p2' and 61 more"),
        (lines(GOOD, header=",".join(NAMES[:-1])), "line 1 lacks column 'p63'"),
        (lines(f"a,{GOOD},1", header=HEADER + ",p64"), "line 1 has the unknown column 'p64'"),
        (lines(f"a,{GOOD},1", header=HEADER + ",p3"), "line 1 has twice column 'p3'"),
        (
            lines(HEADER.replace(",", ";"), header=HEADER.replace(",", ";")),
            "separated by semicolons",
        ),
        (lines("", header=HEADER.replace(",", "\t")), "separated by tabs"),
        (lines(f"a,{GOOD}", f"b,{GOOD},1"), "line 3 has 66 columns; it must have 65"),
        (lines(f"a,{GOOD}", "", "b,1,2"), "line 4 has 3 columns; it must have 65"),
        (
            lines(f"a,{GOOD}", replaced(5, "abc")),
            "line 3: p5 is 'abc'; it must be a number from 0 to 16",
        ),
        (lines(replaced(5, "x" * 99)), "p5 is 'x{40}…'"),
        (lines(f"a,{GOOD}", "", replaced(63, "")), "line 4: p63 is empty"),
        (lines(replaced(0, "17")), "line 2: p0 is 17; it must be a number from 0 to 16"),
        (lines(f"a,{GOOD}", "", replaced(9, "-0.5"), replaced(1, "99")), "line 4: p9 is -0.5"),
        (lines(replaced(2, "nan")), "line 2: p2 is nan"),
        (lines(replaced(2, "1e999")), "line 2: p2 is inf"),
        (lines(replaced(2, "0x10")), "line 2: p2 is '0x10'"),
        (lines(replaced(2, "1,5")), "line 2 has 66 columns"),
        (lines(replaced(2, "true")), "line 2: p2 is 'true'"),
        (lines(f"a,{GOOD}", f'"b,{GOOD}'), "line 3 has 1 columns"),
        (lines(f"a,{GOOD}").decode().encode("utf-16"), "not UTF-8 text"),
        (lines(f"a,{GOOD}").decode().encode("utf-16-le"), "not UTF-8 text"),
        (
            lines(f"a,{GOOD}") + f"caf\xe9,{GOOD}\n".encode("latin-1"),
            "line 3: the byte 0xe9 is not UTF-8",
        ),
        (b"PK\x03\x04\x00\x00", "no CSV at all"),
        (lines(*[f"a,{GOOD}"] * 11), "the file has 11 rows; it may have 10"),
    ],
)
def test_malformed_files(data: bytes, message: str) -> None:
    with pytest.raises(MalformedFile, match=message) as caught:
        read(data, 10)
    assert caught.value.status == (413 if "may have" in message else 400)


@settings(deadline=None, max_examples=100)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(str.encode),
        st.lists(st.text(alphabet=',"\n\r;\t1.a-', max_size=40), max_size=6).map(
            lambda rows: lines(*rows)
        ),
    )
)
def test_anything_else_is_refused_in_words(data: bytes) -> None:
    said = ""
    try:
        rows = read(data, 10)
    except MalformedFile as error:
        said = str(error)
    assert 0 < len(said) < 400 if said else 0 < len(rows) <= 10


@settings(deadline=None, max_examples=50)
@given(
    table=st.lists(
        st.tuples(
            st.text(
                st.characters(
                    codec="utf-8",
                    exclude_characters="\r\n\0\x85\u2028\u2029",
                    exclude_categories=["Cc", "Cs"],
                ),
                min_size=1,
                max_size=12,
            ),
            st.lists(st.integers(0, 16), min_size=64, max_size=64),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_a_csv_writer_wrote_is_read(table: list[tuple[str, list[int]]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", *NAMES])
    writer.writerows([[name, *pixels] for name, pixels in table])
    rows = read(text.getvalue().encode(), 10)
    assert [rows.id(row) for row in range(len(rows))] == [name for name, _ in table]
    assert rows.instances(0, 10) == [list(map(float, pixels)) for _, pixels in table]
