"""Machine images (AMIs) pinned in the inventory: which ones an environment wants, what AWS answered, how old the pins are.

A source is {parameter, support_end, description}: `parameter` is the path of an AWS Systems Manager parameter whose value is an
AMI id, `support_end` a date. A pin is {id, name, date, support_end}: `date` is when the image was made. Dates are YYYY-MM-DD.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from .errors import GroundcrewError

DEFAULT = "ubuntu"
OLD_AFTER_DAYS = 60
WARN_BEFORE_END_DAYS = 60
COMMAND = "ansible-playbook playbooks/pin_ami.yml -l"
# What was baked of a fleet's host is pinned under this and the fleet's name; it is used by that fleet in place of its own image.
BAKED = "baked_"
KEYS = ("id", "name", "date", "support_end")

Pin = dict[str, str]
# YAML reads an unquoted 2026-01-31 as a date.
Date = Union[str, datetime.date]


def wanted(
    fleets: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Mapping[str, Any]],
    only: str = "",
    directory: str = "",
) -> list[str]:
    """Names of the images to ask AWS for, sorted: those that the fleets use, or `only` one of them.

    fleets: fleet -> its data, of which `machine_image` is read (left out: ubuntu). directory: the environment's group_vars, for the
    message. Raises GroundcrewError for a name that is not in sources, and for an `only` that no fleet uses.
    """
    if not sources:
        raise GroundcrewError(
            "machine_image_sources is empty: this environment has no machine images to pin. Environments of a real account get them "
            "from inventories/shared/group_vars/aws/machine_images.yml; put yours below `aws` in inventories/shared/groups.yml."
        )
    known = ", ".join(sorted(sources))
    where = f"{directory}/fleet.yml" if directory else "the environment's fleet.yml"
    used: dict[str, list[str]] = {}
    for fleet, data in fleets.items():
        used.setdefault(str((data or {}).get("machine_image") or DEFAULT), []).append(str(fleet))
    for name, users in sorted(used.items()):
        if name not in sources:
            raise GroundcrewError(
                f"Fleet {users[0]} has machine_image: {name}, which is not in machine_image_sources. Known are {known}. "
                f"Correct it in {where}, or add {name} to machine_image_sources."
            )
    if not only:
        return sorted(used)
    if only not in sources:
        raise GroundcrewError(
            f"machine_image is {only}, which is not in machine_image_sources. Known are {known}."
        )
    if only not in used:
        raise GroundcrewError(
            f"machine_image is {only}, which no fleet uses. Used are {', '.join(sorted(used))}. "
            f"Write machine_image: {only} at a fleet in {where}, then run this again."
        )
    return [only]


def parameters(names: Iterable[str], sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The parameter path of each name's source. Raises GroundcrewError for a source that lacks a key or has no date."""
    paths = []
    for name in names:
        source = sources[name]
        for key in ("parameter", "support_end"):
            if not source.get(key):
                raise GroundcrewError(
                    f"machine_image_sources: {name} lacks {key}. A source is {{parameter: /path, support_end: YYYY-MM-DD, description}}."
                )
        _date(source["support_end"], f"machine_image_sources: support_end of {name}")
        paths.append(str(source["parameter"]))
    return paths


def ids(paths: Sequence[str], values: Sequence[Any], region: str) -> list[str]:
    """The AMI id that each parameter holds. values: what AWS answered, None for a parameter that does not exist.

    Raises GroundcrewError for such a one, with the command that lists what exists, and for a value that is no AMI id.
    """
    for path, value in zip(paths, values):
        if not value:
            # The part of a public path that names publisher, system and architecture: deep enough for a short list.
            below = "/" + "/".join(path.strip("/").split("/")[:-1][:5])
            raise GroundcrewError(
                f"Systems Manager has no parameter {path} in {region}. List what there is: aws ssm get-parameters-by-path --recursive "
                f"--region {region} --path {below} --query 'Parameters[].Name'. Then correct `parameter` in machine_image_sources."
            )
        if not re.fullmatch(r"ami-[0-9a-f]{8,17}", str(value)):
            raise GroundcrewError(
                f"Parameter {path} holds {str(value)[:60]!r}, which is no AMI id. "
                "Name one that ends in ami-id or image_id in machine_image_sources."
            )
    return [str(value) for value in values]


