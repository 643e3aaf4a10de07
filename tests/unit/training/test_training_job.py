"""Settings, gate, data sets, checkpoints and attempts of a job; its end at any point: test_kills.py."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from groundcrew import model_store, training_job
from groundcrew.errors import GroundcrewError
from groundcrew.training_job import Checkpoints, DataSource, Gate, Job, Refused, Settings
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

BUCKET = "groundcrew-job-test-store"
REQUIRED = {
    "MODEL_NAME": "digits",
    "MODEL_VERSION": "1",
    "STORE_BUCKET": BUCKET,
    "GATE_MINIMUM": "0.95",
}
DATA = DataSource(BUCKET, "data/digits/")


@pytest.fixture(scope="module")
def _cloud() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        patch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield boto3.client("s3")
    patch.undo()


@pytest.fixture
def client(_cloud: Any) -> Iterator[Any]:
    _cloud.create_bucket(Bucket=BUCKET)
    yield _cloud
    for entry in model_store.list_objects(_cloud, BUCKET, ""):
        _cloud.delete_object(Bucket=BUCKET, Key=entry.key)


def settings(**changes: str) -> Settings:
    return Settings.from_environment({**REQUIRED, **changes})


# -- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL_NAME": ""}, "MODEL_NAME must be set"),
        ({"MODEL_VERSION": "latest"}, "must be a whole number"),
        ({"GATE_ACCURACY": "0.9"}, r"called GATE_MINIMUM now: set GATE_MINIMUM=0\.9"),
        ({"GATE_MINIMUM": ""}, "neither GATE_MINIMUM nor GATE_MARGIN is set"),
        ({"GATE_MINIMUM": "95"}, "GATE_MINIMUM is '95'"),
        ({"GATE_MINIMUM": "nan"}, "GATE_MINIMUM is 'nan'"),
        ({"GATE_MARGIN": "-0.1"}, "GATE_MARGIN is '-0.1'; it must be 0 or more"),
        ({"GATE_MARGIN": "much"}, "GATE_MARGIN is 'much'; it must be a number"),
        ({"HIGHER_IS_BETTER": "yes"}, "HIGHER_IS_BETTER is 'yes'; it must be true or false"),
        ({"LIVE_VERSION": "v3"}, "'v3' is not valid"),
        ({"SEED": "-1"}, "SEED is '-1'"),
        ({"ATTEMPT": "0"}, "ATTEMPT is '0'"),
        ({"DATA": "s3://bucket/data"}, "slash at the end"),
        ({"DATA": "/srv/data/"}, "is no address"),
        ({"DATA_SHA256": "abc"}, "DATA is not set"),
        ({"CHECKPOINT_DIRECTORY": "/nowhere"}, "CHECKPOINT_DIRECTORY is '/nowhere'"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(GroundcrewError, match=message):
        settings(**changes)


def test_empty_variables_are_those_that_are_not_set():
    names = [
        *("GATE_METRIC", "GATE_MARGIN", "LIVE_VERSION", "HIGHER_IS_BETTER", "SEED", "DATA"),
        *("DATA_SHA256", "CHECKPOINT_DIRECTORY", "ATTEMPT", "IMAGE_DIGEST", "GATE_ACCURACY"),
    ]
    assert settings(**dict.fromkeys(names, "")) == settings()


def test_any_metric_may_decide():
    gate = settings(GATE_METRIC="rmse", GATE_MINIMUM="120", HIGHER_IS_BETTER="False").gate
    assert gate == Gate(metric="rmse", minimum=120.0, higher_is_better=False)


# -- the gate


def job(client: Any, tmp_path: Path, gate: Gate) -> Job:
    (tmp_path / "version").mkdir()
    return Job(Settings("digits", "9", BUCKET, gate), client, "9", tmp_path / "version", tmp_path)


def publish(client: Any, version: str, directory: Path, **files: str) -> None:
    directory.mkdir()
    cases = [{"request": {"instances": []}, "response": {}}]
    (directory / "golden.json").write_text(json.dumps({"cases": cases}))
    for name, text in files.items():
        (directory / name).write_text(text)
    held = model_store.claim(client, BUCKET, "digits", version)
    details: dict[str, Any] = {"framework": "custom", "signature": {}, "metrics": {"accuracy": 0.9}}
    model_store.publish(client, BUCKET, held, directory, details)


def read_accuracy(directory: Path) -> dict[str, float]:
    return {"accuracy": float((directory / "accuracy").read_text())}


@pytest.mark.parametrize(
    ("gate", "value", "message"),
    [
        (Gate(minimum=0.9), 0.9, None),
        (Gate(minimum=0.9), 0.8999, r"accuracy 0\.8999 .* is below the gate of 0\.9\."),
        (Gate(minimum=0.9), math.nan, "accuracy on the held-out data is nan"),
        (Gate(margin=0.1), math.inf, "accuracy on the held-out data is inf"),
        (Gate(minimum=0.2, higher_is_better=False), 0.2, None),
        (
            Gate(minimum=0.2, higher_is_better=False),
            0.21,
            r"0\.2100 .* is above the gate of 0\.2\.",
        ),
    ],
)
def test_minimum(client, tmp_path, gate, value, message):
    judged = job(client, tmp_path, gate)
    if message is None:
        judged.gate({"accuracy": value})
        assert judged.passed is not None and judged.passed["value"] == value
    else:
        with pytest.raises(Refused, match=message):
            judged.gate({"accuracy": value})
        assert judged.passed is None


@pytest.mark.parametrize(
    ("value", "margin", "higher", "passes"),
    [
        (0.970, 0.005, True, True),
        (0.969, 0.005, True, False),
        (0.990, 0.0, True, True),
        (0.980, 0.005, False, True),
        (0.981, 0.005, False, False),
        (0.100, 0.0, False, True),
    ],
)
def test_margin_to_the_live_version(client, tmp_path, value, margin, higher, passes):
    publish(client, "3", tmp_path / "three", accuracy="0.975")
    judged = job(client, tmp_path, Gate(margin=margin, higher_is_better=higher, live_version="3"))
    if passes:
        judged.gate({"accuracy": value}, read_accuracy)
        assert judged.passed is not None
        assert (judged.passed["live_version"], judged.passed["live_value"]) == ("3", 0.975)
    else:
        with pytest.raises(Refused, match=rf"{value:.4f} is worse than 0\.9750 of version 3"):
            judged.gate({"accuracy": value}, read_accuracy)


def test_live_version_that_cannot_be_evaluated_fails_the_gate(client, tmp_path):
    publish(client, "3", tmp_path / "three", accuracy="no number")
    judged = job(client, tmp_path, Gate(margin=0.1, live_version="3"))
    for evaluate, said in (
        (None, "job.gate"),
        (read_accuracy, "could not convert"),
        (lambda _: {"log_loss": 1.0}, "KeyError"),
        (lambda _: {"accuracy": math.nan}, "is nan"),
    ):
        with pytest.raises(Refused, match=rf"cannot be evaluated: .*{said}"):
            judged.gate({"accuracy": 1.0}, evaluate)
    client.put_object(Bucket=BUCKET, Key="models/digits/3/accuracy", Body=b"0.1")
    with pytest.raises(Refused, match=r"cannot be evaluated: .*has sha256"):
        judged.gate({"accuracy": 1.0}, read_accuracy)
    missing = Job(
        Settings("digits", "9", BUCKET, Gate(margin=0.1, live_version="7")),
        *(client, "9", tmp_path, tmp_path),
    )
    with pytest.raises(Refused, match="version 7 is not in the store"):
        missing.gate({"accuracy": 1.0}, read_accuracy)
    assert judged.passed is None


@pytest.mark.parametrize("live", [None, "9"])
def test_first_version_has_none_to_compare_with(client, tmp_path, capsys, live):
    """An inventory may declare a version before it is trained."""
    judged = job(client, tmp_path, Gate(margin=0.1, live_version=live))
    judged.gate({"accuracy": 0.5})
    assert judged.passed is not None and judged.passed["live_value"] is None
    assert "no version serves yet" in capsys.readouterr().out


def test_metric_that_the_job_does_not_have_is_named(client, tmp_path):
    with pytest.raises(GroundcrewError, match="GATE_METRIC is 'f1'; this job measures accuracy"):
        job(client, tmp_path, Gate(metric="f1", minimum=0.5)).gate({"accuracy": 1.0})


def test_metric_that_no_manifest_can_hold_is_named(client, tmp_path):
    with pytest.raises(GroundcrewError, match="log_loss is inf, which a manifest cannot hold"):
        job(client, tmp_path, Gate(minimum=0.5)).gate({"accuracy": 1.0, "log_loss": math.inf})


# -- the whole job


def build(job: Job) -> dict[str, Any]:
    job.gate({"accuracy": 0.97, "log_loss": 0.1})
    (job.directory / "weights").write_text("1")
    job.write_golden([{"request": {"instances": []}, "response": {}}], 0.0)
    return {"framework": "custom", "signature": {}, "data": {"rows": 3}}


def test_manifest_says_where_a_version_comes_from(client, tmp_path):
    client.put_object(Bucket=BUCKET, Key="data/digits/a.csv", Body=b"1,2\n")
    given = settings(
        MODEL_VERSION="next",
        DATA=str(DATA),
        CODE_REVISION="abc",
        IMAGE_DIGEST="sha256:1",
        ENVIRONMENT_FINGERPRINT="f00",
        ATTEMPT="2",
    )
    result = training_job.run(given, client, build)
    manifest, digest = model_store.read_manifest(client, BUCKET, "digits", "1")
    assert result == {
        "model": "digits",
        "version": "1",
        "metrics": {"accuracy": 0.97, "log_loss": 0.1},
        "manifest_sha256": digest,
    }
    assert manifest["data"] == {
        "rows": 3,
        "source": str(DATA),
        "sha256": training_job.data_digest(client, DATA).sha256,
        "files": 1,
        "bytes": 4,
    }
    assert manifest["gate"] == {
        "metric": "accuracy",
        "value": 0.97,
        "minimum": 0.95,
        "margin": None,
        "higher_is_better": True,
        "live_version": None,
        "live_value": None,
    }
    assert (manifest["code_revision"], manifest["image"]) == ("abc", "sha256:1")
    assert (manifest["environment_fingerprint"], manifest["attempt"]) == ("f00", 2)
    assert manifest["duration_seconds"] >= 0


def test_job_that_never_asks_the_gate_publishes_nothing(client):
    with pytest.raises(GroundcrewError, match="never called job.gate"):
        training_job.run(settings(), client, lambda _: {"framework": "custom", "signature": {}})
    assert model_store.versions(client, BUCKET, "digits") == []
    model_store.claim(client, BUCKET, "digits", "1", owner="somebody else")


class Dead(BaseException):
    """The process is killed: nothing of it runs any more."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a job that is killed after publishing (or before): its claim stays."""

    def run(given: Settings, client: Any, published: bool) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(model_store, "release", lambda *_: None)
            real = model_store.publish

            def die(*arguments: Any) -> None:
                if published:
                    real(*arguments)
                raise Dead

            patch.setattr(model_store, "publish", die)
            with pytest.raises(Dead):
                training_job.run(given, client, build)

    return run


