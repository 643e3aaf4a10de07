"""batch_jobs and training_jobs as a team writes them, and what a host is given of them."""

from __future__ import annotations

import pytest
from groundcrew import jobs
from groundcrew.errors import GroundcrewError

FILE = "inventories/x/group_vars/x/batch.yml"
IMAGE = "registry:5000/batch@sha256:" + "0" * 64
SETTINGS = {
    "bucket": "store",
    "model_directory": "/srv/models",
    "env_file": "",
    "conda_root": "/opt/groundcrew/conda",
    "library": "/usr/local/lib/groundcrew",
    "work_directory": "/srv/work",
    "textfile_directory": "/metrics",
    "retry_delay_seconds": 1,
    "jitter_seconds": 0,
    "code_revision": "abc",
    "live": {"digits": "1"},
    "published": {"digits": ["1"]},
    "fingerprints": {},
}
GOOD = {"image": "b", "model": "digits", "version": "1", "input": "a.csv", "schedule": "0 2 * * *"}
TRAIN = {"image": "b", "model": "digits", "version": "2", "gate": {"minimum": 0.9}}


def batch(declared, peers=None, host="h1", **options):
    peers = peers or {"batch": ["h1"]}
    manifests = {"digits": {"1": "m"}}
    return jobs.batch_jobs(
        declared, FILE, peers, host, {"b": IMAGE}, manifests, SETTINGS, **options
    )


def training(declared, peers=None, host="h1", **options):
    peers = peers or {"training": ["h1"]}
    return jobs.training_jobs(declared, FILE, peers, host, {"b": IMAGE}, SETTINGS, **options)


def test_defaults_and_input():
    (job,) = batch({"nightly": GOOD})
    assert (job["id"], job["schedule"], job["cron"]) == ("batch-nightly", "0 2 * * *", "0 2 * * *")
    assert job["env"]["INPUT"] == "s3://store/a.csv"
    assert job["env"]["MODEL_DIRECTORY"] == "/models/digits/1"
    assert job["mounts"] == [{"source": "/srv/models/digits/1", "target": "/models/digits/1"}]
    assert (job["timeout_seconds"], job["late_after_seconds"]) == (3600, 24 * 3600 + 3600)
    assert job["image"] == IMAGE
    assert job["textfile"] == "/metrics/groundcrew_job_batch-nightly.prom"
    assert "MINIMUM_ROWS_SHARE" not in job["env"]


def test_judgement_reaches_the_job():
    (job,) = batch({"nightly": {**GOOD, "minimum_rows_share": 0.9, "maximum_shift": 1}})
    assert (job["env"]["MINIMUM_ROWS_SHARE"], job["env"]["MAXIMUM_SHIFT"]) == ("0.9", "1")


def test_a_time_zone():
    (job,) = batch({"nightly": {**GOOD, "timezone": "Europe/Berlin"}})
    assert (job["cron"], job["late_after_seconds"]) == ("0 * * * *", 25 * 3600 + 3600)


def test_a_conda_environment():
    (job,) = batch({"nightly": {**GOOD, "image": None, "conda_environment": "digits"}})
    assert job["conda_environment"] == "/opt/groundcrew/conda/envs/digits"
    assert job["env"]["MODEL_DIRECTORY"] == "/srv/models/digits/1"
    assert job["env"]["PYTHONPATH"] == "/usr/local/lib/groundcrew"
    assert "image" not in job


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shedule": "x"}, "unknown key 'shedule'. Did you mean 'schedule'?"),
        ({"schedule": "@daily"}, "five fields"),
        ({"schedule": "61 * * * *"}, "'61' is no minute"),
        ({"timezone": "Mars"}, "'Mars'"),
        ({"version": "one"}, "'one'"),
        ({"version": "next"}, "'next'"),
        ({"version": None}, "it lacks version"),
        ({"memory": "lots"}, "memory is 'lots'"),
        ({"retries": -1}, "retries is -1"),
        ({"gpus": True}, "gpus is True"),
        ({"maximum_shift": 2}, "maximum_shift is 2"),
        ({"timeout_minutes": "30"}, "timeout_minutes is '30'"),
        ({"include_instances": "yes"}, "include_instances is 'yes'"),
        ({"input": "/etc/passwd"}, "input is '/etc/passwd'"),
        ({"owner": "a\n* * * * * root reboot"}, "owner is"),
        ({"image": "c"}, "image 'c' has no digest yet"),
        ({"image": None}, "one of them says what the job runs in"),
        ({"conda_environment": "x"}, "one of them says what the job runs in"),
    ],
)
def test_refusals_name_the_fault_and_the_file(change, said):
    with pytest.raises(GroundcrewError) as refused:
        batch({"nightly": {**GOOD, **change}})
    assert said in str(refused.value)
    assert FILE in str(refused.value)
    assert "nightly" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gate": {"accuracy": 0.9}}, "write gate: {metric: accuracy, minimum: 0.9}"),
        ({"gate": {}}, "it lacks minimum"),
        ({"gate": {"minimum": "high"}}, "gate.minimum is 'high'"),
        ({"gate": {"minimum": 0.9, "margin": -1}}, "gate.margin is -1"),
        ({"gate": {"minimum": 0.9, "marign": 0.1}}, "Did you mean 'margin'?"),
        ({"env": {"A B": 1}}, "env is"),
        ({"command": "python x.py"}, "command is 'python x.py'"),
        ({"code": "files/x"}, "only a job in a Conda environment"),
        ({"image": None, "conda_environment": "x"}, "needs a command"),
        ({"after": "nobody"}, "after is 'nobody'"),
        ({"data_sha256": "xyz"}, "data_sha256 is 'xyz'"),
    ],
)
def test_refusals_of_training_jobs(change, said):
    with pytest.raises(GroundcrewError) as refused:
        training({"digits": {**TRAIN, **change}})
    assert said in str(refused.value)
    assert FILE in str(refused.value)


