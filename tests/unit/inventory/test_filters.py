from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[3] / "plugins" / "filter" / "hosts.py"

HOSTVARS: dict[str, Any] = {
    "test-1": {"private_address": "10.0.0.1", "fleet": {"memory": "1g", "instance_type": "m"}},
    "test-2": {"private_address": "10.0.0.2", "fleet": {"instance_type": "m"}, "publish": []},
}
GROUPS = {
    "test": ["test-2", "test-1"],
    "test_prediction": ["test-2", "test-1"],
    "test_gateway": ["test-1"],
}
ONE = {
    "name": "digits-1",
    "model": "digits",
    "version": 1,
    "fleet": "prediction",
    "host_port": "18080",
    "weight": 90,
}
TWO = {
    **ONE,
    "name": "digits-2",
    "version": "2",
    "host_port": 18090,
    "weight": 10,
    "grpc_port": 28090,
}


@pytest.fixture(scope="module")
def filters() -> dict[str, Callable[..., Any]]:
    spec = importlib.util.spec_from_file_location("groundcrew_host_filters", PLUGIN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Callable[..., Any]] = module.FilterModule().filters()
    return found


def test_host_values_leaves_out_what_a_host_does_not_have(filters: Any) -> None:
    keys = {"memory": "fleet.memory", "publish": "publish", "deep": "private_address.x"}
    assert filters["host_values"](["test-1", "test-2"], HOSTVARS, keys) == [
        {"name": "test-1", "memory": "1g"},
        {"name": "test-2", "publish": []},
    ]


def test_servers_of_a_fleet_are_sorted_and_of_one_environment(filters: Any) -> None:
    groups = {**GROUPS, "prediction": ["test-1", "prod-1"], "prod_prediction": ["prod-1"]}
    assert filters["fleet_servers"]("prediction", "test", groups, HOSTVARS, 8080) == [
        {"name": "test-1", "address": "10.0.0.1", "port": 8080},
        {"name": "test-2", "address": "10.0.0.2", "port": 8080},
    ]
    assert filters["fleet_servers"]("none", "test", groups, HOSTVARS, 8080) == []


def test_each_variant_of_a_model_has_servers_of_its_own(filters: Any) -> None:
    models = filters["gateway_models"]([ONE, {**TWO, "sticky": "client"}], "test", GROUPS, HOSTVARS)
    assert [model["name"] for model in models] == ["digits"]
    variants = models[0]["variants"]
    assert [(variant["version"], variant["weight"]) for variant in variants] == [
        ("1", 90),
        ("2", 10),
    ]
    keys = ("name", "address", "port", "grpc_port")
    assert [
        [tuple(server.get(key) for key in keys) for server in variant["servers"]]
        for variant in variants
    ] == [
        [
            ("test-1-1.a", "10.0.0.1", 18080, None),
            ("test-1-1.b", "10.0.0.1", 18081, None),
            ("test-2-1.a", "10.0.0.2", 18080, None),
            ("test-2-1.b", "10.0.0.2", 18081, None),
        ],
        [
            ("test-1-2.a", "10.0.0.1", 18090, 28090),
            ("test-1-2.b", "10.0.0.1", 18091, 28091),
            ("test-2-2.a", "10.0.0.2", 18090, 28090),
            ("test-2-2.b", "10.0.0.2", 18091, 28091),
        ],
    ]
    # A release enables one of them; until then nothing is sent to either.
    assert all(server["disabled"] for variant in variants for server in variant["servers"])


def test_a_growing_share_keeps_the_buckets_that_it_had(filters: Any) -> None:
    def buckets(*weights: int) -> list[str]:
        variants = [{"version": str(n + 1), "weight": w} for n, w in enumerate(weights)]
        return list(filters["gateway_buckets"](variants))

    few, more = buckets(90, 10), buckets(75, 25)
    assert (len(few), few.count("2"), more.count("2")) == (100, 10, 25)
    assert all(more[number] == "2" for number in range(100) if few[number] == "2")
    assert set(buckets(100, 0)) == {"1"}


