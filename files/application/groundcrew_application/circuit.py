"""A circuit breaker: who has failed several times in a row is left alone for a while.

closed: everybody may ask. open: nobody may, so that a dead service costs no time. half_open: one caller asks as a probe, the others
still may not; its outcome closes or opens again. (M. Nygard, "Release It!", 2nd edition, chapter 5, "Circuit Breaker".)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"


@dataclass(frozen=True)
class Permit:
    """Leave to ask once. It counts only for the state that it was given in: the late end of a call that began before the circuit
    opened says nothing of how things are now."""

    generation: int


class CircuitBreaker:
    """Safe to use from many threads. Each permit is handed back once: ``succeeded``, ``failed`` or ``abandoned``."""

    def __init__(
        self,
        failures: int = 5,
        probe_seconds: float = 5.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[str], None] = lambda state: None,
    ) -> None:
        """failures: in a row, to open. probe_seconds: open for so long. changed: called with each new state, in the thread that
        brought it about."""
        self._most = failures
        self._probe_seconds = probe_seconds
        self._clock = clock
        self._changed = changed
        self._lock = threading.Lock()
        self._state = CLOSED
        self._generation = 0
        self._failures = 0
        self._opened = 0.0

    @property
    def state(self) -> str:
        """closed, open or half_open."""
        return self._state

    @property
    def probe_in_seconds(self) -> float:
        """How long nobody may ask; 0 when somebody may, or does already."""
        with self._lock:
            if self._state != OPEN:
                return 0.0
            return max(0.0, self._opened + self._probe_seconds - self._clock())

    def acquire(self) -> Permit | None:
        """Leave to ask, or None: then do not."""
        with self._lock:
            if self._state == CLOSED:
                return Permit(self._generation)
            if self._state == HALF_OPEN or self._clock() < self._opened + self._probe_seconds:
                return None
            self._enter(HALF_OPEN)
            permit = Permit(self._generation)
        self._changed(HALF_OPEN)
        return permit

    def succeeded(self, permit: Permit) -> None:
        """The service answered."""
        with self._lock:
            if permit.generation != self._generation:
                return
            self._failures = 0
            if self._state == CLOSED:
                return
            self._enter(CLOSED)
        self._changed(CLOSED)

    def failed(self, permit: Permit) -> None:
        """The service did not answer, or answered that it cannot."""
        with self._lock:
            if permit.generation != self._generation:
                return
            self._failures += 1
            if self._state == CLOSED and self._failures < self._most:
                return
            self._opened = self._clock()
            self._enter(OPEN)
        self._changed(OPEN)

    def abandoned(self, permit: Permit) -> None:
        """The call ended without telling anything of the service. A probe's place is free again at once."""
        with self._lock:
            if permit.generation != self._generation or self._state != HALF_OPEN:
                return
            self._enter(OPEN)
        self._changed(OPEN)

    def _enter(self, state: str) -> None:
        self._state = state
        self._generation += 1
        self._failures = 0
