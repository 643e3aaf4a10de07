"""Whether LATEST moves to a run that is whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from batch_support import BUCKET, JOB, Job, write_model
from groundcrew import batch_store
from groundcrew.errors import GroundcrewError
from groundcrew_batch import __main__ as program
from groundcrew_batch.judgement import Limits, Tally, judge
from groundcrew_prediction.contract import Signature
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LinearRegression

FIRST, SECOND, THIRD, FOURTH = (f"2026010{day}T000000Z" for day in (1, 2, 3, 4))


def rows_file(path: Path, low: int, high: int, broken: int = 0) -> str:
    """``low`` rows of the class no, ``high`` of the class yes, ``broken`` that cannot be scored."""
    rows = ["1,1,1"] * low + ["15,15,15"] * high + ["x,1,1"] * broken
    text = "".join(f"r{number},{row}\n" for number, row in enumerate(rows))
    path.write_text("id,a,b,c\n" + text)
    return str(path)


def signature(outputs: list[int], labels: list[str] | None = None) -> Signature:
    return Signature.from_manifest(
        {
            "signature": {
                "inputs": {"shape": [1], "dtype": "float64"},
                "outputs": {"shape": outputs, "labels": labels},
            }
        }
    )


def test_too_few_rows_hold_a_run_back(start, tmp_path):
    start(rows_file(tmp_path / "a.csv", 10, 10), FIRST)
    result = start(rows_file(tmp_path / "b.csv", 5, 4), SECOND)
    assert (result["latest"], result["predicted"]) == (False, 9)
    assert "9 rows were predicted and 20 in run 20260101T000000Z" in result["held_back"]
    assert "MINIMUM_ROWS_SHARE is 0.5" in result["held_back"]
    assert start.latest() == FIRST
    # Whole all the same, so that somebody can look at it.
    manifest = start.manifest(SECOND)
    assert manifest["held_back"] == result["held_back"]
    assert manifest["judgement"]["rows_share"] == 0.45
    assert len(start.ids(SECOND)) == 9
    assert start(rows_file(tmp_path / "b.csv", 5, 5), THIRD)["latest"]


def test_answers_that_are_distributed_otherwise_hold_a_run_back(start, tmp_path):
    start(rows_file(tmp_path / "a.csv", 10, 10), FIRST)
    result = start(rows_file(tmp_path / "b.csv", 14, 6), SECOND)
    assert result["latest"]
    assert start.manifest(SECOND)["judgement"]["shift"] == pytest.approx(0.2)
    result = start(rows_file(tmp_path / "c.csv", 9, 11), THIRD)
    assert not result["latest"]
    assert "by 0.250 (most of all 'no', from 0.700 to 0.450)" in result["held_back"]
    assert "MAXIMUM_SHIFT is 0.2" in result["held_back"]
    # It is compared with the run that LATEST names, not with the one that was held back.
    assert start(rows_file(tmp_path / "d.csv", 13, 7), FOURTH)["latest"]


def test_rejected_rows_hold_even_the_first_run_back(start, tmp_path):
    result = start(rows_file(tmp_path / "a.csv", 2, 2, 5), FIRST)
    assert "5 of 9 rows were rejected, a share of 0.556" in result["held_back"]
    assert start.latest() is None
    assert start(rows_file(tmp_path / "a.csv", 2, 2, 4), SECOND)["latest"]


def test_each_limit_can_be_turned_off(start, tmp_path):
    start(rows_file(tmp_path / "a.csv", 10, 10), FIRST)
    off = Limits(minimum_rows_share=0, maximum_shift=1, maximum_rejected_share=1)
    assert start(rows_file(tmp_path / "b.csv", 1, 0, 9), SECOND, limits=off)["latest"]


def test_a_run_that_was_held_back_stays_so_until_somebody_accepts_it(start, tmp_path):
    start(rows_file(tmp_path / "a.csv", 10, 10), FIRST)
    given_input = rows_file(tmp_path / "b.csv", 0, 20)
    held = start(given_input, SECOND)
    again = start(given_input, SECOND)
    assert again["held_back"] == held["held_back"]
    assert (again["latest"], start.latest()) == (False, FIRST)
    accepted = start(given_input, SECOND, accept=True)
    assert (accepted["latest"], accepted["accepted"]) == (True, held["held_back"])
    assert start.latest() == SECOND
    latest = f"predictions/{JOB}/LATEST"
    stored = json.loads(start.client.get_object(Bucket=BUCKET, Key=latest)["Body"].read())
    assert stored["accepted"] is True
    # Accepting is no state of its own: a repetition tells the same.
    assert start(given_input, SECOND)["latest"]
    assert "held_back" not in start(given_input, SECOND)


def test_a_new_run_can_be_accepted_and_is_what_the_next_is_compared_with(start, tmp_path):
    start(rows_file(tmp_path / "a.csv", 10, 10), FIRST)
    given_input = rows_file(tmp_path / "b.csv", 0, 20)
    result = start(given_input, SECOND, accept=True)
    assert result["latest"]
    assert start.manifest(SECOND)["accepted"] == result["accepted"]
    assert start(given_input, THIRD)["latest"]
    assert "accepted" not in start.manifest(THIRD)


def test_accepting_never_moves_latest_back(start, tmp_path):
    start(rows_file(tmp_path / "a.csv", 10, 10), SECOND)
    given_input = rows_file(tmp_path / "b.csv", 0, 20)
    assert not start(given_input, FIRST, accept=True)["latest"]
    assert not start(given_input, FIRST, accept=True)["latest"]
    assert start.latest() == SECOND
    assert "LATEST is not moved: it names a run later than 20260101T000000Z" in start.said


def test_a_run_that_cannot_replace_the_later_one_is_not_compared_with_it(start, tmp_path):
    start(rows_file(tmp_path / "a.csv", 10, 10), SECOND)
    result = start(rows_file(tmp_path / "b.csv", 0, 2), FIRST)
    assert not result["latest"]
    assert "held_back" not in result


@pytest.mark.parametrize("broken", [b"{", b'{"run": "20260101T000000Z", "manifest_sha256": "0"}'])
def test_a_broken_latest_is_nothing_to_compare_with(start, tmp_path, broken):
    start(rows_file(tmp_path / "a.csv", 10, 10), FIRST)
    start.client.put_object(
        Bucket=BUCKET, Key=f"predictions/{JOB}/LATEST", Body=broken, Metadata={}
    )
    assert start(rows_file(tmp_path / "b.csv", 0, 2), SECOND)["latest"]


def test_numbers_are_compared_over_the_deciles_of_the_run_before(store, number_model, tmp_path):
    start = Job(store, number_model)

    def numbers(name: str, add: float) -> str:
        rows = "".join(f"{n},{n / 25 + add},1,1\n" for n in range(200))
        (tmp_path / name).write_text("id,a,b,c\n" + rows)
        return str(tmp_path / name)

    start(numbers("a.csv", 0), FIRST)
    column = start.manifest(FIRST)["distribution"]["columns"][0]
    assert len(column["edges"]) == 9
    assert sum(column["shares"]) == pytest.approx(1)
    assert start(numbers("b.csv", 0.4), SECOND)["latest"]
    held = start(numbers("c.csv", 4), THIRD)
    assert not held["latest"]
    assert "the middle one from about" in held["held_back"]


def test_another_form_of_answers_is_the_greatest_shift(start, store, number_model, tmp_path):
    given_input = rows_file(tmp_path / "a.csv", 10, 10)
    start(given_input, FIRST)
    result = Job(store, number_model)(given_input, SECOND)
    assert "by 1.000 (numbers instead of labels)" in result["held_back"]


def test_a_manifest_without_a_distribution_is_compared_by_its_rows_alone():
    tally = Tally(signature([2], ["no", "yes"]))
    tally.add(0, np.array([[0.2, 0.8]] * 4))
    before = {"run": FIRST, "predicted": 4}
    for distribution in (None, {}, {"kind": "labels", "counts": {}}, {"kind": "x"}, "no"):
        found = judge(Limits(), tally, 4, 0, {**before, "distribution": distribution})
        assert (found.reason, "shift" in found.figures) == ("", False)
    assert judge(Limits(), tally, 4, 0, {**before, "predicted": 9}).reason


def test_answers_that_are_one_number_differ_from_those_that_are_another():
    before, now = Tally(signature([])), Tally(signature([]))
    before.add(0, np.full(100, 5.0))
    now.add(0, np.full(100, 6.0))
    assert now.shift(before.document())[0] == 1
    assert before.shift(before.document())[0] == 0


@given(
    st.lists(
        arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e6, 1e6)), min_size=1
    ),
    st.randoms(),
)
def test_a_distribution_depends_on_no_order_and_is_no_distance_from_itself(chunks, random):
    first, second = Tally(signature([])), Tally(signature([]))
    numbered = list(enumerate(chunks))
    for index, chunk in numbered:
        first.add(index, chunk)
    random.shuffle(numbered)
    for index, chunk in numbered:
        second.add(index, chunk)
    assert first.document() == second.document()
    json.dumps(first.document(), allow_nan=False)
    shift, _ = second.shift(first.document())
    assert shift == pytest.approx(0, abs=1e-9)


def test_a_sample_stands_for_many_numbers():
    random = np.random.default_rng(0)
    before, now = Tally(signature([])), Tally(signature([]))
    for index in range(20):
        before.add(index, random.normal(0, 1, 10_000))
        now.add(index, random.normal(0, 1, 10_000))
    assert before.document()["sampled"] == 50_000
    assert now.shift(before.document())[0] < 0.02


def test_program_ends_with_status_four_and_says_how_to_accept(
    client, model_directory, tmp_path, monkeypatch, capsys
):
    values = {
        "JOB": JOB,
        "MODEL_NAME": "tiny",
        "MODEL_VERSION": "1",
        "MODEL_DIRECTORY": str(model_directory),
        "STORE_BUCKET": BUCKET,
        "INPUT": rows_file(tmp_path / "a.csv", 10, 10),
        "RUN_ID": FIRST,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert program.main(["run"]) == 0
    monkeypatch.setenv("RUN_ID", SECOND)
    monkeypatch.setenv("INPUT", "file://" + rows_file(tmp_path / "b.csv", 0, 20))
    for _attempt in range(2):
        capsys.readouterr()
        assert program.main(["run"]) == 4
        out, err = capsys.readouterr()
        result = json.loads(out.splitlines()[-1])
        assert (result["run"], result["rows"], result["latest"]) == (SECOND, 20, False)
        assert "from 0.500 to 0.000" in result["held_back"]
        assert f"RUN_ID={SECOND} and ACCEPT=true" in err
    monkeypatch.setenv("ACCEPT", "true")
    assert program.main(["run"]) == 0
    assert batch_store.read_pointer(client, BUCKET, JOB).run_id == SECOND


def test_labels_that_are_new_and_gone_count(tmp_path, store):
    before, now = Tally(signature([2], ["a", "b"])), Tally(signature([2], ["b", "c"]))
    before.add(0, np.array([[0.9, 0.1], [0.1, 0.9]]))
    now.add(0, np.array([[0.9, 0.1], [0.1, 0.9]]))
    assert now.shift(before.document())[0] == pytest.approx(0.5)


def test_names_of_the_signature_must_fit(tmp_path, store):
    model = LinearRegression().fit([[1.0, 2.0, 3.0]], [6.0])
    for number, names in enumerate((["a", "b"], ["a", "a", "b"], "abc", [1, 2, 3])):
        directory = write_model(
            tmp_path / str(number), model, [6.0], {"shape": []}, {"names": names}
        )
        with pytest.raises(GroundcrewError, match="names must be a list of 3 different names"):
            Job(store, directory)("none.csv", FIRST)
