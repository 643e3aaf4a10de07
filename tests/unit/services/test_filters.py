"""The filter plugin: the package's words reach the person, in one error and without a traceback."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

PLUGIN = Path(__file__).resolve().parents[3] / "plugins" / "filter" / "groundcrew.py"


@pytest.fixture(scope="module")
def filters() -> dict[str, Callable[..., Any]]:
    spec = importlib.util.spec_from_file_location("groundcrew_filters", PLUGIN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    filters: dict[str, Callable[..., Any]] = module.FilterModule().filters()
    return filters


def test_a_fault_is_a_filter_error_with_our_message(filters: Any) -> None:
    models = {"digits": {"framework": "sklearn", "hostport": 18080, "version": "1"}}
    with pytest.raises(
        AnsibleFilterError, match="unknown key 'hostport'. Did you mean 'host_port'"
    ):
        filters["groundcrew_models"](
            models,
            frameworks={"sklearn": {"image": "prediction_sklearn", "port": 8080}},
            file="models.yml",
        )


def test_models_of_other_fleets_are_left_out(filters: Any) -> None:
    models = {
        name: {"framework": "sklearn", "host_port": port, "version": "1", "fleet": name}
        for name, port in (("here", 18080), ("there", 18090))
    }
    variants = filters["groundcrew_models"](
        models, frameworks={"sklearn": {"image": "prediction_sklearn", "port": 8080}}
    )
    assert [v["name"] for v in filters["groundcrew_in_fleets"](variants, ["here"])] == ["here-1"]


def test_the_fault_of_a_service_map_is_text(filters: Any) -> None:
    good = {"name": "digits-1", "image": "registry.example/x@sha256:" + "a" * 64}
    assert filters["groundcrew_service_fault"]([good]) == ""
    assert "declared twice" in filters["groundcrew_service_fault"]([good, good])
