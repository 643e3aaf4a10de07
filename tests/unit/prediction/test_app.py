from __future__ import annotations

import asyncio
import gzip
import json
import re

import numpy as np
import pytest
from groundcrew.errors import GroundcrewError
from groundcrew_prediction.settings import Settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PREDICT = "/v1/models/digits:predict"
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_prediction_and_its_headers(client, instance):
    body = json.dumps({"instances": [instance, instance]}).encode()
    for path in (PREDICT, "/v1/models/digits/versions/1:predict"):
        answer = client.ask("POST", path, body)
        assert answer.status == 200
        predictions = np.array(answer.json["predictions"])
        assert predictions.shape == (2, 10)
        assert np.allclose(predictions.sum(axis=1), 1)
        assert answer.headers["x-model-version"] == "1"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        timing = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert list(timing) == ["queue", "model", "total"]
        assert 0 < float(timing["model"]) <= float(timing["total"]) < 10_000


def test_request_id_is_echoed_unless_it_is_unsafe(client, instance):
    def answered(given: str) -> str:
        return client.post({"instances": [instance]}, x_request_id=given).headers["x-request-id"]

    assert answered("abc-1.2_3") == "abc-1.2_3"
    assert answered("<script>") != "<script>"
    assert answered("x" * 129) != "x" * 129


def test_status_is_tensorflow_servings(client):
    expected = {"version": "1", "state": "AVAILABLE"}
    expected |= {"status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/digits", "/v1/models/digits/versions/1"):
        assert client.ask("GET", path).json == {"model_version_status": [expected]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", PREDICT, 405),
        ("POST", "/v1/models/digits", 405),
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v1/models/digits/versions/2:predict", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/", 404),
        ("POST", "//v1/models/digits:predict", 404),
        ("POST", PREDICT + "/", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
    ],
)
def test_other_paths_and_methods(client, method, path, status):
    answer = client.ask(method, path)
    assert answer.status == status
    assert answer.json["error"]
    assert (status == 405) == ("allow" in answer.headers)


def test_limits_name_their_figures(client, instance):
    for headers in ({"content_length": "100001"}, {}):
        answer = client.ask("POST", PREDICT, b"x" * 100_001, **headers)
        assert answer.status == 413
        assert "100000 bytes" in answer.json["error"]
    answer = client.post({"instances": [[0]] * 51})
    assert answer.status == 413
    assert "51" in answer.json["error"] and "50" in answer.json["error"]


def test_gzip_is_taken_and_its_faults_are_named(client, instance):
    packed = gzip.compress(json.dumps({"instances": [instance]}).encode())
    zip_bomb = gzip.compress(b" " * 10_000_000)

    def status(body: bytes, encoding: str = "gzip") -> int:
        return client.ask("POST", PREDICT, body, content_encoding=encoding).status

    assert status(packed) == 200
    assert status(packed[:-9]) == 400
    assert status(b"not gzip") == 400
    assert status(zip_bomb) == 413
    assert status(packed, "br") == 415


def test_content_type_must_be_json(client, instance):
    document = {"instances": [instance]}
    assert client.post(document, content_type="application/json; charset=utf-8").status == 200
    answer = client.post(document, content_type="text/plain")
    assert answer.status == 415
    assert "text/plain" in answer.json["error"]


def test_requests_above_the_bound_are_503_and_the_others_are_answered(client, instance):
    body = json.dumps({"instances": [instance]}).encode()

    async def many() -> list[int]:
        asked = [client.asked("POST", PREDICT, body) for _ in range(20)]
        answers = await asyncio.gather(*asked)
        assert all("retry-after" in one.headers for one in answers if one.status == 503)
        return [one.status for one in answers]

    statuses = asyncio.run(many())
    assert statuses.count(200) == 8
    assert statuses.count(503) == 12


@SHARED
@given(st.binary(max_size=300))
def test_any_body_is_answered_400(client, data):
    answer = client.ask("POST", PREDICT, data)
    assert answer.status == 400
    assert list(answer.json) == ["error"]


def test_metrics_count_requests_by_status(client, instance):
    client.post({"instances": [instance] * 3})
    client.post({})
    lines = client.ask("GET", "/metrics").body.decode().splitlines()
    labels = 'model="digits",version="1"'
    assert f'groundcrew_prediction_requests_total{{code="200",{labels}}} 1.0' in lines
    assert f'groundcrew_prediction_requests_total{{code="400",{labels}}} 1.0' in lines
    assert f"groundcrew_prediction_instances_total{{{labels}}} 3.0" in lines
    assert f"groundcrew_prediction_batch_size_count{{{labels}}} 1.0" in lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL_NAME": ""}, "MODEL_NAME must be set"),
        ({"MODEL_VERSION": "../1"}, "must be a whole number"),
        ({"PORT": "0"}, "PORT is '0'; it must be a whole number from 1 to 65535"),
        ({"WORKERS": "two"}, "WORKERS is 'two'"),
        ({"MAX_BODY_BYTES": "1e6"}, "MAX_BODY_BYTES is '1e6'"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(GroundcrewError, match=message):
        Settings.from_environment({"MODEL_NAME": "digits", "MODEL_VERSION": "1", **changes})


def test_directory_follows_from_name_and_version():
    made = Settings.from_environment({"MODEL_NAME": "digits", "MODEL_VERSION": "3"})
    assert str(made.directory) == "/models/digits/3"
