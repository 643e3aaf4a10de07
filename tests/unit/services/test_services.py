"""models: and services: of an inventory become services, or are refused with the edit that mends
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from groundcrew.errors import GroundcrewError
from groundcrew.service_map import parse_services
from groundcrew.services import (
    application_service,
    embedded_models,
    expand_models,
    expand_services,
    framework_images,
    frameworks,
    in_fleets,
    members,
    on_host,
    prediction_service,
)
from hypothesis import given
from hypothesis import strategies as st

DIGEST = "registry.example/x@sha256:" + "a" * 64
FRAMEWORKS = frameworks(map(str, Path("roles/prediction/vars/frameworks").glob("*.yml")))
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
        (
            {"framework": "zzz"},
            "unknown framework 'zzz'. Known: custom, flask, mxnet, onnx, sklearn, ",
        ),
        ({"version": None}, "give either version"),
        ({"variants": [{"version": "2", "weight": 100}]}, "give either version"),
        ({"version": "latest"}, "version is 'latest'; it has to be a whole number"),
        ({"version": True}, "version is True"),
        ({"host_port": "x"}, "host_port is 'x'"),
        ({"framework": "custom", "backend": {"prot": 1}}, "backend: unknown key 'prot'. Did you m"),
        ({"framework": "custom", "backend": 8000}, "backend: it is 8000; it has to be a map"),
        ({"backend": {"port": 1}}, "framework sklearn has no server behind it"),
        ({"framework": "tensorflow", "host_port": 65000}, "host_port . 10000 is 75000"),
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


FRAMEWORK = FRAMEWORKS["sklearn"]
OTHER = "registry.example/y@sha256:" + "c" * 64
IMAGES = {
    "prediction_sklearn": DIGEST,
    "application_digits": DIGEST,
    "prediction_front": DIGEST,
    "tensorflow_serving": OTHER,
}
MANIFESTS = {"digits": {"1": "b" * 64}}


def test_a_variant_becomes_a_service_map_that_is_accepted() -> None:
    (variant,) = models(env={"WORKERS": "2"}, resources={"memory": "1g"})
    service = prediction_service(variant, FRAMEWORK, IMAGES, MANIFESTS, "/srv/models")
    (parsed,) = parse_services([service])
    assert (parsed.name, parsed.image, parsed.host_port) == ("digits-1", DIGEST, 18080)
    assert parsed.env == {
        "MODEL_NAME": "digits",
        "MODEL_VERSION": "1",
        "MODEL_DIRECTORY": "/models/digits/1",
        "MODEL_MANIFEST_SHA256": "b" * 64,
        "PORT": "8080",
        "WORKERS": "2",
    }
    assert parsed.backend is None
    assert parsed.ready.golden == "/srv/models/digits/1/golden.json"
    assert parsed.mounts[0].source == "/srv/models/digits/1" and parsed.mounts[0].read_only
    assert parsed.mounts[0].target == "/models/digits/1"
    assert (parsed.memory, parsed.manifest_sha256) == ("1g", "b" * 64)


def test_a_model_without_a_port_has_one_of_its_own_whatever_other_models_there_are() -> None:
    entry = {"framework": "tensorflow", "version": "1"}
    (alone,) = expand_models({"digits_tf": entry}, FRAMEWORKS)
    many = expand_models({"a": entry, "digits_tf": entry, "zz": entry}, FRAMEWORKS)
    assert alone in many
    ports = [variant[key] for variant in many for key in ("host_port", "grpc_port")]
    assert len({*ports}) == 6 and not any(port % 2 for port in ports)
    assert all(10000 <= v["host_port"] < 18000 for v in many)
    assert all(v["grpc_port"] == v["host_port"] + 10000 for v in many)
    assert "grpc_port" not in models()[0]


def test_a_model_server_stands_behind_the_front() -> None:
    entry = {
        "framework": "tensorflow",
        "version": "4",
        "host_port": 18090,
        "env": {"TF_NUM_INTEROP_THREADS": "1"},
        "resources": {"memory": "2g", "gpus": 1},
    }
    (variant,) = expand_models({"digits_tf": entry}, FRAMEWORKS)
    service = prediction_service(
        variant, FRAMEWORKS["tensorflow"], IMAGES, {"digits_tf": {"4": "b" * 64}}, "/srv/models"
    )
    (parsed,) = parse_services([service])
    assert parsed.image == DIGEST and parsed.host_port == 18090 and parsed.memory is None
    assert parsed.env["BACKEND_PATH"] == "/v1/models/digits_tf/versions/4:predict"
    assert parsed.ready.path == "/v1/models/digits_tf:predict"
    behind = parsed.backend
    assert behind is not None
    assert (behind.image, behind.port, behind.extra_ports) == (OTHER, 8501, {28090: 8500})
    assert (behind.memory, behind.gpus, behind.host_port) == ("2g", "1", None)
    assert behind.env["TF_NUM_INTEROP_THREADS"] == "1"
    assert "TF_NUM_INTEROP_THREADS" not in parsed.env
    assert behind.mounts == parsed.mounts


def test_a_custom_image_says_its_path_and_keys() -> None:
    backend = {"port": 9000, "path": "/score/{model}", "response_key": "scores", "user": "1000"}
    entry: dict[str, Any] = {"framework": "custom", "version": "1", "backend": backend}
    (variant,) = expand_models({"special": {**entry, "image": OTHER}}, FRAMEWORKS)
    manifests = {"special": {"1": "b" * 64}}
    service = prediction_service(variant, FRAMEWORKS["custom"], IMAGES, manifests, "/srv/models")
    (parsed,) = parse_services([service])
    assert parsed.env["BACKEND_PATH"] == "/score/special"
    assert parsed.env["BACKEND_RESPONSE_KEY"] == "scores"
    assert parsed.backend is not None
    assert (parsed.backend.image, parsed.backend.port) == (OTHER, 9000)
    assert parsed.backend.user == "1000:1000"
    (without,) = expand_models({"special": entry}, FRAMEWORKS)
    with pytest.raises(GroundcrewError, match="framework custom has no image of its own; give"):
        prediction_service(without, FRAMEWORKS["custom"], IMAGES, manifests, "/srv/models")


def test_the_images_that_models_need() -> None:
    variants = expand_models(
        {
            "digits": DIGITS,
            "digits_tf": {"framework": "tensorflow", "version": "1"},
            "legacy": {"framework": "flask", "version": "1", "image": "our_flask"},
            "special": {"framework": "custom", "version": "1", "image": OTHER},
        },
        FRAMEWORKS,
    )
    assert framework_images(variants, FRAMEWORKS) == [
        "our_flask",
        "prediction_front",
        "prediction_sklearn",
        "tensorflow_serving",
    ]


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
    "model_directory": "/srv/models",
    "embedded": [],
    "manifests": {},
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
        ({"image": "x", "port": 8000, "route": "/v1/x/"}, "route is '/v1/x/'"),
        ({"image": "x", "port": 8000, "route": "reports"}, "route is 'reports'"),
        ({"image": "x", "port": 8000, "replicas": 0}, "replicas is 0"),
        ({"image": "x", "port": 8000, "prediction": "inside"}, "prediction is 'inside'"),
        (
            {"image": "x", "port": 8000, "prediction": "embedded", "model": "m"},
            "prediction is embedded",
        ),
        ({"image": "x", "port": 8000, "version": "3"}, "version is '3', but the gateway chooses"),
    ],
)
def test_a_fault_in_a_service_names_it_and_the_file(entry: Any, said: str) -> None:
    with pytest.raises(GroundcrewError, match=f"service web: {said}.*Edit services.yml."):
        expand_services({"web": entry})


WEB: dict[str, Any] = {"image": DIGEST, "port": 8000}


def test_two_services_cannot_have_one_route() -> None:
    with pytest.raises(GroundcrewError, match="route / is first's; .*such as /second/"):
        expand_services({"first": WEB, "second": {**WEB, "port": 8010}})


def test_replicas_are_spread_and_stay_where_they_are() -> None:
    hosts = [f"h{number}" for number in range(5)]
    declared = {
        f"web{number}": {**WEB, "port": 8000 + 2 * number, "route": f"/web{number}/", "replicas": 2}
        for number in range(20)
    }
    services = expand_services(declared)
    found = {host: on_host(services, {"application": hosts}, host) for host in hosts}
    assert sum(map(len, found.values())) == 40
    assert all(found.values())
    (alone,) = expand_services({"web": WEB})
    assert members(alone, hosts) == hosts
    assert members({**alone, "replicas": 9}, hosts) == hosts
    assert members(alone, []) == []


def test_a_service_that_holds_the_model_itself() -> None:
    held = {
        **WEB,
        "model": "digits",
        "prediction": "embedded",
        "version": "live",
        "route": "/fast/",
    }
    services = expand_services({"fast": held})
    embedded = embedded_models(services, {"digits": "4"})
    assert embedded == [{"service": "fast", "model": "digits", "version": "4"}]
    settings = {**SETTINGS, "embedded": embedded, "manifests": {"digits": {"4": "d" * 64}}}
    (parsed,) = parse_services([application_service(services[0], {}, settings)])
    assert parsed.env["PREDICTION_MODE"] == "embedded"
    assert parsed.env["MODEL_DIRECTORY"] == "/models/digits/4"
    assert parsed.env["MODEL_MANIFEST_SHA256"] == "d" * 64
    assert parsed.env["ROUTE_PREFIX"] == "/fast/"
    assert [(mount.source, mount.read_only) for mount in parsed.mounts] == [
        ("/srv/models/digits/4", True)
    ]
    with pytest.raises(GroundcrewError, match="was not fetched to this host"):
        application_service(services[0], {}, {**settings, "manifests": {}})
    with pytest.raises(GroundcrewError, match="no model 'digits' is served"):
        embedded_models(services, {})
