"""Where channels are: a lock has names only, one variable maps them to addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import GroundcrewError

VARIABLE = "`conda_channels` (inventories/shared/group_vars/all/conda.yml)"


def address(channel: str, channels: Mapping[str, str]) -> str:
    """The address of a channel, without a slash at its end; a folder becomes a file:// address.

    Raises GroundcrewError: the channel is not mapped.
    """
    if channel not in channels:
        known = ", ".join(sorted(channels)) or "none"
        raise GroundcrewError(
            f"Channel '{channel}' has no address. Add it to {VARIABLE}; mapped are: {known}."
        )
    found = str(channels[channel]).rstrip("/")
    return Path(found).as_uri() if found.startswith("/") else found


def without_secrets(text: str) -> str:
    """The same text without the passwords and tokens that addresses in it carry."""
    text = re.sub(r"(://)[^/\s@]+@", r"\1…@", text)
    return re.sub(r"(/t/)[^/\s]+", r"\1…", text)
