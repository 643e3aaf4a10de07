"""docs/your-own-application.md says what is: its example runs, its tables are the settings and the routes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from application_support import (
    BUCKET,
    JOB,
    PROBABILITIES,
    MemoryStore,
    wait_until,
    write_run,
)
from application_support import Gateway as GatewayStandIn
from digits_application.settings import Settings
from groundcrew import objects

PAGE = (Path(__file__).parents[3] / "docs/your-own-application.md").read_text()


def example() -> str:
    section = PAGE.partition("## 1.")[2].partition("Its Dockerfile")[0]
    return "\n".join(
        line[4:] for line in section.splitlines() if line.startswith("    ") or not line
    )


def test_the_example_runs(
    gateway: GatewayStandIn, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_run(memory, "20260131T040506Z", rows=4)
    (tmp_path / "key").write_text("key")
    for name, value in {
        "STORE_BUCKET": BUCKET,
        "BATCH_JOB": JOB,
        "PREDICTION_URL": gateway.url,
        "MODEL_NAME": "churn",
        "API_KEY_FILE": str(tmp_path / "key"),
        "PREDICTION_CA_FILE": "/etc/ca.pem",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "open_client", lambda: memory)
    names: dict[str, Any] = {"__name__": "app"}
    exec(compile(example(), "your-own-application.md", "exec"), names)  # noqa: S102
    client = names["create_app"]().test_client()
    try:
        answer = client.post("/score", json={"customer": [1.0, 2.0]}).get_json()
        assert (answer["score"], answer["source"]) == (PROBABILITIES, "prediction")
        gateway.status = 503
        answer = client.post("/score", json={"customer": [3.0, 4.0]}).get_json()
        assert (answer["score"], answer["source"]) == ([0.73, 0.27], "fallback")
        wait_until(lambda: client.get("/last-night").get_json()["rows"] == 4, "the batch run")
        assert client.get("/healthz").status_code == 200
    finally:
        names["batches"].stop()


def test_every_setting_is_in_the_tables() -> None:
    rows = re.findall(r"^\| (`[A-Z0-9_`, ]+`) \|(.*?)\|", PAGE, re.MULTILINE)
    told: dict[str, str] = {}
    for variables, defaults in rows:
        listed = [name.strip("` ") for name in variables.split(",")]
        values = [value.strip("` ") for value in defaults.split(",")]
        told.update(
            zip(listed, values if len(values) == len(listed) else values * len(listed), strict=True)
        )
    for setting in dataclasses.fields(Settings):
        name = setting.name.upper()
        assert name in told, f"{name} is not in docs/your-own-application.md"
        if isinstance(setting.default, int | float):
            assert float(told[name]) == setting.default, name
    assert set(told) == {setting.name.upper() for setting in dataclasses.fields(Settings)}


def test_every_route_is_in_the_table() -> None:
    source = Path(__file__).parents[3] / "files/example/application/digits_application/app.py"
    routes = re.findall(
        r'@app\.(get|post|delete)\("(/(?:api|healthz|metrics)[^"]*)"\)', source.read_text()
    )
    assert len(routes) == 9
    for method, path in routes:
        plain = path.replace("<job_id>", "<id>").lstrip("/")
        assert (
            re.search(rf"`({method.upper()} )?{re.escape(plain)}`? ?", PAGE)
            or f"{method.upper()} {plain}" in PAGE
        ), path