def test_a_gateways_share_of_a_limit_is_rounded_up_and_no_limit_stays_none(filters: Any) -> None:
    share = filters["gateway_share"]
    assert [share(limit, 3) for limit in (0, 1, 3, 4, 100)] == [0, 1, 1, 2, 34]
    assert share(100, 1) == 100


def test_what_the_gateway_cannot_do_is_said(filters: Any) -> None:
    def model(*weights: int, **more: Any) -> dict[str, Any]:
        variants = [{"version": str(n), "weight": w, "servers": []} for n, w in enumerate(weights)]
        return {"name": "digits", "variants": variants, **more}

    def client(**more: Any) -> dict[str, Any]:
        return {"name": "partner", "key_sha256": ["0" * 64], **more}

    faults = filters["gateway_faults"]
    assert faults([model(60, 40, sticky="X-User-Id")], [client(models=["digits"], burst=3)]) == []
    for models, clients, said in (
        ([model(60, 30)], [], "60 . 30: make their sum 100"),
        ([model(120, -20)], [], "120 . -20"),
        ([model(100, sticky="X User")], [], "sticky by 'X User'"),
        ([model(100)], [client(models=["digts"])], "digts, which is not served.*Served are digits"),
        ([model(100)], [client(models=[])], "may use no model"),
        ([model(100)], [client(paths=["v1"])], "paths .'v1'.: each begins with /"),
        ([model(100)], [client(paths=[])], "paths"),
        ([model(100)], [client(burst=-1)], "burst of client partner is -1"),
        ([model(100)], [client(), client()], "partner is there twice"),
    ):
        (fault,) = faults(models, clients)
        assert re.search(said, fault), fault
    twice = model(50, 50)
    twice["variants"][1]["version"] = "0"
    assert "version twice" in faults([twice], [])[0]


def test_hosts_of_services_and_what_serves_there(filters: Any) -> None:
    groups = {**GROUPS, "test_web": ["test-2"]}
    hosts = filters["service_hosts"]([ONE], {"page": {"fleet": "web"}}, "test", groups)
    assert hosts == ["test-1", "test-2"]
    results = [{"item": "test-1", "serving": [18081]}, {"item": "test-2", "unreachable": True}]
    assert filters["serving_ports"](results, HOSTVARS) == {"10.0.0.1": [18081]}


def test_versions_are_text(filters: Any) -> None:
    assert filters["model_versions"]([ONE, TWO]) == [
        {"name": "digits", "version": "1"},
        {"name": "digits", "version": "2"},
    ]


def test_manifests_by_model_and_version(filters: Any) -> None:
    fetched = [
        {"name": "digits", "version": 1, "manifest_sha256": "a"},
        {"name": "digits", "version": "2", "manifest_sha256": "b"},
        {"name": "new", "version": "1", "manifest_sha256": None},
    ]
    assert filters["model_manifests"](fetched) == {"digits": {"1": "a", "2": "b"}}


def test_golden_cases_are_asked_on_each_host(filters: Any) -> None:
    (check,) = filters["golden_checks"]([ONE], "test-1", "10.0.0.1")
    assert check["urls"] == [
        f"http://10.0.0.1:{port}/v1/models/digits:predict" for port in (18080, 18081)
    ]
    assert check["golden_file"] == "/srv/models/digits/1/golden.json"


def test_golden_cases_through_the_gateway_need_one_variant(filters: Any) -> None:
    other = {**ONE, "name": "other-1", "model": "other"}
    checks = filters["gateway_golden_checks"](
        [ONE, TWO, other], "https://localhost:1", "bucket", "ca.crt", "key"
    )
    # Which of two variants answers is chance, unless a version is asked for.
    assert [
        check["urls"][0].removeprefix("https://localhost:1/v1/models/") for check in checks
    ] == [
        "digits/versions/1:predict",
        "digits/versions/2:predict",
        "other:predict",
    ]
    assert checks[2]["golden_model"] == {"bucket": "bucket", "model": "other", "version": "1"}
    assert checks[2]["headers"] == {"X-Api-Key": "key"}