def test_next_attempt_goes_on_with_its_version(client, tmp_path, killed_after):
    given = {"MODEL_VERSION": "next", "CHECKPOINT_DIRECTORY": str(tmp_path)}
    killed_after(settings(**given), client, published=False)
    assert training_job.run(settings(**given, ATTEMPT="2"), client, build)["version"] == "1"
    # Another run is no attempt of this one.
    assert training_job.run(settings(**given), client, build)["version"] == "2"


@pytest.mark.parametrize("version", ["next", "1"])
def test_next_attempt_finds_that_it_has_published(client, tmp_path, killed_after, version):
    given = {"MODEL_VERSION": version, "CHECKPOINT_DIRECTORY": str(tmp_path)}
    killed_after(settings(**given), client, published=True)
    result = training_job.run(
        settings(**given, ATTEMPT="2"), client, lambda _: pytest.fail("it trains again")
    )
    assert result["version"] == "1"
    assert result["metrics"]["accuracy"] == 0.97


def test_version_that_somebody_else_took_meanwhile_is_left_to_them(client, tmp_path, killed_after):
    given = {"MODEL_VERSION": "next", "CHECKPOINT_DIRECTORY": str(tmp_path), "CLAIM_OWNER": "a"}
    killed_after(settings(**given), client, published=False)
    model_store.claim(client, BUCKET, "digits", "1", owner="b", expires_seconds=0)
    assert training_job.run(settings(**given, ATTEMPT="2"), client, build)["version"] == "2"


