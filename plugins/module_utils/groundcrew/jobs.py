"""From jobs as a team writes them (`batch_jobs:` and `training_jobs:`) to what a host's runner is given.

Every refusal names the job, the key, its value, and the file to edit. A job's specification is one flat
JSON object, see :func:`_specification`; nothing in it depends on what kind of job it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import batch_store, model_store, objects, schedule
from .errors import GroundcrewError
from .service_map import nearest

# Every key that all jobs have, and its value when it is left out; ... means that it has to be there.
_COMMON: dict[str, Any] = {
    "image": None,
    "conda_environment": None,
    "model": ...,
    "version": ...,
    "schedule": None,
    "timezone": "UTC",
    "memory": "1g",
    "cpus": None,
    "gpus": 0,
    "timeout_minutes": 60,
    "retries": 1,
    "owner": "",
}
_BATCH: dict[str, Any] = {
    **_COMMON,
    "fleet": "batch",
    "schedule": ...,
    "input": ...,
    "include_instances": False,
    "chunk_rows": None,
    "minimum_rows_share": None,
    "maximum_shift": None,
    "maximum_rejected_share": None,
}
_TRAINING: dict[str, Any] = {
    **_COMMON,
    "fleet": "training",
    "memory": "4g",
    "gate": ...,
    "after": None,
    "command": None,
    "code": None,
    "env": None,
    "data": "",
    "data_sha256": "",
}
_GATE: dict[str, Any] = {
    "metric": "accuracy",
    "minimum": ...,
    "margin": None,
    "higher_is_better": True,
}
# What the runner on a host imports of this package.
RUNNER_FILES = ("__init__.py", "errors.py", "schedule.py")
# What ends a run for good, because another attempt would end the same way.
BATCH_STATUSES = {
    "4": "held back: LATEST stays where it was; playbooks/batch.yml -e accept=yes moves it"
}
TRAINING_STATUSES = {"3": "refused by the gate: nothing was published"}

_MEMORY = re.compile(r"[1-9][0-9]*[bkmg]", re.IGNORECASE)
_OWNER = re.compile(r"[A-Za-z0-9@._+ -]{0,80}")
_LOCATION = re.compile(r"[^/\s][^\s]*")
_SHA256 = re.compile(r"([0-9a-f]{64})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBERS: tuple[tuple[str, float, float, bool], ...] = (
    ("timeout_minutes", 1, 10080, True),
    ("retries", 0, 10, True),
    ("chunk_rows", 1, 10_000_000, True),
    ("gpus", 0, 16, True),
    ("cpus", 0.1, 512, False),
    ("minimum_rows_share", 0, 1, False),
    ("maximum_shift", 0, 1, False),
    ("maximum_rejected_share", 0, 1, False),
)
_TEXTS = (
    ("memory", _MEMORY, "a size such as 512m or 2g"),
    ("owner", _OWNER, "a name or an address: letters, digits, spaces and @._+-"),
    (
        "input",
        _LOCATION,
        "a key of the store's bucket, such as data/digits.csv, or s3://<bucket>/<key>",
    ),
    ("data_sha256", _SHA256, "64 hexadecimal digits; the job says the digest of what it found"),
)


def live_versions(variants: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Model to the version that most of its requests get; variants as expand_models gives them."""
    best: dict[str, Mapping[str, Any]] = {}
    for variant in variants:
        held = best.get(variant["model"])
        if held is None or variant["weight"] > held["weight"]:
            best[variant["model"]] = variant
    return {model: str(variant["version"]) for model, variant in best.items()}


def live_jobs(jobs: Any, live: Mapping[str, str], file: str) -> Any:
    """Jobs with the version `live` replaced by the one that serves. Raises GroundcrewError."""
    if not isinstance(jobs, Mapping):
        return jobs
    found = {}
    for name, job in jobs.items():
        if isinstance(job, Mapping) and job.get("version") == "live":
            model = job.get("model")
            if model not in live:
                raise GroundcrewError(
                    f"batch job {name}: its version is live, and no model '{model}' is served."
                    f"{nearest(str(model), live)} Give it a version of its own. Edit {file}."
                )
            job = {**job, "version": live[str(model)]}
        found[name] = job
    return found


