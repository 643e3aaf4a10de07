from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from groundcrew import model_store, objects
from groundcrew.errors import GroundcrewError
from hypothesis import given
from hypothesis import strategies as st

BUCKET = "groundcrew-test-store"


def publish(client: Any, artifact: Path, details: dict[str, Any], version: str = "1") -> str:
    held = model_store.claim(client, BUCKET, "digits", version, owner="training-1")
    return model_store.publish(client, BUCKET, held, artifact, details)


# -- publishing


def test_published_version_is_listed_and_its_manifest_tells_every_file(client, artifact, details):
    digest = publish(client, artifact, details)
    manifest, found = model_store.read_manifest(client, BUCKET, "digits", "1")
    assert found == digest
    assert sorted(manifest["files"]) == ["golden.json", "model.joblib", "variables/index"]
    assert manifest["files"]["model.joblib"]["size"] == 7000
    assert manifest["metrics"] == {"accuracy": 0.97}
    assert objects.parse_timestamp(manifest["created"])
    assert model_store.versions(client, BUCKET, "digits") == ["1"]


def test_versions_sort_as_numbers_and_unfinished_ones_are_not_listed(client, artifact, details):
    for version in ("2", "10", "9"):
        publish(client, artifact, details, version)
    model_store.claim(client, BUCKET, "digits", "11")
    assert model_store.versions(client, BUCKET, "digits") == ["2", "9", "10"]


def test_manifest_is_written_last(client, artifact, details, monkeypatch):
    held = model_store.claim(client, BUCKET, "digits", "1")

    def fail(*_arguments: Any, **_keywords: Any) -> None:
        raise RuntimeError("network down")

    monkeypatch.setattr(client, "head_object", fail)
    with pytest.raises(RuntimeError):
        model_store.publish(client, BUCKET, held, artifact, details)
    assert objects.list_keys(client, BUCKET, "models/digits/1/")
    assert model_store.versions(client, BUCKET, "digits") == []


def test_published_version_cannot_be_claimed_and_the_error_names_the_next(
    client, artifact, details
):
    publish(client, artifact, details, "3")
    with pytest.raises(GroundcrewError, match=r"version 3 is published already.*version is 4"):
        model_store.claim(client, BUCKET, "digits", "3", owner="training-1")


def test_claim_of_another_owner_is_respected_and_named(client):
    model_store.claim(client, BUCKET, "digits", "1", owner="alice")
    with pytest.raises(
        GroundcrewError, match=r"published by alice since 20.*aws s3 rm s3://.*claim"
    ):
        model_store.claim(client, BUCKET, "digits", "1", owner="bob")


def test_interrupted_owner_may_claim_again_and_the_first_process_then_publishes_nothing(
    client, artifact, details
):
    first = model_store.claim(client, BUCKET, "digits", "1", owner="training-1")
    second = model_store.claim(client, BUCKET, "digits", "1", owner="training-1")
    with pytest.raises(GroundcrewError, match="took over"):
        model_store.publish(client, BUCKET, first, artifact, details)
    assert model_store.versions(client, BUCKET, "digits") == []
    model_store.publish(client, BUCKET, second, artifact, details)
    assert model_store.versions(client, BUCKET, "digits") == ["1"]


def test_expired_claim_of_another_owner_is_taken_over(client):
    model_store.claim(client, BUCKET, "digits", "1", owner="alice")
    taken = model_store.claim(client, BUCKET, "digits", "1", owner="bob", expires_seconds=0)
    assert taken.owner == "bob"


def test_next_version_is_above_the_published_and_the_claimed(client, artifact, details):
    assert model_store.claim_next(client, BUCKET, "digits").version == "1"
    publish(client, artifact, details, "9")
    assert model_store.claim_next(client, BUCKET, "digits", owner="a").version == "10"
    # Nobody can tell a second job of this owner from a dead first one.
    assert model_store.claim_next(client, BUCKET, "digits", owner="a").version == "11"
    taken = model_store.claim_next(client, BUCKET, "digits", owner="b", expires_seconds=0)
    assert taken.version == "10"


def test_next_version_gives_up_when_very_many_are_being_published(client, monkeypatch):
    monkeypatch.setattr(model_store, "_MOST_CLAIMS_PASSED", 2)
    for _ in range(2):
        model_store.claim_next(client, BUCKET, "digits")
    with pytest.raises(GroundcrewError, match="versions 1 to 2 are all being published"):
        model_store.claim_next(client, BUCKET, "digits")


