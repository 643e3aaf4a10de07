"""What the application reads from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from groundcrew.errors import GroundcrewError


@dataclass(frozen=True)
class Settings:
    """One field for each environment variable; the variable has the field's name in capitals."""

    prediction_url: str  # https://<address of the gateway>
    api_key_file: Path
    model_name: str
    store_bucket: str
    batch_job: str
    prediction_ca_file: Path | None = None  # None: the system's certificate authorities
    prediction_timeout_seconds: float = 5.0
    batch_poll_seconds: float = 10.0
    host: str = "127.0.0.1"
    port: int = 8080

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Raises GroundcrewError when a variable is missing or is not the number it should be."""
        required = ("PREDICTION_URL", "MODEL_NAME", "STORE_BUCKET", "BATCH_JOB")
        missing = [name for name in required if not environment.get(name)]
        if missing:
            raise GroundcrewError(
                f"{', '.join(missing)} not set; set it in the application's environment"
            )

        def number(name: str, default: float) -> float:
            text = environment.get(name) or str(default)
            try:
                value = float(text)
            except ValueError:
                value = 0.0
            if not 0 < value < float("inf"):
                raise GroundcrewError(f"{name} is {text!r}; it must be a number above 0")
            return value

        ca_file = environment.get("PREDICTION_CA_FILE")
        return cls(
            prediction_url=environment["PREDICTION_URL"],
            prediction_ca_file=Path(ca_file) if ca_file else None,
            prediction_timeout_seconds=number(
                "PREDICTION_TIMEOUT_SECONDS", cls.prediction_timeout_seconds
            ),
            api_key_file=Path(environment.get("API_KEY_FILE") or "/run/secrets/api_key"),
            model_name=environment["MODEL_NAME"],
            store_bucket=environment["STORE_BUCKET"],
            batch_job=environment["BATCH_JOB"],
            batch_poll_seconds=number("BATCH_POLL_SECONDS", cls.batch_poll_seconds),
            host=environment.get("HOST") or cls.host,
            port=int(number("PORT", cls.port)),
        )