def batch_jobs(
    jobs: Any,
    file: str,
    peers: Mapping[str, Sequence[str]],
    host: str,
    images: Mapping[str, str],
    manifests: Mapping[str, Mapping[str, str]],
    settings: Mapping[str, Any],
    placeholders: bool = False,
) -> list[dict[str, Any]]:
    """The specifications of one host's batch jobs, sorted by name.

    file: what a person has to edit, for the messages. peers: fleet to its hosts; each job of a
    fleet runs on one of them, chosen by its name, so that several hosts share the jobs and none is
    run twice. images: name to reference by digest. manifests: model to version to the sha256 of its
    manifest. settings: see :func:`_specification`; and model_directory, where versions lie on the
    host. placeholders stand in for an image and a manifest that a check run on a fresh host does
    not have. Raises GroundcrewError for the first fault.
    """
    specifications = []
    for job in _mine(jobs, "batch", _BATCH, file, peers, host):
        name, model, version = job["name"], job["model"], job["version"]
        fault = _Fault("batch", name, file)
        digest = manifests.get(model, {}).get(version)
        if not digest and not placeholders:
            raise fault(
                f"version {version} of model {model} was not fetched to this host. Run the "
                "model_store role for it first."
            )
        source = f"{settings['model_directory']}/{model}/{version}"
        inside = source if job["conda_environment"] else f"/models/{model}/{version}"
        location = _address(job["input"], settings["bucket"])
        env = {
            "JOB": name,
            "MODEL_NAME": model,
            "MODEL_VERSION": version,
            "MODEL_DIRECTORY": inside,
            "STORE_BUCKET": settings["bucket"],
            "INPUT": location,
            "OUTPUT": f"predictions/{name}/",
            "INCLUDE_INSTANCES": str(job["include_instances"]).lower(),
            **{
                key.upper(): str(job[key])
                for key in (
                    "chunk_rows",
                    "minimum_rows_share",
                    "maximum_shift",
                    "maximum_rejected_share",
                )
                if job[key] is not None
            },
        }
        specification = _specification(job, "batch", file, images, settings, placeholders)
        specification.update(
            what=f"model {model} version {version}",
            command=["python", "-m", "groundcrew_batch", "run"],
            env={**env, **specification["env"]},
            mounts=[{"source": source, "target": inside}],
            needs=[
                {"path": source, "mend": "run playbooks/deploy_batch.yml, which fetches the model"},
                *specification["needs"],
            ],
            statuses=BATCH_STATUSES,
            # A success with other values than the job has now is no success of this job.
            identity={
                "model": model,
                "version": version,
                "manifest_sha256": digest,
                "input": location,
                "include_instances": job["include_instances"],
            },
        )
        specifications.append(specification)
    return specifications


