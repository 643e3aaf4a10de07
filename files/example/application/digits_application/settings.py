"""What the application reads from its environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from groundcrew.errors import GroundcrewError

GATEWAY, EMBEDDED = "gateway", "embedded"
_PREFIX = re.compile(r"/([A-Za-z0-9._~-]+/)*\Z")


@dataclass(frozen=True)
class Settings:
    """One field for each environment variable; the variable has the field's name in capitals.

    docs/your-own-application.md has them in a table.
    """

    model_name: str
    store_bucket: str
    batch_job: str
    prediction_mode: str = GATEWAY
    # With prediction_mode gateway.
    prediction_url: str = ""  # https://<address of the gateway>
    api_key_file: Path = Path("/run/secrets/api_key")
    prediction_ca_file: Path | None = None  # None: the system's certificate authorities
    prediction_timeout_seconds: float = 5.0
    circuit_failures: int = 5
    circuit_probe_seconds: float = 5.0
    stale_entries: int = 1000
    stale_seconds: float = 3600.0
    # With prediction_mode embedded.
    model_directory: Path | None = None  # /models/<name>/<version>
    model_manifest_sha256: str | None = None
    batch_poll_seconds: float = 10.0
    # The gateway takes bodies of up to 1 MiB (gateway_max_body_bytes).
    file_max_bytes: int = 1 << 20
    file_max_rows: int = 10_000
    file_batch_rows: int = 200
    file_jobs: int = 8
    file_patience_seconds: float = 120.0
    file_result_seconds: float = 900.0
    route_prefix: str = "/"
    host: str = "127.0.0.1"
    port: int = 8080

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Raises GroundcrewError when a variable is missing or is not what it should be."""

        def number(name: str, default: float, least: float = 0.0) -> float:
            text = environment.get(name) or str(default)
            try:
                value = float(text)
            except ValueError:
                value = -1.0
            if not least < value < float("inf"):
                raise GroundcrewError(f"{name} is {text!r}; it must be a number above {least:g}")
            return value

        def whole(name: str, default: int, least: int = 1) -> int:
            text = environment.get(name) or str(default)
            if not text.isascii() or not text.isdecimal() or int(text) < least:
                raise GroundcrewError(
                    f"{name} is {text!r}; it must be a whole number of {least} or more"
                )
            return int(text)

        mode = environment.get("PREDICTION_MODE") or cls.prediction_mode
        if mode not in (GATEWAY, EMBEDDED):
            raise GroundcrewError(
                f"PREDICTION_MODE is {mode!r}; it must be {GATEWAY} or {EMBEDDED}"
            )
        needed = "PREDICTION_URL" if mode == GATEWAY else "MODEL_DIRECTORY"
        required = (needed, "MODEL_NAME", "STORE_BUCKET", "BATCH_JOB")
        missing = [name for name in required if not environment.get(name)]
        if missing:
            raise GroundcrewError(
                f"{', '.join(missing)} not set; set it in the application's environment"
            )
        prefix = environment.get("ROUTE_PREFIX") or cls.route_prefix
        if not _PREFIX.match(prefix):
            raise GroundcrewError(
                f"ROUTE_PREFIX is {prefix!r}; it must begin and end with '/', such as /reports/"
            )
        ca_file = environment.get("PREDICTION_CA_FILE")
        directory = environment.get("MODEL_DIRECTORY")
        return cls(
            model_name=environment["MODEL_NAME"],
            store_bucket=environment["STORE_BUCKET"],
            batch_job=environment["BATCH_JOB"],
            prediction_mode=mode,
            prediction_url=environment.get("PREDICTION_URL") or cls.prediction_url,
            api_key_file=Path(environment.get("API_KEY_FILE") or cls.api_key_file),
            prediction_ca_file=Path(ca_file) if ca_file else None,
            prediction_timeout_seconds=number(
                "PREDICTION_TIMEOUT_SECONDS", cls.prediction_timeout_seconds
            ),
            circuit_failures=whole("CIRCUIT_FAILURES", cls.circuit_failures),
            circuit_probe_seconds=number("CIRCUIT_PROBE_SECONDS", cls.circuit_probe_seconds),
            stale_entries=whole("STALE_ENTRIES", cls.stale_entries, 0),
            stale_seconds=number("STALE_SECONDS", cls.stale_seconds),
            model_directory=Path(directory) if directory else None,
            model_manifest_sha256=environment.get("MODEL_MANIFEST_SHA256") or None,
            batch_poll_seconds=number("BATCH_POLL_SECONDS", cls.batch_poll_seconds),
            file_max_bytes=whole("FILE_MAX_BYTES", cls.file_max_bytes),
            file_max_rows=whole("FILE_MAX_ROWS", cls.file_max_rows),
            file_batch_rows=whole("FILE_BATCH_ROWS", cls.file_batch_rows),
            file_jobs=whole("FILE_JOBS", cls.file_jobs),
            file_patience_seconds=number("FILE_PATIENCE_SECONDS", cls.file_patience_seconds),
            file_result_seconds=number("FILE_RESULT_SECONDS", cls.file_result_seconds),
            route_prefix=prefix,
            host=environment.get("HOST") or cls.host,
            port=whole("PORT", cls.port),
        )