def test_renewed_claim_is_young_and_stays_its_owners(client):
    held = model_store.claim(client, BUCKET, "digits", "1", owner="alice")
    old = objects.to_json(
        {"owner": "alice", "token": held.token, "created": "2020-01-01T00:00:00Z"}
    )
    client.put_object(Bucket=BUCKET, Key="models/digits/1/claim.json", Body=old)
    assert model_store.renew(client, BUCKET, held)
    with pytest.raises(GroundcrewError, match="published by alice since 20"):
        model_store.claim(client, BUCKET, "digits", "1", owner="bob")
    assert model_store.claimed_by(client, BUCKET, "digits", "1") == held.token
    model_store.claim(client, BUCKET, "digits", "1", owner="bob", expires_seconds=0)
    assert not model_store.renew(client, BUCKET, held)


def test_two_claims_at_once_have_one_winner(client, monkeypatch):
    """The other publisher writes its claim between our look and our write."""
    real = objects.put
    raced = []

    def race(*arguments: Any, **keywords: Any) -> str:
        if not raced:
            raced.append(True)
            model_store.claim(client, BUCKET, "digits", "1", owner="alice")
        return real(*arguments, **keywords)

    monkeypatch.setattr(objects, "put", race)
    with pytest.raises(GroundcrewError, match="published by alice"):
        model_store.claim(client, BUCKET, "digits", "1", owner="bob")


def test_claim_whose_answer_was_lost_is_still_ours(client, monkeypatch):
    """boto3 repeats a write whose answer was lost; the repetition loses against the first."""
    real = objects.put

    def twice(*arguments: Any, **keywords: Any) -> str:
        real(*arguments, **keywords)
        return real(*arguments, **keywords)

    monkeypatch.setattr(objects, "put", twice)
    assert model_store.claim(client, BUCKET, "digits", "1", owner="bob").owner == "bob"


def test_release_frees_the_version_but_not_somebody_elses_claim(client):
    first = model_store.claim(client, BUCKET, "digits", "1", owner="alice")
    second = model_store.claim(client, BUCKET, "digits", "1", owner="alice")
    model_store.release(client, BUCKET, first)
    with pytest.raises(GroundcrewError, match="alice"):
        model_store.claim(client, BUCKET, "digits", "1", owner="bob")
    model_store.release(client, BUCKET, second)
    model_store.claim(client, BUCKET, "digits", "1", owner="bob")


def test_publish_refuses_links_and_a_missing_golden_file(client, artifact, details):
    held = model_store.claim(client, BUCKET, "digits", "1")
    (artifact / "link").symlink_to("/etc/hostname")
    with pytest.raises(GroundcrewError, match="not a plain file"):
        model_store.publish(client, BUCKET, held, artifact, details)
    (artifact / "link").unlink()
    (artifact / "golden.json").unlink()
    with pytest.raises(GroundcrewError, match=r"golden\.json"):
        model_store.publish(client, BUCKET, held, artifact, details)


def test_missing_bucket_is_named(client, artifact):
    with pytest.raises(GroundcrewError, match="bucket 'nowhere' does not exist"):
        model_store.claim(client, "nowhere", "digits", "1")
    with pytest.raises(GroundcrewError, match="bucket 'nowhere' does not exist"):
        model_store.versions(client, "nowhere", "digits")


@pytest.mark.parametrize("version", ["", "0", "01", "v1", "1.0", "-1", "../2", "1/2", "1\n"])
def test_versions_are_whole_numbers(version):
    with pytest.raises(GroundcrewError, match="must be a whole number"):
        model_store.prefix("digits", version)


@pytest.mark.parametrize("model", ["", "Digits", "a/b", "..", "a b", "x" * 64, "digits\n"])
def test_model_names_are_refused(model):
    with pytest.raises(GroundcrewError, match="not a valid name"):
        model_store.prefix(model, "1")


# -- manifests


@given(st.text() | st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_manifest_or_a_readable_error(data):
    message = "source"
    try:
        assert model_store.parse_manifest(data, "source")["files"]
    except GroundcrewError as error:
        message = str(error)
    assert "source" in message


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../b", "a//b", "./a", "a\\b", "manifest.json", "claim.json", ""],
)
def test_manifest_cannot_name_a_file_outside_its_directory(name):
    document = {
        "files": {name: {"sha256": "0" * 64, "size": 1}},
        "framework": "sklearn",
        "signature": {},
        "metrics": {},
    }
    with pytest.raises(GroundcrewError, match="safe relative path"):
        model_store.parse_manifest(json.dumps(document), "source")


# -- wholeness in the store


@pytest.mark.parametrize("full", [True, False])
def test_whole_version_is_told_from_a_broken_one(client, artifact, details, full):
    digest = publish(client, artifact, details)
    manifest, found = model_store.check_whole(client, BUCKET, "digits", "1", full)
    assert (manifest["metrics"], found) == ({"accuracy": 0.97}, digest)
    client.put_object(Bucket=BUCKET, Key="models/digits/1/model.joblib", Body=b"short")
    with pytest.raises(GroundcrewError, match="model.joblib has sha256"):
        model_store.check_whole(client, BUCKET, "digits", "1", full)
    client.delete_object(Bucket=BUCKET, Key="models/digits/1/model.joblib")
    with pytest.raises(GroundcrewError, match="model.joblib is missing although"):
        model_store.check_whole(client, BUCKET, "digits", "1", full)
    with pytest.raises(GroundcrewError, match="version 2 is not in the store"):
        model_store.check_whole(client, BUCKET, "digits", "2", full)


