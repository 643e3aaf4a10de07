"""The endpoints, through Flask's test client, with a real prediction client and reloader."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from application_support import BUCKET, JOB, PROBABILITIES, Gateway, write_run
from digits_application import app as application
from digits_application.batch import BatchReloader
from digits_application.logs import JsonFormatter, log, logger
from digits_application.prediction import PredictionClient
from digits_application.settings import Settings
from flask.testing import FlaskClient
from groundcrew.errors import GroundcrewError

INSTANCE = [0.0] * 32 + [16] * 32


@pytest.fixture
def reloader(store: Any) -> BatchReloader:
    return BatchReloader(store, BUCKET, JOB, poll_seconds=10)


@pytest.fixture
def client(gateway: Gateway, reloader: BatchReloader) -> FlaskClient:
    prediction = PredictionClient(gateway.url, "digits", "key")
    return application.build_app("digits", prediction, reloader).test_client()


def test_page(client: FlaskClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "<canvas" in answer.text and "digits" in answer.text
    assert "http://" not in answer.text and "https://" not in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["page.js", "page.css", "icon.svg"])
def test_static_files(client: FlaskClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 200


def test_predict(client: FlaskClient, gateway: Gateway) -> None:
    answer = client.post(
        "/api/predict", json={"instance": INSTANCE}, headers={"X-Request-Id": "from-the-gateway"}
    )
    assert answer.status_code == 200
    body = answer.get_json()
    assert body.pop("latency_ms") > 0
    assert body == {
        "digit": 7,
        "probabilities": PROBABILITIES,
        "model": "digits",
        "version": "3",
        "model_ms": 1.25,
        "request_id": "from-the-gateway",
    }
    assert answer.headers["X-Request-Id"] == "from-the-gateway"
    assert gateway.requests[0][1]["X-Request-Id"] == "from-the-gateway"


def test_a_bad_request_id_is_replaced(client: FlaskClient) -> None:
    answer = client.get("/healthz", headers={"X-Request-Id": 'a "b"'})
    assert len(answer.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "could not understand"),
        (b"", "could not understand"),
        (b"[" * 60_000, "nested too deeply"),
        (b"[]", "the body must be"),
        (b"{}", "the body must be"),
        (b'{"instance": "7"}', "the body must be"),
        (json.dumps({"instance": [0] * 63}), "63 numbers, it must have 64"),
        (json.dumps({"instance": [0] * 65}), "65 numbers, it must have 64"),
        (json.dumps({"instance": [0] * 5 + ["1"] + [0] * 58}), r"instance\[5\]"),
        (json.dumps({"instance": [True] + [0] * 63}), r"instance\[0\]"),
        (json.dumps({"instance": [None] + [0] * 63}), r"instance\[0\]"),
        (json.dumps({"instance": [0] * 63 + [float("nan")]}), r"instance\[63\]"),
        (json.dumps({"instance": [float("inf")] + [0] * 63}), r"instance\[0\]"),
        (json.dumps({"instance": [-0.1] + [0] * 63}), r"instance\[0\]"),
        (json.dumps({"instance": [16.1] + [0] * 63}), r"instance\[0\]"),
        (json.dumps({"instance": [10**400] + [0] * 63}), r"instance\[0\]"),
        (b'{"instance": [' + b"9" * 5000 + b"]}", "could not understand|1 numbers"),
        (b"\xff\xfe", "could not understand"),
    ],
)
def test_bad_instances(
    client: FlaskClient, gateway: Gateway, body: bytes | str, message: str
) -> None:
    answer = client.post("/api/predict", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json is not None
    assert re.search(message, answer.json["error"])
    assert gateway.requests == []


def test_bodies_have_a_limit(client: FlaskClient) -> None:
    answer = client.post("/api/predict", data=b" " * 70_000)
    assert answer.status_code == 413
    assert answer.json is not None and "error" in answer.json


def test_other_paths_and_methods(client: FlaskClient) -> None:
    for answer, status in ((client.get("/nothing"), 404), (client.get("/api/predict"), 405)):
        assert answer.status_code == status
        assert answer.json is not None and "error" in answer.json


def test_prediction_is_down_and_the_page_stays_up(client: FlaskClient, gateway: Gateway) -> None:
    gateway.status, gateway.body = 503, {"error": "no server"}
    answer = client.post("/api/predict", json={"instance": INSTANCE})
    assert answer.status_code == 503
    assert answer.json == {"error": "no prediction host is ready, try again in a moment"}
    assert client.get("/").status_code == 200
    assert client.get("/healthz").json == {"status": "ok"}


def test_a_bug_is_a_json_500_with_a_logged_traceback(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PredictionClient, "predict", lambda *_: 1 / 0)
    answer = client.post("/api/predict", json={"instance": INSTANCE})
    assert answer.status_code == 500
    assert answer.json == {"error": "internal error"}
    assert "ZeroDivisionError" in caplog.text


def test_batch(client: FlaskClient, store: Any, reloader: BatchReloader) -> None:
    assert client.get("/api/batch").json == {"run": None, "items": []}
    write_run(store, "20260131T040506Z")
    reloader.reload()
    answer = client.get("/api/batch").json
    assert answer is not None
    assert answer["run"] == "20260131T040506Z"
    assert (answer["rows"], answer["rejected"], answer["model_version"]) == (6, 1, "3")
    assert answer["age_seconds"] >= 0 and answer["finished"].endswith("Z")
    assert answer["items"][0]["digit"] == 7


def test_metrics(
    client: FlaskClient, gateway: Gateway, store: Any, reloader: BatchReloader
) -> None:
    assert "application_batch_age_seconds NaN" in client.get("/metrics").text
    write_run(store, "20260131T040506Z")
    reloader.reload()
    client.post("/api/predict", json={"instance": INSTANCE})
    gateway.status = 503
    client.post("/api/predict", json={"instance": INSTANCE})
    client.get("/made/up")
    text = client.get("/metrics").text
    counted = 'application_requests_total{method="POST",route="/api/predict",status="200"} 1.0'
    assert counted in text
    assert 'application_prediction_errors_total{status="503"} 1.0' in text
    assert 'route="unknown"' in text and "/made/up" not in text
    assert "application_batch_age_seconds 0" in text or "application_batch_age_seconds 1" in text
    assert "application_batch_reload_failures 0.0" in text


def test_logs_are_one_line_of_json_each(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "digits_application"):
        client.get("/nothing\n", headers={"X-Request-Id": "abc"})
    (record,) = caplog.records
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["event"] == "request" and fields["level"] == "info"
    assert fields["status"] == 404 and fields["request_id"] == "abc"
    assert fields["duration_ms"] >= 0


def test_logged_tracebacks_stay_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger.name):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log(logging.ERROR, "broken", exc_info=True)
    line = JsonFormatter().format(caplog.records[0])
    assert "\n" not in line
    assert "ValueError: two\nlines" in json.loads(line)["traceback"]


ENVIRONMENT = {
    "PREDICTION_URL": "https://192.0.2.1",
    "PREDICTION_CA_FILE": "/etc/ca.pem",
    "API_KEY_FILE": "/run/secrets/api_key",
    "MODEL_NAME": "digits",
    "STORE_BUCKET": BUCKET,
    "BATCH_JOB": JOB,
    "BATCH_POLL_SECONDS": "3",
    "HOST": "192.0.2.2",
    "PORT": "9000",
}


def test_settings() -> None:
    settings = Settings.from_environment(ENVIRONMENT)
    assert (settings.host, settings.port, settings.batch_poll_seconds) == ("192.0.2.2", 9000, 3.0)
    assert settings.prediction_ca_file == Path("/etc/ca.pem")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MODEL_NAME": ""}, "MODEL_NAME not set"),
        ({"PORT": "http"}, "PORT is 'http'"),
        ({"BATCH_POLL_SECONDS": "0"}, "BATCH_POLL_SECONDS is '0'"),
        ({"BATCH_POLL_SECONDS": "nan"}, "BATCH_POLL_SECONDS is 'nan'"),
    ],
)
def test_settings_that_are_wrong(change: dict[str, str], message: str) -> None:
    with pytest.raises(GroundcrewError, match=message):
        Settings.from_environment({**ENVIRONMENT, **change})
