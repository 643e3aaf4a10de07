"""How far a run is, in a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL_SECONDS = 5.0


class Progress:
    """Says how much of ``total`` bytes is done, how fast, and for how long it will go on."""

    def __init__(
        self,
        say: Callable[[str], None],
        total: int,
        verb: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._total, self._verb, self._clock = say, total, verb, clock
        self._started = self._said = clock()
        self._done = self._rows = 0

    def expect(self, size: int) -> None:
        """The total, when nobody knew it before."""
        self._total = self._total or size

    def add(self, size: int, rows: int = 0) -> None:
        """``size`` more bytes of the input, which held ``rows`` rows."""
        self._done += size
        self._rows += rows
        now = self._clock()
        if now - self._said >= INTERVAL_SECONDS:
            self._said = now
            self._say(self._line(now - self._started))

    def _line(self, seconds: float) -> str:
        share = min(1.0, self._done / self._total) if self._total else 0.0
        if self._rows:
            what = f"{self._rows} rows, {self._rows / seconds:.0f} rows/s"
        else:
            what = f"{self._done} bytes, {self._done / seconds / 1e6:.1f} MB/s"
        left = f", {seconds * (1 - share) / share:.0f} s left" if share else ""
        return f"{self._verb} {share:.1%}: {what}{left}"