def test_only_reading_finds_content_that_kept_its_size(client, artifact, details):
    publish(client, artifact, details)
    digest, _size = model_store.sha256_file(artifact / "model.joblib")
    client.put_object(
        Bucket=BUCKET,
        Key="models/digits/1/model.joblib",
        Body=b"WEIGHTS" * 1000,
        Metadata={"sha256": digest},
    )
    model_store.check_whole(client, BUCKET, "digits", "1", full=False)
    with pytest.raises(GroundcrewError, match="has sha256"):
        model_store.check_whole(client, BUCKET, "digits", "1")


# -- fetching


def test_fetched_version_is_whole_and_verified(client, artifact, details, tmp_path):
    digest = publish(client, artifact, details)
    target = tmp_path / "models" / "digits" / "1"
    fetched = model_store.fetch(client, BUCKET, "digits", "1", target)
    assert fetched.manifest_sha256 == digest
    assert (target / "variables" / "index").read_bytes() == b"index"
    assert model_store.verify_directory(target).manifest_sha256 == digest
    assert sorted(path.name for path in target.parent.iterdir()) == ["1"]
    assert oct((target / "model.joblib").stat().st_mode & 0o777) == "0o644"
    assert oct((target / "variables").stat().st_mode & 0o777) == "0o755"


def test_missing_version_lists_what_the_store_has(client, artifact, details, tmp_path):
    publish(client, artifact, details, "1")
    publish(client, artifact, details, "2")
    with pytest.raises(GroundcrewError, match=r"version 7 is not in the store.*versions 1, 2"):
        model_store.fetch(client, BUCKET, "digits", "7", tmp_path / "digits" / "7")


def test_corrupted_artifact_is_refused_with_both_checksums(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    expected, _ = model_store.sha256_file(artifact / "model.joblib")
    client.put_object(Bucket=BUCKET, Key="models/digits/1/model.joblib", Body=b"WEIGHTS" * 1000)
    target = tmp_path / "digits" / "1"
    with pytest.raises(GroundcrewError) as caught:
        model_store.fetch(client, BUCKET, "digits", "1", target)
    assert "model.joblib" in str(caught.value)
    assert expected in str(caught.value)
    assert "has sha256" in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_artifact_missing_from_the_store_is_named(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    client.delete_object(Bucket=BUCKET, Key="models/digits/1/variables/index")
    with pytest.raises(GroundcrewError, match="variables/index is missing although"):
        model_store.fetch(client, BUCKET, "digits", "1", tmp_path / "digits" / "1")


def test_fetch_asks_for_space_before_it_downloads(client, artifact, details, tmp_path, monkeypatch):
    publish(client, artifact, details)
    usage = model_store.shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(model_store.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(GroundcrewError, match="1 MiB free"):
        model_store.fetch(client, BUCKET, "digits", "1", tmp_path / "digits" / "1")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda path: (path / "model.joblib").write_bytes(b"WEIGHTS" * 1000), "has sha256"),
        (lambda path: (path / "model.joblib").write_bytes(b"short"), "has 5 bytes"),
        (lambda path: (path / "model.joblib").unlink(), "cannot read"),
        (lambda path: (path / "extra").write_bytes(b""), "extra is not in the manifest"),
        (lambda path: (path / "manifest.json").unlink(), "cannot read"),
        (lambda path: (path / "manifest.json").write_text("{"), "not JSON"),
    ],
)
def test_verify_directory_names_each_fault(client, artifact, details, tmp_path, fault, message):
    publish(client, artifact, details)
    target = tmp_path / "digits" / "1"
    model_store.fetch(client, BUCKET, "digits", "1", target)
    fault(target)
    with pytest.raises(GroundcrewError, match=message):
        model_store.verify_directory(target)


# -- a host's directory


def reconcile(client: Any, root: Path, *versions: str, **keywords: Any) -> model_store.Outcome:
    wanted = [("digits", version) for version in versions]
    return model_store.reconcile(client, BUCKET, wanted, root, **keywords)


def test_second_run_changes_nothing_and_asks_nothing(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    first = reconcile(client, tmp_path / "srv", "1")
    assert first.changed
    assert first.fetched == ["digits/1"]
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "srv").rglob("*"))
    second = reconcile(None, tmp_path / "srv", "1")
    assert not second.changed
    assert second.models == first.models
    assert second.models[0]["metrics"] == {"accuracy": 0.97}
    after = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "srv").rglob("*"))
    assert before == after