def test_claim_of_long_work_is_renewed(client, monkeypatch):
    monkeypatch.setattr(training_job, "RENEW_SECONDS", 0.01)
    renewed = training_job.threading.Event()
    real = model_store.renew

    def renew(*arguments: Any) -> bool:
        held = real(*arguments)
        renewed.set()
        return held

    monkeypatch.setattr(model_store, "renew", renew)

    def slow(job: Job) -> dict[str, Any]:
        assert renewed.wait(10)
        return build(job)

    training_job.run(settings(), client, slow)
    assert model_store.versions(client, BUCKET, "digits") == ["1"]


# -- data sets


def upload(client: Any, **files: bytes) -> None:
    for name, content in files.items():
        client.put_object(Bucket=BUCKET, Key=DATA.prefix + name.replace("__", "/"), Body=content)


def test_copy_has_every_file_and_the_digest_that_a_person_computes(client, tmp_path):
    upload(client, b=b"2", a=b"1", deep__er__c=b"3" * 3_000_000, Z=b"4")
    client.put_object(Bucket=BUCKET, Key="data/digits/deep/", Body=b"")
    fetched = training_job.fetch_data(client, DATA, tmp_path / "data")
    by_hand = subprocess.run(
        "find * -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum",
        shell=True,
        cwd=tmp_path / "data",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    assert fetched.digest == training_job.data_digest(client, DATA)
    assert fetched.digest.sha256 == by_hand
    assert (fetched.digest.files, fetched.digest.bytes) == (4, 3_000_003)
    assert (tmp_path / "data" / "deep" / "er" / "c").stat().st_size == 3_000_000


def test_other_digest_is_refused_with_both(client, tmp_path):
    upload(client, a=b"1")
    right = training_job.data_digest(client, DATA).sha256
    training_job.fetch_data(client, DATA, tmp_path / "data", right)
    upload(client, a=b"2")
    with pytest.raises(GroundcrewError, match=f"DATA_SHA256 is {right}"):
        training_job.fetch_data(client, DATA, tmp_path / "data", right)


def test_second_fetch_reads_only_what_differs(client, tmp_path, monkeypatch):
    upload(client, a=b"1", b=b"2", c=b"3", gone=b"4")
    training_job.fetch_data(client, DATA, tmp_path / "data")
    (tmp_path / "data" / "b").write_bytes(b"broken")
    upload(client, c=b"new")
    client.delete_object(Bucket=BUCKET, Key="data/digits/gone")
    with (tmp_path / "data.jsonl").open("a") as notes:
        notes.write('["a", "torn')
    read = []
    real = training_job._open
    monkeypatch.setattr(
        training_job, "_open", lambda c, s, entry: read.append(entry.key) or real(c, s, entry)
    )
    again = training_job.fetch_data(client, DATA, tmp_path / "data")
    assert sorted(read) == ["data/digits/b", "data/digits/c"]
    assert again.digest == training_job.data_digest(client, DATA)
    assert model_store.files_of(tmp_path / "data") == ["a", "b", "c"]


def test_empty_and_unsafe_data_sets_are_refused(client, tmp_path):
    with pytest.raises(GroundcrewError, match="has no objects; correct DATA"):
        training_job.data_digest(client, DATA)
    client.put_object(Bucket=BUCKET, Key="data/digits/../../x", Body=b"1")
    with pytest.raises(GroundcrewError, match="not a safe relative path; rename it"):
        training_job.fetch_data(client, DATA, tmp_path / "data")


def test_object_that_changes_while_it_is_read_is_noticed(client, tmp_path, monkeypatch):
    upload(client, a=b"1")
    listed = model_store.list_objects(client, BUCKET, DATA.prefix)
    upload(client, a=b"2")
    monkeypatch.setattr(model_store, "list_objects", lambda *_: listed)
    with pytest.raises(GroundcrewError, match="changed while the data set was read"):
        training_job.fetch_data(client, DATA, tmp_path / "data")


def test_disk_that_is_too_small_is_refused_first(client, tmp_path, monkeypatch):
    upload(client, a=b"1" * 3_000_000)
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(training_job.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(GroundcrewError, match="1 MiB free"):
        training_job.fetch_data(client, DATA, tmp_path / "data")


# -- checkpoints


def text(value: str) -> Any:
    return lambda directory: (directory / "state").write_text(value)


def test_latest_is_found_and_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", {"seed": 1})
    assert checkpoints.latest() is None
    for step in (1, 2, 10):
        checkpoints.save(step, text(str(step)))
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, (latest.directory / "state").read_text()) == (10, "10")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-10", "step-2"]
    checkpoints.clear()
    assert checkpoints.latest() is None


def test_those_of_another_training_are_not_found_and_go(tmp_path):
    Checkpoints(tmp_path, {"seed": 1}).save(5, text("other"))
    mine = Checkpoints(tmp_path, {"seed": 2})
    assert mine.latest() is None
    mine.save(1, text("mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_without_a_directory_there_are_none():
    checkpoints = Checkpoints(None)
    checkpoints.save(1, lambda _: pytest.fail("it writes"))
    assert checkpoints.latest() is None
    checkpoints.clear()


@given(st.integers(0, 59), st.sampled_from(["state", "checkpoint.json"]), st.booleans())
def test_torn_one_is_skipped(tmp_path_factory, at, name, flip):
    directory = tmp_path_factory.mktemp("c")
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, text("one"))
    checkpoints.save(2, text("two" * 20))
    path = directory / "step-2" / name
    content = bytearray(path.read_bytes())
    if flip:
        content[at] ^= 0x55
        path.write_bytes(content)
    else:
        path.write_bytes(content[:at])
    latest = checkpoints.latest()
    assert latest is not None and latest.step == 1
    checkpoints.save(2, text("again"))
    assert checkpoints.latest().step == 2  # type: ignore[union-attr]


def test_writer_that_dies_leaves_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, text("one"))

    def die(directory: Path) -> None:
        (directory / "state").write_text("half")
        raise Dead

    with pytest.raises(Dead):
        checkpoints.save(2, die)
    latest = checkpoints.latest()
    assert latest is not None and latest.step == 1
    checkpoints.save(2, text("two"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]
