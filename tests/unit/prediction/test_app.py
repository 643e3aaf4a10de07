from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from groundcrew.errors import GroundcrewError
from groundcrew_prediction.app import create_app
from groundcrew_prediction.settings import Settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PREDICT = "/v1/models/digits:predict"
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_prediction_and_its_headers(client, instance):
    for path in (PREDICT, "/v1/models/digits/versions/1:predict"):
        answer = client.post(path, json={"instances": [instance, instance]})
        assert answer.status_code == 200
        predictions = np.array(answer.get_json()["predictions"])
        assert predictions.shape == (2, 10)
        assert np.allclose(predictions.sum(axis=1), 1)
        assert answer.headers["X-Model-Version"] == "1"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
        timing = dict(part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
        assert list(timing) == ["queue", "model", "total"]
        assert 0 < float(timing["model"]) <= float(timing["total"]) < 10_000


def test_request_id_is_echoed_unless_it_is_unsafe(client, instance):
    def answered(given: str) -> str:
        headers = {"X-Request-Id": given}
        return client.post(PREDICT, json={"instances": [instance]}, headers=headers).headers[
            "X-Request-Id"
        ]

    assert answered("abc-1.2_3") == "abc-1.2_3"
    assert answered("<script>") != "<script>"
    assert answered("x" * 129) != "x" * 129


def test_status_is_tensorflow_servings(client):
    expected = {"version": "1", "state": "AVAILABLE"}
    expected |= {"status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/digits", "/v1/models/digits/versions/1"):
        assert client.get(path).get_json() == {"model_version_status": [expected]}


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
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert answer.get_json()["error"]
    assert (status == 405) == ("Allow" in answer.headers)


def test_body_above_the_limit_is_413_announced_or_not(client):
    assert client.post(PREDICT, data=b"x" * 100_001).status_code == 413
    environ = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = client.post(PREDICT, data=b"x" * 100_001, environ_overrides=environ)
    assert answer.status_code == 413
    assert "100000 bytes" in answer.get_json()["error"]


@SHARED
@given(st.binary(max_size=300), st.sampled_from(["application/json", "text/plain", "multipart/x"]))
def test_any_body_is_answered_400(client, data, kind):
    answer = client.post(PREDICT, data=data, content_type=kind)
    assert answer.status_code == 400
    assert list(answer.get_json()) == ["error"]


@SHARED
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
    | st.lists(st.lists(st.floats(-1, 17) | st.integers(0, 16), min_size=64, max_size=64))
)
def test_any_instances_are_answered_and_never_with_500(client, instances):
    answer = client.post(PREDICT, data=json.dumps({"instances": instances}))
    assert answer.status_code in (200, 400)


@SHARED
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"]),
    st.text(max_size=40),
    st.dictionaries(
        st.sampled_from(["X-Request-Id", "Host", "Content-Length", "Accept", "Range", "Expect"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    ),
)
def test_any_path_method_and_header_is_answered_and_never_with_500(client, method, path, headers):
    # The environment goes in as it is: the test client would refuse some of what a network sends.
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": "/" + path.encode("utf-8", "replace").decode("latin-1"),
        "CONTENT_LENGTH": headers.pop("Content-Length", "0"),
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()},
    }
    answer = client.open("/", environ_overrides=environ)
    assert answer.status_code < 500
    assert answer.headers["X-Request-Id"]


class Broken:
    model, version, framework, manifest_sha256 = "digits", "1", "sklearn", "0" * 64

    def __init__(self, loaded: Any) -> None:
        self.signature = loaded.signature

    def predict(self, _instances: Any) -> Any:
        raise ArithmeticError("predicted NaN")


def test_fault_of_the_model_is_500_without_its_details(loaded, instance, caplog):
    client = create_app(Broken(loaded)).test_client()
    answer = client.post(PREDICT, json={"instances": [instance]})
    assert answer.status_code == 500
    assert "ArithmeticError" not in answer.get_json()["error"]
    assert answer.headers["X-Request-Id"] in answer.get_json()["error"]
    assert "predicted NaN" in caplog.text
    assert client.get("/healthz").status_code == 200


def test_metrics_count_requests_by_status(client, instance):
    client.post(PREDICT, json={"instances": [instance] * 3})
    client.post(PREDICT, json={})
    client.get("/nothing")
    answer = client.get("/metrics")
    labels = 'model="digits",version="1"'
    lines = answer.text.splitlines()
    assert answer.content_type.startswith("text/plain")
    assert f'groundcrew_prediction_requests_total{{code="200",{labels}}} 1.0' in lines
    assert f'groundcrew_prediction_requests_total{{code="400",{labels}}} 1.0' in lines
    assert f"groundcrew_prediction_instances_total{{{labels}}} 3.0" in lines
    assert f"groundcrew_prediction_request_seconds_count{{{labels}}} 2.0" in lines
    assert f"groundcrew_prediction_model_seconds_count{{{labels}}} 1.0" in lines


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
