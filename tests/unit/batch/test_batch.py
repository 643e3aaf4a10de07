from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from batch_support import Job, write_model
from groundcrew import batch_store
from groundcrew.errors import GroundcrewError
from groundcrew_batch import __main__ as program
from groundcrew_batch.job import run
from groundcrew_batch.judgement import Limits
from groundcrew_batch.settings import Settings
from sklearn.ensemble import RandomForestClassifier

BUCKET = "groundcrew-test-store"
JOB = "nightly"
RUN = "20260101T000000Z"


def job(client: Any, model_directory: Path, given: str, **changes: Any) -> dict[str, Any]:
    chosen = {"run_id": RUN, "chunk_rows": 4, **changes}
    return run(
        Settings(
            job=JOB,
            model="tiny",
            version="1",
            model_directory=model_directory,
            bucket=BUCKET,
            input=given,
            **chosen,
        ),
        client,
        lambda _text: None,
    )


def lines(*rows: str) -> bytes:
    return ("\n".join(["id,a,b,c", *rows]) + "\n").encode()


@pytest.fixture
def ten_rows(tmp_path: Path) -> str:
    path = tmp_path / "ten.csv"
    path.write_bytes(lines(*(f"row-{number},1,2,{number}" for number in range(10))))
    return str(path)


def table(client: Any, name: str, run_id: str = RUN) -> list[dict[str, Any]]:
    key = f"predictions/{JOB}/{run_id}/{name}"
    data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()


# -- a run


def test_run_writes_parts_manifest_and_latest(client, model_directory, ten_rows):
    result = job(client, model_directory, ten_rows)
    assert (result["rows"], result["predicted"], result["rejected"]) == (10, 10, 0)
    assert result["latest"]
    found = batch_store.read_latest(client, BUCKET, JOB)
    assert found is not None
    assert found.manifest["model_version"] == "1"
    digest = hashlib.sha256(Path(ten_rows).read_bytes()).hexdigest()
    assert found.manifest["input"]["sha256"] == digest
    rows = [
        row
        for part in found.parts
        for row in pyarrow.parquet.read_table(io.BytesIO(part)).to_pylist()
    ]
    assert [row["id"] for row in rows] == [f"row-{number}" for number in range(10)]
    model = joblib.load(model_directory / "model.joblib")
    expected = model.predict_proba([[1, 2, number] for number in range(10)])
    assert np.allclose([row["predictions"] for row in rows], expected)
    assert set(rows[0]) == {"id", "predictions"}
    assert [len(pyarrow.parquet.read_table(io.BytesIO(part))) for part in found.parts] == [4, 4, 2]


def test_input_from_the_store_and_instances_beside_predictions(client, model_directory):
    client.put_object(Bucket=BUCKET, Key="data/in.csv", Body=lines("x,1,2,3"))
    job(client, model_directory, f"s3://{BUCKET}/data/in.csv", include_instances=True)
    assert table(client, "part-00000.parquet")[0]["instance"] == [1.0, 2.0, 3.0]


def test_parquet_gives_the_same_as_csv(client, model_directory, ten_rows, tmp_path):
    with Path(ten_rows).open() as stream:
        rows = list(csv.DictReader(stream))
    columns = {"id": [row["id"] for row in rows]}
    columns |= {name: [int(row[name]) for row in rows] for name in "abc"}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "ten.parquet", row_group_size=3)
    job(client, model_directory, ten_rows)
    job(client, model_directory, str(tmp_path / "ten.parquet"), run_id="20260102T000000Z")
    for part in ("part-00000.parquet", "part-00001.parquet", "part-00002.parquet"):
        assert table(client, part) == table(client, part, "20260102T000000Z")


def test_rows_that_cannot_be_scored_are_kept_with_the_reason(client, model_directory, tmp_path):
    path = tmp_path / "in.csv"
    rows = ["a,1,2,3", "b,1,2", "c,1,x,3", ",1,2,3", "d,1,2,17", "e,1,2,nan", "f,1,2,1e999"]
    rows += ["g,1,,3", "h,1,2,3,4", "i,1,2,-0.5", "j,4,5,6"]
    path.write_bytes(lines(*rows))
    result = job(client, model_directory, str(path))
    assert (result["rows"], result["predicted"], result["rejected"]) == (11, 2, 9)
    rejected = [(row["id"], row["row"], row["reason"]) for row in table(client, "rejected.parquet")]
    assert rejected == [
        (None, 2, "has 3 values; the header has 4"),
        ("c", 3, "b is 'x'; it must be a number"),
        (None, 4, "id is empty"),
        ("d", 5, "c is 17; it must be from 0 to 16"),
        ("e", 6, "c is 'nan'; it must be a number"),
        ("f", 7, "c is too large a number"),
        ("g", 8, "b is ''; it must be a number"),
        (None, 9, "has 5 values; the header has 4"),
        ("i", 10, "c is -0.5; it must be from 0 to 16"),
    ]