def test_a_training_job():
    (job,) = training(
        {"digits": {**TRAIN, "version": "next", "gate": {"minimum": 0.9, "margin": 0.01}}}
    )
    assert job["env"]["LIVE_VERSION"] == "1"
    assert job["env"]["IMAGE_DIGEST"] == "sha256:" + "0" * 64
    assert (job["keep_work"], job.get("cron", "")) == (True, "")
    (job,) = training({"digits": {**TRAIN, "data": "data/digits/"}})
    assert job["env"]["DATA"] == "s3://store/data/digits/"
    assert "LIVE_VERSION" not in job["env"]


def test_what_waits_for_another_is_on_its_host_and_after_it():
    declared = {"a": TRAIN}
    declared |= {f"b{number}": {**TRAIN, "after": "a"} for number in range(9)}
    peers = {"training": ["h1", "h2", "h3"]}
    found = {
        host: [job["name"] for job in training(declared, peers, host)] for host in peers["training"]
    }
    assert sorted(map(len, found.values())) == [0, 0, 10]
    assert max(found.values(), key=len) == list(declared)


def test_a_name_that_cron_would_ignore_is_refused():
    with pytest.raises(GroundcrewError, match=r"nightly\.v2"):
        batch({"nightly.v2": GOOD})


def test_each_job_runs_on_one_host_of_its_fleet():
    declared = {f"job{number}": GOOD for number in range(20)}
    hosts = ["h1", "h2", "h3"]
    names = [job["name"] for host in hosts for job in batch(declared, {"batch": hosts}, host)]
    assert sorted(names) == sorted(declared)
    assert batch({"gpu": {**GOOD, "fleet": "batch_gpu"}}) == []


def test_a_check_run_on_a_fresh_host_needs_no_digest_and_no_manifest():
    (job,) = batch({"n": {**GOOD, "image": "c", "version": 2}}, placeholders=True)
    assert job["identity"]["manifest_sha256"] is None


def test_the_version_that_serves():
    variants = [
        {"model": "digits", "version": "1", "weight": 10},
        {"model": "digits", "version": "2", "weight": 90},
        {"model": "other", "version": 7, "weight": 100},
    ]
    live = jobs.live_versions(variants)
    assert live == {"digits": "2", "other": "7"}
    assert jobs.live_jobs({"n": {**GOOD, "version": "live"}}, live, FILE)["n"]["version"] == "2"
    with pytest.raises(GroundcrewError, match="Did you mean 'digits'"):
        jobs.live_jobs({"n": {**GOOD, "version": "live", "model": "digit"}}, live, FILE)


def test_what_the_store_knows_counts_as_success_of_the_declared_job():
    (job,) = batch({"nightly": {**GOOD, "input": "data/{date}.csv", "timezone": "Asia/Tokyo"}})
    manifest = {
        "run": "20261126T170000Z",
        "model_name": "digits",
        "model_version": "1",
        "model_manifest_sha256": "m",
        # In Tokyo it was the next day already.
        "input": {"uri": "s3://store/data/2026-11-27.csv"},
        "include_instances": False,
        "finished": "2026-11-26T17:01:00Z",
        "rows": 5,
        "rejected": 1,
    }
    known = jobs.known_success(job, manifest)
    assert {key: known[key] for key in job["identity"]} == job["identity"]
    other = {**manifest, "input": {"uri": "s3://store/data/2026-11-26.csv"}}
    assert jobs.known_success(job, other)["input"] != job["identity"]["input"]


def test_files_of_the_runner_and_of_conda_jobs(tmp_path):
    package = tmp_path / "plugins/module_utils/groundcrew"
    (package / "conda").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "schedule.py", "objects.py", "conda/lock.py"):
        (package / name).write_text(f"# {name}\n")
    packages = {"groundcrew": "plugins/module_utils"}
    few = jobs.library_files([{}], packages, "/lib", str(tmp_path))
    assert sorted(file["path"] for file in few) == [
        f"/lib/groundcrew/{name}" for name in jobs.RUNNER_FILES
    ]
    code = tmp_path / "files/mine"
    code.mkdir(parents=True)
    (code / "train.py").write_text("pass\n")
    conda = [{"conda_environment": "/e", "id": "training-x", "code": "files/mine"}]
    many = [file["path"] for file in jobs.library_files(conda, packages, "/lib", str(tmp_path))]
    assert "/lib/groundcrew/conda/lock.py" in many and "/lib/code/training-x/train.py" in many
    with pytest.raises(GroundcrewError, match="files/none is no folder"):
        jobs.library_files([{**conda[0], "code": "files/none"}], packages, "/lib", str(tmp_path))


def test_a_fleet_that_the_environment_has_not_is_named_before_anything_runs_nowhere():
    declared = {"nightly": {**GOOD, "fleet": "batchh"}, "weekly": GOOD}
    (fault,) = jobs.fleet_faults(declared, "batch", ["batch", "gateway"], FILE)
    assert "batch job nightly" in fault and "Did you mean 'batch'?" in fault and FILE in fault
    assert len(jobs.fleet_faults(declared, "batch", ["gateway"], FILE)) == 2
