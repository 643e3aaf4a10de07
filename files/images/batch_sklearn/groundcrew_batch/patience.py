"""How long the job bears with a store that is slow, throttles or breaks off.

boto3 repeats a request by itself a few times within seconds; this is for what lasts a little longer,
and for bodies that break off, which boto3 does not repeat. What lasts longer still ends the run: the
next attempt keeps the chunks that are finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
import urllib3.exceptions

# What reading or asking raises when the connection is at fault. A missing parameter, a missing
# credential and the like are BotoCoreErrors too, and no patience mends them.
TRANSIENT = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)
_STATUSES = (429, 500, 502, 503, 504)
_PATIENT = frozenset({"get_object", "put_object", "list_objects_v2"})


@dataclass(frozen=True)
class Patience:
    """Seconds to wait before each further attempt."""

    pauses: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    sleep: Callable[[float], None] = time.sleep

    @property
    def attempts(self) -> int:
        return len(self.pauses) + 1

    def tries(self) -> Tries:
        return Tries(self)

    def passes(self, error: Exception) -> bool:
        """Whether the same request may succeed a little later."""
        if isinstance(error, TRANSIENT):
            return True
        response = getattr(error, "response", None)
        status = isinstance(response, dict) and response.get("ResponseMetadata", {}).get(
            "HTTPStatusCode"
        )
        return status in _STATUSES


class Tries:
    """Counts the attempts of one request."""

    def __init__(self, patience: Patience) -> None:
        self._patience, self._left = patience, list(patience.pauses)

    def again(self) -> bool:
        """Wait before the next attempt; False when there is none."""
        if not self._left:
            return False
        self._patience.sleep(self._left.pop(0))
        return True


class PatientClient:
    """An S3 client whose small requests are repeated when they fail for a reason that passes.

    A conditional write whose answer was lost loses against itself: callers compare what is stored.
    """

    def __init__(self, client: Any, patience: Patience) -> None:
        self._client, self._patience = client, patience

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name not in _PATIENT:
            return found

        def call(**keywords: Any) -> Any:
            tries = self._patience.tries()
            while True:
                try:
                    return found(**keywords)
                except Exception as error:
                    if not self._patience.passes(error) or not tries.again():
                        raise

        return call
