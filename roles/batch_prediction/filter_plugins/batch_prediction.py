"""From `batch_jobs:` as a team writes them to what a host is given.

Every refusal names the job, the key, its value, and the file to edit.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# Ansible offers module_utils of a repository to modules, not to plugins on the controller.
_PACKAGES = str(Path(__file__).resolve().parents[3] / "plugins" / "module_utils")
if _PACKAGES not in sys.path:
    sys.path.append(_PACKAGES)

from groundcrew import batch_store, model_store  # noqa: E402
from groundcrew.errors import GroundcrewError  # noqa: E402
from groundcrew.service_map import nearest  # noqa: E402

# Every key of a job and the value it has when it is left out; ... means that it has to be there.
KEYS: dict[str, Any] = {
    "image": ...,
    "model": ...,
    "version": ...,
    "input": ...,
    "schedule": ...,
    "fleet": "batch",
    "include_instances": False,
    "memory": "1g",
    "timeout_minutes": 60,
    "retries": 1,
    "owner": "",
    "chunk_rows": None,
}
_MEMORY = re.compile(r"[1-9][0-9]*[bkmg]", re.IGNORECASE)
_OWNER = re.compile(r"[A-Za-z0-9@._+ -]{0,80}")
_INPUT = re.compile(r"[^/\s][^\s]*")

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
# crontab(5): name, lowest, highest, and the words that stand for numbers.
_FIELDS: list[tuple[str, int, int, dict[str, int]]] = [
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
]


def schedule_fault(schedule: Any) -> str:
    """What cron would not accept about five fields as in crontab(5); "" when it would."""
    if not isinstance(schedule, str) or len(schedule.split()) != len(_FIELDS):
        return (
            f"schedule is {schedule!r}; it has to be five fields as in crontab(5), such as "
            '"30 2 * * *".'
        )
    for text, (name, lowest, highest, words) in zip(schedule.split(), _FIELDS, strict=True):
        for part in text.split(","):
            match = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/([0-9]+))?", part)
            numbers = [
                words.get(bound.lower(), bound)
                for bound in (match.groups()[:2] if match else ())
                if bound
            ]
            if (
                not match
                or any(
                    not str(number).isdecimal() or not lowest <= int(number) <= highest
                    for number in numbers
                )
                or sorted(map(int, numbers)) != list(map(int, numbers))
                # A step needs a range: cron reads 5/10 as 5.
                or (match[3] and (int(match[3]) == 0 or len(numbers) == 1))
            ):
                return (
                    f"schedule is {schedule!r}; '{part}' is no {name}: {lowest} to {highest}, *, "
                    "ranges and lists of them, and steps such as */5."
                )
    return ""


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
    """The jobs of one host: [{name, schedule, owner, spec}], sorted by name; spec is what the
    wrapper reads.

    file: what a person has to edit, for the messages. peers: fleet to its hosts; each job of a
    fleet runs on one of them, chosen by its name, so that several hosts share the jobs and none is
    run twice. images: name to reference by digest. manifests: model to version to the sha256 of its
    manifest. settings: bucket, model_directory, env_file, textfile_directory, retry_delay_seconds,
    jitter_seconds. placeholders stand in for an image and a manifest that a check run on a fresh
    host does not have. Raises AnsibleFilterError for the first fault.
    """
    if not isinstance(jobs, Mapping):
        raise AnsibleFilterError(
            f"batch_jobs is a {type(jobs).__name__}; it has to be a map. Edit {file}."
        )
    checked = [_job(str(name), jobs[name], file) for name in sorted(jobs, key=str)]
    mine = []
    for job in checked:
        members = sorted(peers.get(job["fleet"], []))
        if host in members and members[zlib.crc32(job["name"].encode()) % len(members)] == host:
            mine.append(job)
    return [_for_host(job, file, images, manifests, settings, placeholders) for job in mine]


def _job(name: str, raw: Any, file: str) -> dict[str, Any]:
    def fault(message: str) -> AnsibleFilterError:
        return AnsibleFilterError(f"batch job {name}: {message} Edit {file}.")

    try:
        # No dots, which cron ignores files for.
        batch_store.check_job(name)
        if not isinstance(raw, Mapping):
            raise fault(f"it is {raw!r}; it has to be a map.")
        for key in raw:
            if key not in KEYS:
                raise fault(f"unknown key '{key}'.{nearest(str(key), KEYS)}")
        missing = [key for key, default in KEYS.items() if default is ... and raw.get(key) is None]
        if missing:
            raise fault(f"it lacks {', '.join(missing)}.")
        job = {**KEYS, **{str(key): value for key, value in raw.items() if value is not None}}
        if isinstance(job["version"], bool):
            raise fault(f"version is {job['version']!r}; it has to be a whole number from 1.")
        job["version"] = str(job["version"])
        model_store.check_model(str(job["model"]))
        model_store.check_version(job["version"])
    except GroundcrewError as error:
        raise fault(f"{error}.") from error
    if message := schedule_fault(job["schedule"]):
        raise fault(message)
    for key, lowest, highest in (
        ("timeout_minutes", 1, 10080),
        ("retries", 0, 10),
        ("chunk_rows", 1, 10_000_000),
    ):
        value = job[key]
        if value is None and key == "chunk_rows":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise fault(
                f"{key} is {value!r}; it has to be a whole number from {lowest} to {highest}."
            )
    if not isinstance(job["include_instances"], bool):
        raise fault(
            f"include_instances is {job['include_instances']!r}; it has to be true or false."
        )
    for key, pattern, expected in (
        ("memory", _MEMORY, "a size such as 512m or 2g"),
        ("owner", _OWNER, "a name or an address: letters, digits, spaces and @._+-"),
        (
            "input",
            _INPUT,
            "a key of the store's bucket, such as data/digits.csv, or s3://<bucket>/<key>",
        ),
    ):
        if not isinstance(job[key], str) or not pattern.fullmatch(job[key]):
            raise fault(f"{key} is {job[key]!r}; it has to be {expected}.")
    return {**job, "name": name}


def _for_host(
    job: Mapping[str, Any],
    file: str,
    images: Mapping[str, str],
    manifests: Mapping[str, Mapping[str, str]],
    settings: Mapping[str, Any],
    placeholders: bool,
) -> dict[str, Any]:
    name, image, model, version = job["name"], str(job["image"]), str(job["model"]), job["version"]
    if "@sha256:" not in image:
        if image not in images and not placeholders:
            raise AnsibleFilterError(
                f"batch job {name}: image '{image}' has no digest yet.{nearest(image, images)} "
                f"Build and push it first, or edit {file}."
            )
        image = str(images.get(image, f"{image}@sha256:{'0' * 64}"))
    manifest = manifests.get(model, {}).get(version)
    if not manifest and not placeholders:
        raise AnsibleFilterError(
            f"batch job {name}: version {version} of model {model} was not fetched to this host. "
            f"Run the model_store role for it first, or edit {file}."
        )
    spec = {
        "job": name,
        "image": image,
        "model": model,
        "version": version,
        "manifest_sha256": manifest,
        "model_directory": f"{settings['model_directory']}/{model}/{version}",
        "bucket": settings["bucket"],
        "input": job["input"]
        if job["input"].startswith("s3://")
        else f"s3://{settings['bucket']}/{job['input']}",
        "include_instances": job["include_instances"],
        "chunk_rows": job["chunk_rows"],
        "memory": job["memory"].lower(),
        "timeout_seconds": job["timeout_minutes"] * 60,
        "retries": job["retries"],
        "retry_delay_seconds": settings["retry_delay_seconds"],
        "jitter_seconds": settings["jitter_seconds"],
        "owner": job["owner"],
        "env_file": settings["env_file"],
        "textfile": f"{settings['textfile_directory']}/groundcrew_batch_{name}.prom",
    }
    return {
        "name": name,
        "schedule": " ".join(job["schedule"].split()),
        "owner": job["owner"],
        "spec": _plain(spec),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, str) else value


class FilterModule:
    """Filters of this role."""

    def filters(self) -> dict[str, Any]:
        return {"batch_prediction_jobs": batch_jobs}
