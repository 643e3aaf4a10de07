"""Lets the deploy lock go when a run ends, however it ends."""

from __future__ import annotations

DOCUMENTATION = r"""
name: deploy_lock
type: aggregate
short_description: Let the deploy lock go when a run ends
description:
  - Gives the run a name that module deploy_lock takes the lock under, and lets it go at the end, after a failure too. A run that is killed
    lets nothing go; the next one on the same machine sees that its process is gone.
requirements: [enabled in ansible.cfg]
"""

import contextlib
import json
import os
import sys
from pathlib import Path

from ansible.plugins.callback import CallbackBase

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = str(_ROOT / "plugins/module_utils")


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "deploy_lock"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        if _PACKAGES not in sys.path:
            sys.path.append(_PACKAGES)
        from groundcrew.deploy_lock import run_of

        self._run = os.environ["GROUNDCREW_RUN"] = run_of(os.getpid())

    def v2_playbook_on_stats(self, stats: object) -> None:
        root = Path(os.environ.get("GROUNDCREW_ROOT") or _ROOT)
        for note in root.glob("build/*/deploy-lock.json"):
            with contextlib.suppress(OSError, ValueError):
                said = json.loads(note.read_text())
                if said["run"] == self._run:
                    self._release(said)
                    note.unlink()

    def _release(self, said: dict) -> None:  # type: ignore[type-arg]
        import boto3
        import botocore.exceptions
        from groundcrew.deploy_lock import release
        from groundcrew.errors import GroundcrewError

        os.environ.update(said["environment"])
        try:
            release(boto3.client("s3"), said["bucket"], self._run)
        except (
            GroundcrewError,
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
        ) as error:
            self._display.warning(f"the deploy lock was not let go: {error}")
