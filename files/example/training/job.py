"""What every job that publishes a model version has in common.

A job claims its version, builds, passes the gate and publishes; when it ends without publishing it
gives the claim back. Progress goes to standard output; its last line is a JSON object with model,
version, accuracy and manifest_sha256. Exit status: 0 published, 2 could not start or publish (a
version that is taken, for example), 3 refused by the gate.

Environment: MODEL_NAME, MODEL_VERSION and STORE_BUCKET; GATE_ACCURACY (0.95), SEED (0),
CODE_REVISION, IMAGE_DIGEST and CLAIM_OWNER (the host's name) may be left out.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from groundcrew import model_store, objects
from groundcrew.errors import GroundcrewError

FAILED, REFUSED = 2, 3


class Refused(Exception):
    """The model is not good enough to be published."""


@dataclass(frozen=True)
class Settings:
    """What the environment says; see the module's docstring."""

    model: str
    version: str
    bucket: str
    gate_accuracy: float = 0.95
    seed: int = 0
    code_revision: str | None = None
    image_digest: str | None = None
    owner: str = ""

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Raises GroundcrewError that names the variable."""
        model, version, bucket = required(env, "MODEL_NAME", "MODEL_VERSION", "STORE_BUCKET")
        gate, seed = env.get("GATE_ACCURACY") or "0.95", env.get("SEED") or "0"
        try:
            gate_accuracy = float(gate)
        except ValueError:
            gate_accuracy = -1.0
        if not 0 <= gate_accuracy <= 1:
            raise GroundcrewError(f"GATE_ACCURACY is {gate!r}; it must be a number from 0 to 1")
        if not seed.isdecimal() or int(seed) >= 2**32:
            raise GroundcrewError(f"SEED is {seed!r}; it must be a whole number below 2^32")
        return cls(
            model=model_store.check_model(model),
            version=model_store.check_version(version),
            bucket=bucket,
            gate_accuracy=gate_accuracy,
            seed=int(seed),
            code_revision=env.get("CODE_REVISION") or None,
            image_digest=env.get("IMAGE_DIGEST") or None,
            owner=env.get("CLAIM_OWNER") or socket.gethostname(),
        )


def required(env: Mapping[str, str], *names: str) -> list[str]:
    """The values of these variables. Raises GroundcrewError that names those that are not set."""
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise GroundcrewError(f"{', '.join(missing)} must be set in the job's environment")
    return [env[name] for name in names]


@dataclass
class Job:
    """A job whose version is claimed; what is in ``directory`` at the end is published."""

    settings: Settings
    client: Any
    directory: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return f"{self.settings.model} version {self.settings.version}"

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def gate(self, accuracy: float) -> None:
        """Raises Refused when the accuracy on the held-out images is below the gate's."""
        if not accuracy >= self.settings.gate_accuracy:
            raise Refused(
                f"accuracy {accuracy:.4f} on the held-out images is below the gate of "
                f"{self.settings.gate_accuracy:g}. Nothing was published. Mend the data or the "
                "training, or lower GATE_ACCURACY if that is accurate enough"
            )

    def write_golden(self, cases: list[dict[str, Any]], tolerance: float) -> None:
        document = {"cases": cases, "tolerance": tolerance}
        (self.directory / model_store.GOLDEN).write_bytes(objects.to_json(document))


# Fills the job's directory; returns the manifest but for the files, which publishing adds.
Build = Callable[[Job], dict[str, Any]]


def run(settings: Settings, client: Any, build: Build) -> dict[str, Any]:
    """Build and publish; the result for the last line. Raises Refused.

    The version is claimed before anything is computed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(settings, client, Path(scratch))
        held = model_store.claim(
            client, settings.bucket, settings.model, settings.version, settings.owner
        )
        job.say(f"claimed {job.name} in s3://{settings.bucket}")
        published = False
        try:
            manifest = {
                **build(job),
                "image": settings.image_digest,
                "code_revision": settings.code_revision,
            }
            digest = model_store.publish(client, settings.bucket, held, job.directory, manifest)
            published = True
            job.say(f"published {job.name}")
        finally:
            if not published:
                model_store.release(client, settings.bucket, held)
    return {
        "model": settings.model,
        "version": settings.version,
        "accuracy": round(manifest["metrics"]["accuracy"], 4),
        "manifest_sha256": digest,
    }


def main(build: Build) -> int:
    """The whole program: environment, store, build, publish; returns the exit status."""
    signal.signal(signal.SIGTERM, _stop)
    name = "the model"
    try:
        settings = Settings.from_environment(os.environ)
        name = f"{settings.model} version {settings.version}"
        with objects.readable_errors(settings.bucket):
            result = run(settings, objects.open_client(), build)
    except GroundcrewError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED
    except Refused as refusal:
        print(f"error: {name} is refused: {refusal}", file=sys.stderr, flush=True)
        return REFUSED
    print(json.dumps(result), flush=True)
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # An exception, so that the claim is given back on the way out.
    raise SystemExit(143)