def test_lines_say_which_check_failed(filters: Any) -> None:
    checks = [{"name": "a", "ok": True, "detail": "x"}, {"name": "b", "ok": False, "detail": "y"}]
    lines = filters["check_lines"](checks)
    assert lines == ["ok  a: x", "FAILED  b: y"]
    assert "line" not in checks[0]


def test_metrics_of_the_right_version(filters: Any) -> None:
    models = [{"name": "digits", "manifests": {"1": {"metrics": {"loss": 0.1, "accuracy": 0.9}}}}]
    assert filters["model_metrics"](models, ONE) == "accuracy 0.9, loss 0.1"
    assert filters["model_metrics"](models, TWO) == "no metrics"
    assert filters["model_metrics"]([], ONE) == "no metrics"


def test_targets_of_every_kind(filters: Any) -> None:
    groups = {**GROUPS, "test_web": ["test-2"]}
    services = {"page": {"fleet": "web", "port": "8000"}}
    targets = filters["scrape_targets"]([ONE], services, "test", groups, HOSTVARS)
    assert [(t["job"], t["targets"]) for t in targets] == [
        ("node", ["10.0.0.1:9100"]),
        ("node", ["10.0.0.2:9100"]),
        ("gateway", ["10.0.0.1:8404"]),
        ("prediction", ["10.0.0.1:18080", "10.0.0.1:18081"]),
        ("prediction", ["10.0.0.2:18080", "10.0.0.2:18081"]),
        ("application", ["10.0.0.2:8000", "10.0.0.2:8001"]),
    ]
    # Both slots have the labels that an alert is by.
    assert targets[3]["labels"] == {"service": "digits-1", "host": "test-1"}
    alone = filters["scrape_targets"]([], {}, "test", {"test": ["test-1"]}, HOSTVARS)
    assert [t["job"] for t in alone] == ["node"]


def test_the_gateway_gets_hashes_and_no_keys(filters: Any) -> None:
    clients = [{"name": "verify", "burst": 5}, {"name": "partner", "external": True}]
    secrets: dict[str, Any] = {
        "clients/verify": {"token": "secret", "sha256": "hash"},
        "clients/partner": {},
    }
    assert filters["gateway_clients"](clients, secrets) == [
        {"name": "verify", "burst": 5, "key_sha256": ["hash"]}
    ]
    secrets["clients/partner"] = {"sha256": "new", "previous_sha256": "old"}
    assert filters["gateway_clients"](clients, secrets)[1] == {
        "name": "partner",
        "key_sha256": ["new", "old"],
    }
    with pytest.raises(KeyError, match="clients/new"):
        filters["gateway_clients"]([{"name": "new"}], secrets)


def test_a_host_that_left_no_checks_is_a_failed_one(filters: Any) -> None:
    hostvars = {
        "a": {"golden": {"checks": [{"name": "x on a", "ok": True, "detail": ""}]}},
        "b": {"golden": {"unreachable": True, "msg": "no route"}},
        "c": {},
    }
    found = filters["host_checks"](["c", "b", "a"], hostvars, "golden", "services")
    assert [(check["name"], check["ok"]) for check in found] == [
        ("x on a", True),
        ("services on b", False),
        ("services on c", False),
    ]
    assert found[1]["detail"] == "no route"


def test_a_container_made_anew_is_another_machine(filters: Any) -> None:
    instances = {"a": {"id": "i-1"}, "b": {"id": "i-2"}}
    assert filters["machine_ids"](instances, {"a": "c0ffee"}) == {
        "a": "i-1/c0ffee",
        "b": "i-2",
    }
