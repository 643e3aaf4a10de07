"""The endpoints, through Flask's test client, with a real prediction client and reloader."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from application_support import (
    BUCKET,
    JOB,
    PROBABILITIES,
    Gateway,
    MemoryStore,
    image,
    one_each,
    wait_until,
    write_run,
)
from digits_application import app as application
from digits_application.batch import DigitsRun
from digits_application.logs import JsonFormatter, log, logger
from digits_application.metrics import BatchHooks, Metrics
from digits_application.rows import NAMES
from digits_application.settings import Settings
from flask.testing import FlaskClient
from groundcrew.errors import GroundcrewError
from groundcrew_application.prediction import Answer, PredictionClient
from groundcrew_application.reloader import Reloader

INSTANCE = [0.0] * 32 + [16] * 32


@pytest.fixture
def store(memory: MemoryStore) -> MemoryStore:
    return memory


@pytest.fixture
def reloader(store: Any) -> Reloader[DigitsRun]:
    return Reloader(store, BUCKET, JOB, DigitsRun.load, poll_seconds=10, hooks=BatchHooks())


Make = Callable[..., FlaskClient]


@pytest.fixture
def make(gateway: Gateway, reloader: Reloader[DigitsRun], tmp_path: Path) -> Make:
    """Makes a client of an application with the given environment."""

    def one(**environment: str) -> FlaskClient:
        key = tmp_path / "key"
        key.write_text("key\n")
        chosen = Settings.from_environment(
            {
                "PREDICTION_URL": gateway.url,
                "API_KEY_FILE": str(key),
                "MODEL_NAME": "digits",
                "STORE_BUCKET": BUCKET,
                "BATCH_JOB": JOB,
                **environment,
            }
        )
        metrics = Metrics()
        predictor = application.predictor_of(chosen, metrics, reloader)
        return application.build_app(chosen, predictor, reloader, metrics).test_client()

    return one


@pytest.fixture
def client(make: Make) -> FlaskClient:
    return make()


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
    latency_ms, timing_ms = body.pop("latency_ms"), body.pop("timing_ms")
    assert latency_ms > 0
    assert set(timing_ms) == {"application", "gateway", "service", "queue", "model"}
    assert (timing_ms["queue"], timing_ms["model"], timing_ms["service"]) == (0.1, 1.25, 0.15)
    assert timing_ms["gateway"] == pytest.approx(max(0, latency_ms - 1.5), abs=0.02)
    assert "model;dur=1.25" in answer.headers["Server-Timing"]
    assert body == {
        "digit": 7,
        "probabilities": PROBABILITIES,
        "model": "digits",
        "version": "3",
        "source": "prediction",
        "age_seconds": 0.0,
        "problem": None,
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
    monkeypatch.setattr(PredictionClient, "ask", lambda *_: 1 / 0)
    answer = client.post("/api/predict", json={"instance": INSTANCE})
    assert answer.status_code == 500
    assert answer.json == {"error": "internal error"}
    assert "ZeroDivisionError" in caplog.text


def test_batch(client: FlaskClient, store: Any, reloader: Reloader[DigitsRun]) -> None:
    nothing = client.get("/api/batch").json
    assert nothing is not None and (nothing["run"], nothing["items"]) == (None, [])
    write_run(store, "20260131T040506Z")
    reloader.reload()
    answer = client.get("/api/batch").json
    assert answer is not None
    assert answer["run"] == "20260131T040506Z"
    assert (answer["rows"], answer["rejected"], answer["model_version"]) == (6, 1, "3")
    assert answer["age_seconds"] >= 0 and answer["finished"].endswith("Z")
    assert answer["items"][0]["digit"] == 7


def test_batch_filters_and_pages(
    client: FlaskClient, store: Any, reloader: Reloader[DigitsRun]
) -> None:
    sure, unsure = [0.0] * 9 + [1.0], [0.1, 0.5, *[0.05] * 8]
    write_run(
        store,
        "20260131T040506Z",
        rows=100,
        chunk=30,
        predict=lambda row: sure if row % 4 else unsure,
    )
    reloader.reload()

    def ids(query: str) -> tuple[int, list[str]]:
        answer = client.get(f"/api/batch?{query}").json
        assert answer is not None
        return answer["matching"], [item["id"] for item in answer["items"]]

    assert ids("") == (100, [f"row-{row}" for row in range(48)])
    assert ids("digit=1") == (25, [f"row-{row}" for row in range(0, 100, 4)])
    assert ids("digit=9&offset=70&limit=10") == (75, [f"row-{row}" for row in (94, 95, 97, 98, 99)])
    assert ids("minimum=0.8&digit=1") == (0, [])
    assert ids("maximum=0.8&limit=2") == (25, ["row-0", "row-4"])
    assert ids("minimum=0.8&maximum=1&limit=1") == (75, ["row-1"])
    assert ids("digit=&offset=1000") == (100, [])
    for query in (
        "digit=10",
        "digit=x",
        "minimum=-1",
        "maximum=nan",
        "limit=0",
        "limit=201",
        "offset=-1",
    ):
        answer = client.get(f"/api/batch?{query}")
        assert answer.status_code == 400
        assert query.partition("=")[0] in (answer.json or {})["error"]


def test_stale_and_fallback_answers_say_so(
    client: FlaskClient, gateway: Gateway, store: Any, reloader: Reloader[DigitsRun]
) -> None:
    write_run(store, "20260131T040506Z")
    reloader.reload()
    client.post("/api/predict", json={"instance": INSTANCE})
    gateway.status, gateway.body = 503, {"error": "no server"}
    stale = client.post("/api/predict", json={"instance": INSTANCE}).get_json()
    assert (stale["source"], stale["digit"], stale["version"]) == ("stale", 7, "3")
    assert stale["problem"] == "no prediction host is ready, try again in a moment"
    assert stale["age_seconds"] >= 0 and stale["model_ms"] is None
    assert set(stale["timing_ms"]) == {"application", "prediction"}
    given = client.post("/api/predict", json={"instance": image(2)}).get_json()
    assert (given["source"], given["digit"]) == ("fallback", 7)
    assert given["probabilities"] == pytest.approx(PROBABILITIES)
    assert client.post("/api/predict", json={"instance": [5] * 64}).status_code == 503
    text = client.get("/metrics").text
    for source in ("prediction", "stale", "fallback"):
        assert f'application_predictions_total{{source="{source}"}} 1.0' in text


def test_an_open_circuit_is_told(make: Make, gateway: Gateway) -> None:
    client = make(CIRCUIT_FAILURES="2", CIRCUIT_PROBE_SECONDS="60", STALE_ENTRIES="0")
    gateway.status = 503
    for _ in range(3):
        answer = client.post("/api/predict", json={"instance": INSTANCE})
        assert answer.status_code == 503
    assert answer.headers["Retry-After"] in ("59", "60")
    assert len(gateway.requests) == 2
    status = client.get("/api/status").json
    assert status is not None
    assert (status["mode"], status["circuit"], status["model"]) == ("gateway", "open", "digits")
    assert status["problem"] == "no prediction host is ready, try again in a moment"
    assert "application_prediction_circuit_open 1.0" in client.get("/metrics").text


def test_status(
    client: FlaskClient, store: Any, reloader: Reloader[DigitsRun], gateway: Gateway
) -> None:
    status = client.get("/api/status").json
    assert status is not None
    assert (status["version"], status["answered_seconds_ago"]) == (None, None)
    assert (status["batch"]["run"], status["batch"]["problem"]) == (None, False)
    client.post("/api/predict", json={"instance": INSTANCE})
    write_run(store, "20260131T040506Z")
    reloader.reload()
    store.delete_object(Bucket=BUCKET, Key=f"predictions/{JOB}/LATEST")
    reloader.reload()
    status = client.get("/api/status").json
    assert status is not None
    assert status["version"] == "3" and status["answered_seconds_ago"] >= 0
    assert status["batch"]["run"] == "20260131T040506Z" and status["batch"]["problem"]
    assert BUCKET not in json.dumps(status)


ROWS = "\n".join([",".join(["id", *NAMES]), *[",".join([f"r{n}", *["2"] * 64]) for n in range(5)]])


def test_a_file_from_upload_to_result(make: Make, gateway: Gateway) -> None:
    client = make(FILE_BATCH_ROWS="2")
    gateway.body = one_each
    answer = client.post("/api/files", data=ROWS, content_type="text/csv")
    assert answer.status_code == 202
    job = answer.get_json()
    assert job["rows"] == 5
    # Relative, since the application may lie below a path of the gateway.
    assert answer.headers["Location"] == f"files/{job['id']}"

    def state() -> str:
        found = client.get(f"/api/files/{job['id']}").get_json()
        return str(found["state"])

    wait_until(lambda: state() == "done", "the file")
    assert [len(body["instances"]) for _, _, body in gateway.requests] == [2, 2, 1]
    result = client.get(f"/api/files/{job['id']}/result.csv")
    assert result.text.splitlines()[1] == "r0,7,0.91,3"
    assert result.mimetype == "text/csv" and "attachment" in result.headers["Content-Disposition"]
    assert "application_file_rows_total 5.0" in client.get("/metrics").text
    assert client.delete(f"/api/files/{job['id']}").status_code == 204
    for answer in (client.get(f"/api/files/{job['id']}"), client.delete(f"/api/files/{job['id']}")):
        assert answer.status_code == 404 and "upload it again" in answer.get_json()["error"]


def test_a_result_that_is_not_there_yet(make: Make, gateway: Gateway) -> None:
    client = make(FILE_JOBS="1")
    gateway.status = 503
    job = client.post("/api/files", data=ROWS).get_json()
    answer = client.get(f"/api/files/{job['id']}/result.csv")
    assert answer.status_code == 409 and "0 of 5 rows" in answer.get_json()["error"]
    busy = client.post("/api/files", data=ROWS)
    assert busy.status_code == 503 and busy.headers["Retry-After"] == "5"
    client.delete(f"/api/files/{job['id']}")


def test_files_that_are_refused(make: Make, gateway: Gateway) -> None:
    client = make(FILE_MAX_BYTES="2000", FILE_MAX_ROWS="3")
    for data, status, message in (
        (b"", 400, "the file is empty"),
        (b"a;b\n", 400, "semicolons"),
        (ROWS.encode(), 413, "5 rows; it may have 3"),
        (ROWS.encode() * 4, 413, "larger than 2000 bytes"),
    ):
        answer = client.post("/api/files", data=data, content_type="text/csv")
        assert (answer.status_code, message in answer.get_json()["error"]) == (status, True), (
            answer.text
        )
    form = client.post("/api/files", data={"file": (io.BytesIO(ROWS.encode()), "rows.csv")})
    assert form.status_code == 400 and "--data-binary" in form.get_json()["error"]
    assert gateway.requests == []


def test_below_a_prefix(make: Make) -> None:
    client = make(ROUTE_PREFIX="/reports/")
    moved = client.get("/reports")
    assert (moved.status_code, moved.headers["Location"]) == (308, "/reports/")
    page = client.get("/reports/")
    assert page.status_code == 200
    # No address of the page begins with "/".
    assert re.findall(r'(?:href|src)="/', page.text) == []
    for path in (
        "/reports/static/page.js",
        "/reports/api/status",
        "/reports/healthz",
        "/healthz",
        "/",
    ):
        assert client.get(path).status_code == 200, path
    for path in ("/other/", "/reportsx/", "/reports/reports/"):
        assert client.get(path).status_code == 404, path
    text = client.get("/metrics").text
    assert 'route="/api/status"' in text and "reports" not in text


def test_embedded(make: Make, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    class Embedded:
        version = "5"
        answered_seconds_ago = 1.0
        problem = None

        def __init__(self, directory: Path, **_: Any) -> None:
            assert directory == Path("/models/digits/5")

        def predict(self, instance: Any, request_id: str) -> Answer:
            timing = {"queue": 0.0, "model": 1.0, "total": 1.0}
            return Answer([PROBABILITIES], "embedded", "5", latency_ms=1.0, timing_ms=timing)

        def ask(self, instances: Any, request_id: str) -> Answer:
            return Answer([PROBABILITIES] * len(instances), "embedded", "5")

    monkeypatch.setattr(application, "EmbeddedModel", Embedded)
    client = make(PREDICTION_MODE="embedded", MODEL_DIRECTORY="/models/digits/5", PREDICTION_URL="")
    answer = client.post("/api/predict", json={"instance": INSTANCE}).get_json()
    assert (answer["source"], answer["version"], answer["digit"]) == ("embedded", "5", 7)
    assert set(answer["timing_ms"]) == {"application", "service", "queue", "model"}
    status = client.get("/api/status").json
    assert status is not None and (status["mode"], status["circuit"]) == ("embedded", None)
    assert gateway.requests == []


def test_metrics(make: Make, gateway: Gateway, store: Any, reloader: Reloader[DigitsRun]) -> None:
    client = make(STALE_ENTRIES="0")
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
        (
            {"PREDICTION_MODE": "local"},
            "PREDICTION_MODE is 'local'; it must be gateway or embedded",
        ),
        ({"PREDICTION_MODE": "embedded"}, "MODEL_DIRECTORY not set"),
        ({"PREDICTION_URL": ""}, "PREDICTION_URL not set"),
        ({"ROUTE_PREFIX": "reports"}, "ROUTE_PREFIX is 'reports'; it must begin and end with '/'"),
        ({"ROUTE_PREFIX": "//evil.example/"}, "ROUTE_PREFIX is"),
        ({"STALE_ENTRIES": "-1"}, "STALE_ENTRIES is '-1'; it must be a whole number of 0 or more"),
        ({"FILE_JOBS": "0"}, "FILE_JOBS is '0'; it must be a whole number of 1 or more"),
        ({"FILE_MAX_BYTES": "1e6"}, "FILE_MAX_BYTES is '1e6'"),
    ],
)
def test_settings_that_are_wrong(change: dict[str, str], message: str) -> None:
    with pytest.raises(GroundcrewError, match=message):
        Settings.from_environment({**ENVIRONMENT, **change})