def pins(
    names: Sequence[str],
    image_ids: Sequence[str],
    images: Iterable[Mapping[str, Any]],
    sources: Mapping[str, Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any]],
) -> dict[str, Pin]:
    """The new pins, by name: those of `names` as AWS describes them, those of `kept` as they are.

    images: image_id, name and creation_date (ISO 8601) of each, as module amazon.aws.ec2_ami_info returns them.
    Raises GroundcrewError for an id that EC2 does not know.
    """
    found = {str(image["image_id"]): image for image in images}
    result = {str(name): {key: str(pin.get(key, "")) for key in KEYS} for name, pin in kept.items()}
    for name, image_id in zip(names, image_ids):
        if image_id not in found:
            raise GroundcrewError(
                f"EC2 does not show {image_id}, to which {sources[name]['parameter']} points: the parameter and the image must be of one "
                "region, and an image that somebody shares must be shared with this account."
            )
        image = found[image_id]
        result[name] = {
            "id": image_id,
            "name": str(image.get("name") or ""),
            "date": str(image["creation_date"])[:10],
            "support_end": str(sources[name]["support_end"]),
        }
    return dict(sorted(result.items()))


def render(pinned: Mapping[str, Mapping[str, str]], environment: str) -> str:
    """The text of inventories/<environment>/group_vars/<environment>/machine_images.yml. One value a line: a diff then shows the old and
    the new one below the image's name."""
    lines = [
        f"# Generated by: {COMMAND} {environment}",
        "# Machine images that new and rebuilt hosts start from. Do not edit: run that command again when a deploy says that a pin is old,",
        "# when a fleet names another machine_image, or when the region changed; then commit this file.",
        "machine_images:" if pinned else "machine_images: {}",
    ]
    for name, pin in sorted(pinned.items()):
        lines.append(f"  {name}:")
        # A JSON string is a YAML string. Only what cannot be read as anything else goes without quotes.
        lines += [f"    {key}: {pin[key] if key == 'id' else json.dumps(pin[key])}" for key in KEYS]
    return "\n".join(lines) + "\n"


def warnings(
    machine_images: Mapping[str, Mapping[str, Any]],
    today: Date,
    environment: str = "<environment>",
) -> list[str]:
    """A line for each pin that is more than 60 days old, and for each whose support ended or ends in 60 days or less.

    machine_images: name -> pin. today: a date, or YYYY-MM-DD with anything after it. Raises GroundcrewError for what is no date.
    """
    now = _date(today, "today")
    lines = []
    for name, pin in sorted(machine_images.items()):
        age = (now - _date(pin.get("date"), f"machine_images: date of {name}")).days
        end = _date(pin.get("support_end"), f"machine_images: support_end of {name}")
        left = (end - now).days
        what = f"Machine image {name} ({pin.get('id', '?')})"
        if name.startswith(BAKED):
            if age > OLD_AFTER_DAYS:
                again = "ansible-playbook playbooks/bake.yml -l <a host of that fleet>"
                lines.append(f"{what} is {age} days old. Bake it again: {again}")
            continue
        if age > OLD_AFTER_DAYS:
            lines.append(
                f"{what} is {age} days old, its updates too. Pin today's: {COMMAND} {environment}"
            )
        if left <= WARN_BEFORE_END_DAYS:
            when = f"ended {-left} days ago" if left < 0 else f"ends in {left} days"
            lines.append(
                f"{what}: support {when}, on {end}. Give the fleet another machine_image, or {name} a newer parameter in "
                f"machine_image_sources, then: {COMMAND} {environment}"
            )
    return lines


def _date(value: Any, what: str) -> datetime.date:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(str(value)[:10])
    except ValueError:
        raise GroundcrewError(
            f"{what} is {value!r}: write a date as YYYY-MM-DD, in quotes."
        ) from None