def test_changed_file_is_repaired(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    reconcile(client, tmp_path, "1")
    (tmp_path / "digits" / "1" / "model.joblib").write_bytes(b"broken")
    outcome = reconcile(client, tmp_path, "1")
    assert outcome.repaired == ["digits/1"]
    model_store.verify_directory(tmp_path / "digits" / "1")


def test_bit_rot_that_keeps_size_and_time_is_found_by_full_verification(
    client, artifact, details, tmp_path
):
    publish(client, artifact, details)
    reconcile(client, tmp_path, "1")
    path = tmp_path / "digits" / "1" / "model.joblib"
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"W")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not reconcile(client, tmp_path, "1").changed
    assert reconcile(client, tmp_path, "1", full=True).repaired == ["digits/1"]
    model_store.verify_directory(tmp_path / "digits" / "1")


def test_touched_file_that_is_right_is_not_fetched_again(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    reconcile(client, tmp_path, "1")
    (tmp_path / "digits" / "1" / "model.joblib").touch()
    assert not reconcile(None, tmp_path, "1").changed


def test_leftovers_of_an_interrupted_fetch_are_removed(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    leftover = tmp_path / "digits" / ".partial-1-abc"
    leftover.mkdir(parents=True)
    (leftover / "model.joblib").write_bytes(b"half")
    reconcile(client, tmp_path, "1")
    assert not leftover.exists()


def test_old_versions_are_pruned_but_never_a_wanted_or_used_one(
    client, artifact, details, tmp_path
):
    for version in ("1", "2", "3", "4", "5"):
        publish(client, artifact, details, version)
        reconcile(client, tmp_path, version, keep=9)
    outcome = reconcile(client, tmp_path, "5", "2", keep=1, in_use=[tmp_path / "digits/1"])
    assert outcome.pruned == ["digits/3"]
    assert sorted(path.name for path in (tmp_path / "digits").iterdir() if path.is_dir()) == [
        "1",
        "2",
        "4",
        "5",
    ]


def test_other_models_are_left_alone(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    (tmp_path / "other" / "1").mkdir(parents=True)
    reconcile(client, tmp_path, "1", keep=0)
    assert (tmp_path / "other" / "1").is_dir()


def test_ownership_is_mended(client, artifact, details, tmp_path):
    publish(client, artifact, details)
    reconcile(client, tmp_path, "1")
    rights = model_store.Ownership(mode=0o640)
    assert reconcile(client, tmp_path, "1", check_mode=True, ownership=rights).ownership_changed
    assert reconcile(client, tmp_path, "1", ownership=rights).changed
    assert not reconcile(client, tmp_path, "1", ownership=rights).changed
    assert oct((tmp_path / "digits" / "1").stat().st_mode & 0o777) == "0o750"


def test_check_mode_writes_nothing_and_says_what_would_be_fetched(
    client, artifact, details, tmp_path
):
    publish(client, artifact, details)
    outcome = reconcile(client, tmp_path / "srv", "1", "2", check_mode=True)
    assert outcome.fetched == ["digits/1", "digits/2"]
    assert len(outcome.warnings) == 1
    assert "version 2 is not in the store" in outcome.warnings[0]
    assert not (tmp_path / "srv").exists()


def test_check_mode_warns_without_the_bucket(client, tmp_path):
    outcome = model_store.reconcile(
        client, "nowhere", [("digits", "1")], tmp_path / "srv", check_mode=True
    )
    assert outcome.changed
    assert "nowhere" in outcome.warnings[0]


def test_second_process_waits_for_the_lock_and_then_says_who(
    client, artifact, details, tmp_path, monkeypatch
):
    publish(client, artifact, details)
    monkeypatch.setattr(model_store, "_LOCK_WAIT_SECONDS", 0.0)
    with (
        model_store._lock(tmp_path / ".lock"),
        pytest.raises(GroundcrewError, match="another process has held"),
    ):
        reconcile(client, tmp_path, "1")


def test_query_tells_versions_manifests_and_what_is_missing(client, artifact, details):
    for version in ("1", "2"):
        publish(client, artifact, details, version)
    answer = model_store.query(
        client, BUCKET, [("digits", "2"), ("digits", "7"), ("other", "1"), ("none", None)]
    )
    digits = answer["models"][0]
    assert digits["versions"] == ["1", "2"]
    assert digits["manifests"]["2"]["metrics"]["accuracy"] == 0.97
    assert list(digits["manifests"]) == ["2"]
    assert [(entry["name"], entry["version"]) for entry in answer["missing"]] == [
        ("digits", "7"),
        ("other", "1"),
    ]
    assert "has versions 1, 2" in answer["missing"][0]["message"]
    everything = model_store.query(client, BUCKET, [("digits", None)])
    assert list(everything["models"][0]["manifests"]) == ["1", "2"]
