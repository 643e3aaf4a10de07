"""What the environment says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from groundcrew import model_store
from groundcrew.errors import GroundcrewError


@dataclass(frozen=True)
class Settings:
    """One model version to serve.

    MODEL_NAME and MODEL_VERSION are required. MODEL_DIRECTORY is /models/<name>/<version> by
    default; MODEL_MANIFEST_SHA256, when given, must be that of its manifest. PORT (8080) on every
    address of the container; WORKERS (1) processes; MAX_BODY_BYTES (1 MiB) a request.
    """

    model: str
    version: str
    directory: Path
    manifest_sha256: str | None = None
    port: int = 8080
    workers: int = 1
    max_body_bytes: int = 1 << 20

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Raises GroundcrewError that names the variable and its value."""
        for name in ("MODEL_NAME", "MODEL_VERSION"):
            if not env.get(name):
                raise GroundcrewError(f"{name} must be set in the service's environment")
        model = model_store.check_model(env["MODEL_NAME"])
        version = model_store.check_version(env["MODEL_VERSION"])
        return cls(
            model=model,
            version=version,
            directory=Path(env.get("MODEL_DIRECTORY") or f"/models/{model}/{version}"),
            manifest_sha256=env.get("MODEL_MANIFEST_SHA256") or None,
            port=_whole_number(env, "PORT", 8080, 1, 65535),
            workers=_whole_number(env, "WORKERS", 1, 1, 256),
            max_body_bytes=_whole_number(env, "MAX_BODY_BYTES", 1 << 20, 1, 1 << 30),
        )


def _whole_number(
    env: Mapping[str, str], name: str, default: int, lowest: int, highest: int
) -> int:
    text = env.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or not lowest <= int(text) <= highest:
        raise GroundcrewError(
            f"{name} is {text!r}; it must be a whole number from {lowest} to {highest}"
        )
    return int(text)
