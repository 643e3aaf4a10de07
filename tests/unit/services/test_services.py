"""models: and services: of an inventory become services, or are refused with the edit that mends
them.
"""

from __future__ import annotations

from typing import Any

import pytest
from groundcrew.errors import GroundcrewError
from groundcrew.service_map import parse_services
from groundcrew.services import (
    application_service,
    expand_models,
    expand_services,
    in_fleets,
    prediction_service,
)
from hypothesis import given
from hypothesis import strategies as st

DIGEST = "registry.example/x@sha256:" + "a" * 64
FRAMEWORKS = ["sklearn", "tensorflow"]
DIGITS: dict[str, Any] = {"framework": "sklearn", "host_port": 18080, "version": "1"}
FILE = "group_vars/local/models.yml"


def models(**keys: Any) -> list[dict[str, Any]]:
    given = {key: value for key, value in {**DIGITS, **keys}.items() if value is not None}
    return expand_models({"digits": given}, FRAMEWORKS, FILE)


def test_one_version_is_one_variant_of_weight_100() -> None:
    assert models() == [
        {
            "name": "digits-1",
            "model": "digits",
            "version": "1",
            "weight": 100,
            "framework": "sklearn",
            "fleet": "prediction",
            "host_port": 18080,
        }
    ]
    assert models(version=1) == models()


def test_variants_take_the_ports_above() -> None:
    variants = models(
        version=None,
        fleet="prediction_gpu",
        variants=[
            {"version": "3", "weight": 90},
            {"version": "4", "weight": 10, "framework": "tensorflow"},
            {"version": "5", "weight": 0, "host_port": 19000},
        ],
    )
    assert [(v["name"], v["host_port"], v["weight"], v["framework"]) for v in variants] == [
        ("digits-3", 18080, 90, "sklearn"),
        ("digits-4", 18082, 10, "tensorflow"),
        ("digits-5", 19000, 0, "sklearn"),
    ]
    assert in_fleets(variants, ["prediction"]) == []
    assert in_fleets(variants, ["prediction_gpu"]) == variants


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"framwork": "sklearn"}, "unknown key 'framwork'. Did you mean 'framework'"),
        ({"framework": "skleran"}, "unknown framework 'skleran'. Did you mean 'sklearn'"),
        ({"framework": "zzz"}, "unknown framework 'zzz'. Known: sklearn, tensorflow."),
        ({"version": None}, "give either version"),
        ({"variants": [{"version": "2", "weight": 100}]}, "give either version"),
        ({"version": "latest"}, "version is 'latest'; it has to be a whole number"),
        ({"version": True}, "version is True"),
        ({"host_port": None}, "host_port is None"),
        ({"host_port": 18081}, "host_port is 18081; it has to be even"),
        ({"host_port": 80}, "host_port is 80; it has to be a port, 1024 to 65535"),
        ({"env": "A=1"}, "env is 'A=1'; it has to be a map"),
        ({"version": None, "variants": []}, r"variants is \[\]"),
        ({"version": None, "variants": [{"version": "2", "weight": 90}]}, "90 sum to 90"),
        (
            {"version": None, "variants": [{"version": "2", "weigth": 90}]},
            "variant 1: unknown key 'weigth'",
        ),
        ({"version": None, "variants": [{"version": "2"}]}, "weight of version 2 is None"),
        ({"version": None, "variants": [{"version": "2", "weight": 50}] * 2}, "one is there twice"),
    ],
)
def test_a_fault_names_the_model_and_the_file(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(GroundcrewError, match=said) as failure:
        models(**keys)
    assert str(failure.value).startswith("model digits: ")
    assert str(failure.value).endswith(f"Edit {FILE}.")


def test_two_models_cannot_share_a_port() -> None:
    two = {"version": None, "variants": [{"version": v, "weight": 50} for v in "12"]}
    first = {k: v for k, v in {**DIGITS, **two}.items() if v is not None}
    with pytest.raises(GroundcrewError, match="host_port 18082 of letters-1 is digits-2's"):
        expand_models({"digits": first, "letters": {**DIGITS, "host_port": 18082}}, FRAMEWORKS)


@pytest.mark.parametrize("data", [None, [], "digits", {"digits": None}, {"Digits!": DIGITS}])
def test_other_shapes_are_refused(data: Any) -> None:
    with pytest.raises(GroundcrewError, match="Edit models.yml"):
        expand_models(data, FRAMEWORKS)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(["framework", "version", "variants", "host_port", "env"]), JUNK)
)
def test_junk_is_refused_in_words_or_expands_to_weights_of_100(junk: dict[str, Any]) -> None:
    try:
        variants = expand_models({"digits": {**DIGITS, **junk}}, FRAMEWORKS)
    except GroundcrewError:
        return
    assert sum(variant["weight"] for variant in variants) == 100


