"""The client of the prediction service, which it reaches through the gateway."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from groundcrew.errors import GroundcrewError

CLASSES = 10
_MODEL_TIME = re.compile(r"\bmodel;dur=([0-9.]+)")


class PredictionError(Exception):
    """No usable answer. ``status`` is what the application answers with: 502, 503 or 504."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Prediction:
    """One answer: 10 probabilities, the version that gave them, and how long it took."""

    probabilities: list[float]
    version: str | None
    latency_ms: float  # the whole call, seen from here
    model_ms: float | None  # the model's share, from Server-Timing

    @property
    def digit(self) -> int:
        return max(range(CLASSES), key=self.probabilities.__getitem__)


class PredictionClient:
    """Keeps connections to the gateway open between requests; safe to use from many threads."""

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str,
        *,
        ca_file: Path | None = None,
        timeout_seconds: float = 5.0,
        connections: int = 16,
    ) -> None:
        options: dict[str, Any] = {}
        if url.startswith("https:"):
            options = {"cert_reqs": "CERT_REQUIRED", "ca_certs": ca_file and str(ca_file)}
        self._pool = urllib3.connection_from_url(
            url,
            maxsize=connections,
            retries=False,
            timeout=urllib3.Timeout(connect=min(2.0, timeout_seconds), read=timeout_seconds),
            **options,
        )
        self._path = f"/v1/models/{model}:predict"
        self._headers = {"Content-Type": "application/json", "X-Api-Key": api_key}

    def predict(self, instance: list[float], request_id: str) -> Prediction:
        """Predict one instance of 64 numbers. Raises PredictionError."""
        body = json.dumps({"instances": [instance]}).encode()
        started = time.perf_counter()
        response = self._post(body, {**self._headers, "X-Request-Id": request_id})
        latency_ms = (time.perf_counter() - started) * 1000
        if response.status != 200:
            raise _refusal(response.status, response.data)
        model_time = _MODEL_TIME.search(response.headers.get("Server-Timing", ""))
        return Prediction(
            probabilities=_probabilities(response.data),
            version=response.headers.get("X-Model-Version"),
            latency_ms=latency_ms,
            model_ms=float(model_time[1]) if model_time else None,
        )

    def _post(self, body: bytes, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            try:
                return self._pool.request("POST", self._path, body=body, headers=headers)
            except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ProtocolError):
                # Most often a kept connection that the gateway closed a moment ago. A prediction
                # has no effect on the server, so it is safe to ask again.
                return self._pool.request("POST", self._path, body=body, headers=headers)
        except urllib3.exceptions.NewConnectionError as error:  # in urllib3 a TimeoutError too
            raise PredictionError(502, "the prediction service cannot be reached") from error
        except urllib3.exceptions.TimeoutError as error:
            raise PredictionError(504, "the prediction service did not answer in time") from error
        except urllib3.exceptions.SSLError as error:
            raise PredictionError(502, "the gateway's certificate is not trusted") from error
        except urllib3.exceptions.HTTPError as error:
            raise PredictionError(502, "the prediction service cannot be reached") from error


def read_api_key(path: Path) -> str:
    """The key in a file, without the newline at its end. Raises GroundcrewError."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise GroundcrewError(f"API_KEY_FILE {path} cannot be read: {error}") from error
    if not key:
        raise GroundcrewError(f"API_KEY_FILE {path} is empty; it must hold a key of the gateway")
    return key


def _probabilities(data: bytes) -> list[float]:
    try:
        (values,) = json.loads(data)["predictions"]
        probabilities = [float(value) for value in values]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PredictionError(502, "the prediction service's answer is malformed") from error
    if len(probabilities) != CLASSES or not all(map(math.isfinite, probabilities)):
        raise PredictionError(502, f"the prediction service did not give {CLASSES} probabilities")
    return probabilities


def _refusal(status: int, data: bytes) -> PredictionError:
    if status == 504:
        return PredictionError(504, "the prediction service did not answer in time")
    if status == 429:
        return PredictionError(503, "too many predictions at once, try again in a moment")
    if status == 503:
        return PredictionError(503, "no prediction host is ready, try again in a moment")
    if status == 401:
        return PredictionError(502, "the gateway refuses this application's key")
    try:
        detail = str(json.loads(data)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        detail = "no reason given"
    return PredictionError(502, f"the prediction service answered {status}: {detail}")
