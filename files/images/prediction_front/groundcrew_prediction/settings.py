"""What the environment says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from groundcrew import model_store
from groundcrew.errors import GroundcrewError


@dataclass(frozen=True)
class Backend:
    """The unmodified model server that this one stands before.

    BACKEND_PATH, when given, makes it so; BACKEND_HOST (127.0.0.1) and BACKEND_PORT; instances are
    posted as BACKEND_REQUEST_KEY (instances), predictions found in BACKEND_RESPONSE_KEY
    (predictions), within BACKEND_TIMEOUT_SECONDS (30).
    """

    url: str
    request_key: str
    response_key: str
    timeout_seconds: int


@dataclass(frozen=True)
class Settings:
    """One model version to serve.

    MODEL_NAME and MODEL_VERSION are required. MODEL_DIRECTORY is /models/<name>/<version> by
    default; MODEL_MANIFEST_SHA256, when given, must be that of its manifest. PORT (8080) on every
    address of the container; WORKERS (1) processes; MAX_BODY_BYTES (1 MiB) and MAX_INSTANCES (1000)
    a request; MAX_QUEUE (256) requests at a time in a process.
    """

    model: str
    version: str
    directory: Path
    manifest_sha256: str | None = None
    port: int = 8080
    workers: int = 1
    max_body_bytes: int = 1 << 20
    max_instances: int = 1000
    max_queue: int = 256
    backend: Backend | None = None

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
            max_instances=_whole_number(env, "MAX_INSTANCES", 1000, 1, 1 << 30),
            max_queue=_whole_number(env, "MAX_QUEUE", 256, 1, 1 << 20),
            backend=_backend(env) if env.get("BACKEND_PATH") else None,
        )


def _backend(env: Mapping[str, str]) -> Backend:
    path = env["BACKEND_PATH"]
    if not path.startswith("/"):
        raise GroundcrewError(f"BACKEND_PATH is {path!r}; it must start with '/'")
    port = _whole_number(env, "BACKEND_PORT", 8080, 1, 65535)
    return Backend(
        url=f"http://{env.get('BACKEND_HOST') or '127.0.0.1'}:{port}{path}",
        request_key=env.get("BACKEND_REQUEST_KEY") or "instances",
        response_key=env.get("BACKEND_RESPONSE_KEY") or "predictions",
        timeout_seconds=_whole_number(env, "BACKEND_TIMEOUT_SECONDS", 30, 1, 3600),
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
