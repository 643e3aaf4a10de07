"""Which hosts have which Conda environment: `conda_environments:` of an inventory."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import GroundcrewError
from .lock import check_name

KEYS = ("fleets",)


def names(
    environments: Mapping[str, Any],
    fleets: Collection[str],
    file: str = "conda.yml",
    known: Collection[str] = (),
) -> list[str]:
    """The environments that hosts of these fleets have; all of them are checked, against the ``known`` fleets where these are given.

    Raises GroundcrewError: an entry has a key that nobody reads, no fleets, or one that there is not.
    """
    wanted = []
    for name, entry in environments.items():
        check_name(name)
        entry = entry or {}
        for key in entry:
            if key not in KEYS:
                near = difflib.get_close_matches(key, KEYS, 1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise GroundcrewError(
                    f"conda_environments.{name} has the unknown key '{key}'.{hint} Known: {', '.join(KEYS)}. Edit {file}."
                )
        if not isinstance(entry.get("fleets"), list) or not entry["fleets"]:
            raise GroundcrewError(
                f"conda_environments.{name} says no fleets, but {entry.get('fleets')!r}. Write, in {file}:"
                f" {name}: {{fleets: [batch]}}"
            )
        for fleet in entry["fleets"]:
            if known and fleet not in known:
                near = difflib.get_close_matches(str(fleet), known, 1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise GroundcrewError(
                    f"conda_environments.{name} names the fleet '{fleet}', which has no host.{hint}"
                    f" Fleets: {', '.join(sorted(known))}. Edit {file}."
                )
        if set(entry["fleets"]) & set(fleets):
            wanted.append(name)
    return wanted
