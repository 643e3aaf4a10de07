"""Where the time of a run of several playbooks went: a line a play, at its end."""

from __future__ import annotations

DOCUMENTATION = r"""
name: phases
type: aggregate
short_description: Say where the time of a run went
description:
  - A line for each play that took a second or more, at the end of runs of several plays, such as deploy.yml and playbooks/rebuild.yml.
  - For programs the same is written as JSON to the file that the environment variable GROUNDCREW_PHASES names.
requirements: [enabled in ansible.cfg]
"""

import json
import os
import time
from pathlib import Path

from ansible.plugins.callback import CallbackBase

_FEWEST = 5


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "phases"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._began = self._last = time.monotonic()
        self._name = ""
        self._plays: list[tuple[str, float]] = []

    def v2_playbook_on_play_start(self, play: object) -> None:
        self._end()
        self._name = play.get_name().strip()  # type: ignore[attr-defined]

    def v2_playbook_on_stats(self, stats: object) -> None:
        self._end()
        if file := os.environ.get("GROUNDCREW_PHASES"):
            seconds = {name: round(took, 1) for name, took in self._plays}
            Path(file).write_text(json.dumps(seconds, indent=1) + "\n")
        if len(self._plays) < _FEWEST:
            return
        shown = [(name, took) for name, took in self._plays if took >= 1]
        width = max((len(name) for name, _ in shown), default=0)
        self._display.banner("SECONDS")
        for name, took in [*shown, ("all of it", time.monotonic() - self._began)]:
            self._display.display(f"{name.ljust(width)}  {took:6.1f}")

    def _end(self) -> None:
        now = time.monotonic()
        if self._name:
            self._plays.append((self._name, now - self._last))
        self._last = now