def known_success(job: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest of a batch run says of the job's last success, as the runner keeps it.

    job: a specification. Its input may hold the day of the run; a run that read that day's counts.
    """
    identity = job["identity"]
    due = schedule.moment_of(manifest["run"])
    uri = manifest["input"]["uri"]
    declared = due is not None and uri == schedule.filled(identity["input"], due, job["timezone"])
    return {
        "model": manifest["model_name"],
        "version": manifest["model_version"],
        "manifest_sha256": manifest["model_manifest_sha256"],
        "input": identity["input"] if declared else uri,
        "include_instances": manifest["include_instances"],
        "run": manifest["run"],
        "finished": int(objects.parse_timestamp(manifest["finished"]).timestamp()),
        "rows": manifest["rows"],
        "rejected": manifest["rejected"],
    }


def training_jobs(
    jobs: Any,
    file: str,
    peers: Mapping[str, Sequence[str]],
    host: str,
    images: Mapping[str, str],
    settings: Mapping[str, Any],
    placeholders: bool = False,
) -> list[dict[str, Any]]:
    """The specifications of one host's training jobs, in the order in which they are written: the
    later ones may need what the earlier ones publish.

    Arguments as for :func:`batch_jobs`; settings has besides code_revision, live (model to the
    version that serves), published (model to the versions that the store has) and fingerprints (Conda
    environment to its own).
    """
    specifications = []
    for job in _mine(jobs, "training", _TRAINING, file, peers, host):
        gate = job["gate"]
        env = {
            "MODEL_NAME": job["model"],
            "MODEL_VERSION": job["version"],
            "STORE_BUCKET": settings["bucket"],
            "GATE_METRIC": gate["metric"],
            "GATE_MINIMUM": str(gate["minimum"]),
            "HIGHER_IS_BETTER": str(gate["higher_is_better"]).lower(),
            "CODE_REVISION": settings["code_revision"],
            "CLAIM_OWNER": host,
            **(
                {
                    "GATE_MARGIN": str(gate["margin"]),
                    "LIVE_VERSION": _live(job["model"], settings),
                }
                if gate["margin"] is not None
                else {}
            ),
            **(
                {
                    "DATA": _address(job["data"], settings["bucket"]),
                    "DATA_SHA256": job["data_sha256"],
                }
                if job["data"]
                else {}
            ),
        }
        specification = _specification(job, "training", file, images, settings, placeholders)
        if job["image"]:
            env["IMAGE_DIGEST"] = specification["image"].rsplit("@", 1)[-1]
        else:
            env["ENVIRONMENT_FINGERPRINT"] = settings["fingerprints"].get(
                job["conda_environment"], ""
            )
        specification.update(
            what=f"model {job['model']} version {job['version']}",
            command=job["command"] or [],
            code=job["code"] or "",
            directory=f"{settings['library']}/{_code(specification['id'])}" if job["code"] else "",
            env={**env, **specification["env"], **(job["env"] or {})},
            statuses=TRAINING_STATUSES,
            identity={"model": job["model"], "version": job["version"]},
            # Checkpoints outlive an attempt, a run and, on a data volume, the machine.
            keep_work=True,
        )
        specifications.append(specification)
    return specifications


def fleet_faults(jobs: Any, family: str, fleets: Iterable[str], file: str) -> list[str]:
    """Jobs whose fleet the environment has not, one line each: no host would run them.

    fleets: those of the environment; a job that names none belongs to the fleet of its family.
    """
    known = sorted(fleets)
    named = {
        name: str(job.get("fleet") or family)
        for name, job in (jobs.items() if isinstance(jobs, Mapping) else ())
        if isinstance(job, Mapping)
    }
    return [
        f"{file}: {family} job {name} is for fleet '{fleet}', which this environment has not."
        f"{nearest(fleet, known)}"
        for name, fleet in named.items()
        if fleet not in known
    ]


def library_files(
    jobs: Iterable[Mapping[str, Any]], packages: Mapping[str, str], library: str, root: str
) -> list[dict[str, str]]:
    """The Python files that a host needs for its jobs, as managed_files takes them.

    The runner's own part of our package; and for jobs in Conda environments all of ``packages``
    (name to the folder of the repository that holds it) and the jobs' own folders of code.
    """
    package = Path(root) / "plugins/module_utils/groundcrew"
    sources = {f"groundcrew/{name}": package / name for name in RUNNER_FILES}
    conda = [job for job in jobs if job.get("conda_environment")]
    if conda:
        folders = [(Path(root) / folder / name, name) for name, folder in packages.items()]
        folders += [
            (Path(root) / job["code"], _code(job["id"])) for job in conda if job.get("code")
        ]
        for folder, name in folders:
            sources.update(_python_files(folder, name))
    return [
        {"path": f"{library}/{name}", "content": path.read_text(encoding="utf-8")}
        for name, path in sorted(sources.items())
    ]


def _code(identifier: str) -> str:
    return f"code/{identifier}"


def _python_files(folder: Path, name: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise GroundcrewError(f"{folder} is no folder of this repository; correct code of the job")
    return {f"{name}/{path.relative_to(folder)}": path for path in folder.rglob("*.py")}


def _live(model: str, settings: Mapping[str, Any]) -> str:
    """The version that serves, if the store has it: in a new environment nothing was published yet."""
    version = settings["live"].get(model, "")
    return version if version in settings["published"].get(model, []) else ""


class _Fault:
    """Messages about one job."""

    def __init__(self, family: str, name: str, file: str) -> None:
        self._begin, self._end = f"{family} job {name}: ", f" Edit {file}."

    def __call__(self, message: str) -> GroundcrewError:
        return GroundcrewError(f"{self._begin}{message}{self._end}")


def _mine(
    jobs: Any,
    family: str,
    keys: Mapping[str, Any],
    file: str,
    peers: Mapping[str, Sequence[str]],
    host: str,
) -> list[dict[str, Any]]:
    """The checked jobs of one host. All are checked, whichever host has them."""
    if not isinstance(jobs, Mapping):
        raise GroundcrewError(
            f"{family}_jobs is a {type(jobs).__name__}; it has to be a map. Edit {file}."
        )
    names = sorted(jobs, key=str) if family == "batch" else list(jobs)
    checked = [_checked(str(name), jobs[name], family, keys, file) for name in names]
    mine = []
    first: dict[str, dict[str, Any]] = {}
    for job in checked:
        name, after = job["name"], job.get("after")
        if after is not None and after not in first:
            raise _Fault(family, name, file)(
                f"after is {after!r}; it has to be a job that is written above this one"
                f"{nearest(str(after), first) or '.'}"
            )
        # One that waits for another runs on the same host, and after it.
        first[name] = first[after] if after is not None else job
        members = sorted(peers.get(first[name]["fleet"], []))
        chosen = zlib.crc32(first[name]["name"].encode()) % max(1, len(members))
        if host in members and members[chosen] == host:
            mine.append(job)
    return mine


def _checked(
    name: str, raw: Any, family: str, keys: Mapping[str, Any], file: str
) -> dict[str, Any]:
    fault = _Fault(family, name, file)
    try:
        # No dots, which cron ignores files for.
        batch_store.check_job(name)
    except GroundcrewError as error:
        raise fault(f"{error}.") from error
    job = {**_given(raw, keys, fault), "name": name}
    try:
        job["model"] = model_store.check_model(str(job["model"]))
        if isinstance(job["version"], bool):
            raise GroundcrewError(
                f"version is {job['version']!r}; it has to be a whole number from 1"
            )
        job["version"] = str(job["version"])
        if not (family == "training" and job["version"] == "next"):
            model_store.check_version(job["version"])
    except GroundcrewError as error:
        raise fault(f"{error}.") from error
    if bool(job["image"]) == bool(job["conda_environment"]):
        raise fault(
            f"image is {job['image']!r} and conda_environment is {job['conda_environment']!r}; one of "
            "them says what the job runs in."
        )
    if job["schedule"] is not None and (message := schedule.fault(job["schedule"])):
        raise fault(message)
    if message := schedule.zone_fault(job["timezone"]):
        raise fault(f"timezone: {message}.")
    for key, lowest, highest, whole in _NUMBERS:
        value = job.get(key)
        kinds = (int,) if whole else (int, float)
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, kinds)
            or not lowest <= value <= highest
        ):
            kind = "whole number" if whole else "number"
            raise fault(
                f"{key} is {value!r}; it has to be a {kind} from {lowest:g} to {highest:g}."
            )
    for key, pattern, expected in _TEXTS:
        if key in job and (not isinstance(job[key], str) or not pattern.fullmatch(job[key])):
            raise fault(f"{key} is {job[key]!r}; it has to be {expected}.")
    if not isinstance(job.get("include_instances", False), bool):
        raise fault(
            f"include_instances is {job['include_instances']!r}; it has to be true or false."
        )
    return _checked_training(job, fault) if family == "training" else job


def _checked_training(job: dict[str, Any], fault: _Fault) -> dict[str, Any]:
    gate = job["gate"]
    if isinstance(gate, Mapping) and "accuracy" in gate:
        raise fault(
            f"gate.accuracy is now gate.minimum: write gate: {{metric: accuracy, minimum: {gate['accuracy']}}}."
        )
    gate = _given(gate, _GATE, lambda message: fault(f"gate: {message}"))
    for key in ("minimum", "margin"):
        value = gate[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise fault(f"gate.{key} is {value!r}; it has to be a number.")
    if gate["margin"] is not None and gate["margin"] < 0:
        raise fault(f"gate.margin is {gate['margin']!r}; it has to be 0 or more.")
    env = job["env"] or {}
    if not isinstance(env, Mapping) or not all(_VARIABLE.fullmatch(str(name)) for name in env):
        raise fault(f"env is {env!r}; it has to be a map of names of variables to text.")
    command = job["command"]
    if command is not None and (
        not isinstance(command, Sequence) or isinstance(command, str) or not command
    ):
        raise fault(f"command is {command!r}; it has to be a list of words.")
    if job["conda_environment"] and not command:
        raise fault("a job in a Conda environment needs a command, such as [python, train.py].")
    if job["code"] and not job["conda_environment"]:
        raise fault(
            f"code is {job['code']!r}; only a job in a Conda environment is given a folder of code."
        )
    return {
        **job,
        "gate": gate,
        "env": {str(name): str(value) for name, value in env.items()},
        "command": None if command is None else [str(word) for word in command],
    }


def _given(raw: Any, keys: Mapping[str, Any], fault: Any) -> dict[str, Any]:
    """What was written over the defaults. Raises for an unknown or a missing key."""
    if not isinstance(raw, Mapping):
        raise fault(f"it is {raw!r}; it has to be a map.")
    for key in raw:
        if key not in keys:
            raise fault(f"unknown key '{key}'.{nearest(str(key), keys)}")
    missing = [key for key, default in keys.items() if default is ... and raw.get(key) is None]
    if missing:
        raise fault(f"it lacks {', '.join(missing)}.")
    return {**keys, **{str(key): value for key, value in raw.items() if value is not None}}


def _specification(
    job: Mapping[str, Any],
    family: str,
    file: str,
    images: Mapping[str, str],
    settings: Mapping[str, Any],
    placeholders: bool,
) -> dict[str, Any]:
    """What every job's specification has.

    settings: bucket, env_file (what boto3 needs, on the host; "" for none), textfile_directory,
    work_directory, conda_root, library (where the host has the package), retry_delay_seconds and
    jitter_seconds.
    """
    name, conda = job["name"], job["conda_environment"]
    identifier = f"{family}-{name}"
    timeout = job["timeout_minutes"] * 60
    needs = []
    if settings["env_file"]:
        needs.append(
            {"path": settings["env_file"], "mend": "run playbooks/configure.yml, which writes it"}
        )
    specification: dict[str, Any] = {
        "id": identifier,
        "family": family,
        "name": name,
        "owner": job["owner"],
        "schedule": " ".join(job["schedule"].split()) if job["schedule"] else "",
        "timezone": job["timezone"],
        "memory": job["memory"].lower(),
        "cpus": job["cpus"],
        "gpus": job["gpus"],
        "timeout_seconds": timeout,
        "retries": job["retries"],
        "retry_delay_seconds": settings["retry_delay_seconds"],
        "jitter_seconds": settings["jitter_seconds"],
        "env_file": settings["env_file"],
        "env": {},
        "mounts": [],
        "needs": needs,
        "work": f"{settings['work_directory']}/{identifier}",
        "keep_work": False,
        "textfile": f"{settings['textfile_directory']}/groundcrew_job_{identifier}.prom",
    }
    if job["schedule"]:
        # Of the year, not of today: a specification must not change from one day to the next.
        year = datetime.now(timezone.utc).date().replace(month=1, day=1)
        gap = schedule.longest_gap(job["schedule"], job["timezone"], year)
        specification["late_after_seconds"] = int(
            gap.total_seconds() + timeout + settings["jitter_seconds"]
        )
        specification["cron"] = schedule.cron_fields(job["schedule"], job["timezone"], year)
    if conda:
        environment = f"{settings['conda_root']}/envs/{conda}"
        specification["conda_environment"] = environment
        specification["env"] = {"PYTHONPATH": settings["library"]}
        needs.append(
            {
                "path": environment,
                "mend": f"declare {conda} for this fleet in conda.yml and run playbooks/configure.yml",
            }
        )
    else:
        specification["image"] = _image(job, family, file, images, placeholders)
    return specification


def _image(
    job: Mapping[str, Any], family: str, file: str, images: Mapping[str, str], placeholders: bool
) -> str:
    image = str(job["image"])
    if "@sha256:" in image:
        return image
    if image not in images and not placeholders:
        raise _Fault(family, job["name"], file)(
            f"image '{image}' has no digest yet.{nearest(image, images)} Build and push it first."
        )
    return str(images.get(image, f"{image}@sha256:{'0' * 64}"))


def _address(location: str, bucket: str) -> str:
    return location if location.startswith("s3://") else f"s3://{bucket}/{location}"