FRAMEWORK = {
    "image": "prediction_sklearn",
    "port": 8080,
    "ready_path": "/v1/models/digits:predict",
    "env": {"MODEL_NAME": "digits", "WORKERS": "1"},
    "ready_timeout_seconds": 60,
}
IMAGES = {"prediction_sklearn": DIGEST, "application_digits": DIGEST}
MANIFESTS = {"digits": {"1": "b" * 64}}


def test_a_variant_becomes_a_service_map_that_is_accepted() -> None:
    (variant,) = models(env={"WORKERS": "2"}, resources={"memory": "1g"})
    service = prediction_service(variant, FRAMEWORK, IMAGES, MANIFESTS, "/srv/models")
    (parsed,) = parse_services([service])
    assert (parsed.name, parsed.image, parsed.host_port) == ("digits-1", DIGEST, 18080)
    assert parsed.env == {"MODEL_NAME": "digits", "WORKERS": "2"}
    assert parsed.ready.golden == "/srv/models/digits/1/golden.json"
    assert parsed.mounts[0].source == "/srv/models/digits/1" and parsed.mounts[0].read_only
    assert parsed.mounts[0].target == "/models/digits/1"
    assert (parsed.memory, parsed.manifest_sha256) == ("1g", "b" * 64)


def test_a_missing_image_or_manifest_is_named_except_in_check_mode() -> None:
    (variant,) = models()
    with pytest.raises(
        GroundcrewError, match="model digits, version 1: image 'prediction_sklearn' has no digest"
    ):
        prediction_service(variant, FRAMEWORK, {}, MANIFESTS, "/srv/models")
    with pytest.raises(GroundcrewError, match="version 1: the sha256 of its manifest is not known"):
        prediction_service(variant, FRAMEWORK, IMAGES, {}, "/srv/models")
    parse_services(
        [prediction_service(variant, FRAMEWORK, {}, {}, "/srv/models", placeholders=True)]
    )


SETTINGS = {
    "address": "10.0.0.5",
    "prediction_url": "https://10.0.0.1",
    "prediction_ca": "PEM",
    "api_key": "hush",
    "store_bucket": "store",
    "aws_env_file": "/etc/groundcrew/aws.env",
}


def test_an_application_shares_the_hosts_network_and_has_its_key_as_a_file() -> None:
    (service,) = expand_services(
        {
            "application": {
                "image": "application_digits",
                "port": 8000,
                "model": "digits",
                "batch_job": "digits_nightly",
                "env": {"BATCH_POLL_SECONDS": 5},
            }
        }
    )
    assert service["fleet"] == "application"
    (parsed,) = parse_services([application_service(service, IMAGES, SETTINGS)])
    assert (parsed.network, parsed.port, parsed.ready.path) == ("host", 8000, "/healthz")
    assert parsed.env == {
        "HOST": "10.0.0.5",
        "PORT": "8000",
        "PREDICTION_URL": "https://10.0.0.1",
        "PREDICTION_CA_FILE": "/etc/groundcrew/prediction-ca.pem",
        "API_KEY_FILE": "/run/secrets/api_key",
        "STORE_BUCKET": "store",
        "MODEL_NAME": "digits",
        "BATCH_JOB": "digits_nightly",
        "BATCH_POLL_SECONDS": "5",
    }
    assert parsed.secrets == {"/run/secrets/api_key": "hush"}
    assert parsed.config == {"/etc/groundcrew/prediction-ca.pem": "PEM"}
    assert parsed.env_file == ("/etc/groundcrew/aws.env",)


def test_an_application_without_ca_and_env_file() -> None:
    (service,) = expand_services({"web": {"image": DIGEST, "port": 8000, "ready": {"path": "/"}}})
    settings = {**SETTINGS, "prediction_ca": "", "aws_env_file": ""}
    (parsed,) = parse_services([application_service(service, {}, settings)])
    assert not parsed.config and not parsed.env_file and "PREDICTION_CA_FILE" not in parsed.env
    assert parsed.ready.path == "/"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"image": "x", "prot": 8000}, "unknown key 'prot'. Did you mean 'port'"),
        ({"port": 8000}, "image is None"),
        ({"image": "x"}, "port is None"),
        ("x", "it is 'x'; it has to be a map"),
    ],
)
def test_a_fault_in_a_service_names_it_and_the_file(entry: Any, said: str) -> None:
    with pytest.raises(GroundcrewError, match=f"service web: {said}.*Edit services.yml."):
        expand_services({"web": entry})