def test_parquet_nulls_and_text_are_rejected(client, model_directory, tmp_path):
    columns = {"id": [1, 2, None], "a": [1.0, None, 1.0], "b": [1, 1, 1], "c": ["1", "1", "1"]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "in.parquet")
    job(client, model_directory, str(tmp_path / "in.parquet"))
    assert table(client, "part-00000.parquet")[0]["id"] == "1"
    reasons = [row["reason"] for row in table(client, "rejected.parquet")]
    assert reasons == ["a is 'None'; it must be a number", "id is empty"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; it must have a header"),
        (b"\xef\xbb\xbfid,a,b,c\n", "no row that can be scored"),
        (b"id,a,b,c\n1,x,2,3\n", "no row that can be scored .1 rejected"),
        (b"id,a,b\n1,2,3\n", "has 2 columns besides 'id'; the model takes 3"),
        (b"name,a,b,c\n1,2,3,4\n", "must have one column 'id'"),
        (b"id,a,a,c\n1,2,3,4\n", "no name may stand twice"),
        (b"PK\x03\x04\x00\xff\xfe", "cannot read the input"),
    ],
)
def test_broken_input_never_replaces_a_good_run(
    client, model_directory, ten_rows, tmp_path, data, message
):
    job(client, model_directory, ten_rows)
    broken = tmp_path / "broken.csv"
    broken.write_bytes(data)
    with pytest.raises(GroundcrewError, match=message):
        job(client, model_directory, str(broken), run_id="20260102T000000Z")
    found = batch_store.read_latest(client, BUCKET, JOB)
    assert found is not None
    assert found.run_id == RUN


def test_broken_parquet_and_missing_inputs_are_named(client, model_directory, tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1 but not really")
    for given_input, message in (
        (str(tmp_path / "in.parquet"), "cannot read the input"),
        (str(tmp_path / "none.csv"), "No such file"),
        (f"s3://{BUCKET}/none.csv", "does not exist; correct INPUT"),
        ("s3://no-such-bucket/none.csv", "does not exist; correct INPUT"),
        (str(tmp_path), "Is a directory"),
    ):
        with pytest.raises(GroundcrewError, match=message):
            job(client, model_directory, given_input)


def test_nothing_is_left_in_the_work_directory(client, model_directory, ten_rows, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    job(client, model_directory, ten_rows, work_directory=work)
    assert list(work.iterdir()) == []


def test_export_answers_as_the_estimator_does_from_several_threads(store, tmp_path):
    random = np.random.default_rng(0)
    features = random.integers(0, 17, (200, 3)).astype(float)
    forest = RandomForestClassifier(20, random_state=0).fit(features, features.sum(axis=1) > 24)
    answer = forest.predict_proba([[1.0, 2.0, 3.0]]).tolist()
    outputs = {"shape": [2], "labels": ["no", "yes"]}
    rows = "".join(f"{number},{a:g},{b:g},{c:g}\n" for number, (a, b, c) in enumerate(features))
    (tmp_path / "in.csv").write_text("id,a,b,c\n" + rows)
    for export in (False, True):
        directory = write_model(
            tmp_path / str(export) / "tiny" / "1", forest, answer, outputs, export=export
        )
        start = Job(store, directory)
        run_id = f"2026010{export + 1}T000000Z"
        start(str(tmp_path / "in.csv"), run_id, chunk_rows=7, threads=4)
        assert any(f"({'Onnx' if export else 'Sklearn'}Engine)" in line for line in start.said)
        assert start.ids(run_id) == [str(number) for number in range(200)]
        names = sorted(name for name in start.manifest(run_id)["files"] if name[0] == "p")
        found = [row["predictions"] for name in names for row in start.table(run_id, name)]
        assert np.allclose(found, forest.predict_proba(features), atol=1e-6)


# -- the program

REQUIRED = {
    "JOB": JOB,
    "MODEL_NAME": "tiny",
    "MODEL_VERSION": "1",
    "STORE_BUCKET": BUCKET,
    "INPUT": "in.csv",
}


def test_program_prints_its_result_last(client, model_directory, ten_rows, monkeypatch, capsys):
    for name, value in {**REQUIRED, "MODEL_DIRECTORY": str(model_directory)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("INPUT", ten_rows)
    assert program.main(["run"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["rows"] == 10
    assert result["latest"] is True
    monkeypatch.setenv("MODEL_DIRECTORY", str(model_directory / "none"))
    monkeypatch.setenv("RUN_ID", "20300101T000000Z")
    assert program.main(["run"]) == 2
    assert "fetch the model version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JOB": "", "INPUT": ""}, "JOB, INPUT must be set"),
        ({"JOB": "a/b"}, "batch job 'a/b' is not a valid name"),
        ({"CHUNK_ROWS": "0"}, "CHUNK_ROWS is '0'"),
        ({"THREADS": "two"}, "THREADS is 'two'; it must be a whole number"),
        ({"MAXIMUM_SHIFT": "20%"}, "MAXIMUM_SHIFT is '20%'; it must be a number from 0 to 1"),
        ({"MINIMUM_ROWS_SHARE": "nan"}, "MINIMUM_ROWS_SHARE is 'nan'"),
        ({"MAXIMUM_REJECTED_SHARE": "1.5"}, "MAXIMUM_REJECTED_SHARE is '1.5'"),
        ({"ACCEPT": "1"}, "ACCEPT is '1'; it must be true or false"),
        ({"INCLUDE_INSTANCES": "maybe"}, "INCLUDE_INSTANCES is 'maybe'"),
        ({"RUN_ID": "today"}, "run id 'today'"),
        ({"OUTPUT": "elsewhere/"}, "OUTPUT is 'elsewhere/'"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(GroundcrewError, match=message):
        Settings.from_environment({**REQUIRED, **changes})


def test_defaults_follow_from_job_and_model():
    made = Settings.from_environment({**REQUIRED, "OUTPUT": f"predictions/{JOB}/"})
    assert str(made.model_directory) == "/models/tiny/1"
    assert (made.chunk_rows, made.accept) == (None, False)
    assert made.limits == Limits(0.5, 0.2, 0.5)
    assert made.threads >= 1
    assert batch_store.check_run_id(made.run_id)
