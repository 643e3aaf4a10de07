from __future__ import annotations

import html.parser
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from groundcrew import model_store, models_report
from groundcrew.errors import GroundcrewError
from hypothesis import given
from hypothesis import strategies as st

BUCKET = "groundcrew-models-test-store"
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
FLEETS = {"prediction": ["p1", "p2"], "gpu": ["g1"]}
VARIANTS = [{"model": "digits", "version": "2", "weight": 100, "fleet": "prediction"}]
GATE = {"metric": "accuracy", "minimum": 0.9, "margin": None, "higher_is_better": True}


def report(client: Any, variants: Any = VARIANTS, rollbacks: Any = None) -> dict[str, Any]:
    store = models_report.read(client, BUCKET, ["p1", "p2"])
    return models_report.report("prod", store, variants, FLEETS, rollbacks or {}, NOW)


def record(client: Any, host: str, *services: str) -> None:
    document = {"releases": dict.fromkeys(services, "release")}
    client.put_object(Bucket=BUCKET, Key=f"hosts/{host}.json", Body=json.dumps(document).encode())


def faults(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in found["checks"] if not check["ok"]}


class Page(html.parser.HTMLParser):
    """Fails on tags that are not closed in order; keeps the texts and what is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "circle", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("circle",):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_page(found: dict[str, Any]) -> Page:
    page = Page(models_report.page(found))
    assert page.loads == []
    assert len(set(page.ids)) == len(page.ids)
    return page


def test_everything_as_it_should_be(client, publish):
    publish("1", metrics={"accuracy": 0.9}, created="2026-03-01T00:00:00Z")
    digest = publish(
        "2",
        metrics={"accuracy": 0.95, "log_loss": 0.1},
        created="2026-03-04T04:06:07Z",
        data={"sha256": "d" * 64},
        gate=GATE,
        code_revision="abc",
        image="sha256:" + "1" * 64,
    )
    for host in ("p1", "p2"):
        record(client, host, "digits-2", "application")
    found = report(client)
    assert found["ok"], faults(found)
    assert (found["environment"], found["created"]) == ("prod", "2026-03-04T05:06:07Z")
    (model,) = found["models"]
    assert (model["name"], model["metric"]) == ("digits", "accuracy")
    one, two = model["versions"]
    assert (one["state"], one["weight"], one["age_seconds"]) == ("whole", None, 277567)
    assert (two["weight"], two["data_sha256"], two["manifest_sha256"]) == (100, "d" * 64, digest)
    assert [host["recorded"] for host in model["live"][0]["hosts"]] == [["2"], ["2"]]
    text = models_report.lines(found)
    assert text[0] == "digits"
    assert text[1].split() == ["version", "state", "accuracy", "log_loss", "data", "age", "weight"]
    assert text[3].split() == ["2", "whole", "0.95", "0.1", "d" * 12, "1", "h", "100", "%"]
    assert "p1 (prediction): declared 2, recorded 2; a rollback goes: not known" in text[4]
    page = check_page(found)
    assert "accuracy of digits by version" in page.texts
    assert "version 1 0.9; version 2 0.95" in page.texts
    assert "gate 0.9" in page.texts
    assert json.loads(json.dumps(found)) == found


def test_empty_store(client):
    found = report(client, variants=[])
    assert (found["ok"], found["models"]) == (True, [])
    assert models_report.lines(found) == ["The store has no models, and none are declared."]
    check_page(found)


def test_declared_model_that_the_store_lacks(client):
    found = report(client)
    assert "not in the store; train and publish it" in faults(found)["digits-2 can be served"]
    assert "nothing is recorded" in faults(found)["digits on p1"]
    assert "  no version in the store" in models_report.lines(found)
    assert "No version is in the store." in check_page(found).texts


def test_version_without_metrics(client, publish):
    publish("1", metrics={})
    publish("2", metrics={"accuracy": 0.9})
    found = report(client, variants=[])
    assert found["ok"]
    assert [row["metrics"] for row in found["models"][0]["versions"]] == [{}, {"accuracy": 0.9}]
    assert "Not served: no model of this name is declared." in check_page(found).texts


def test_versions_that_cannot_be_served_are_told_apart(client, publish):
    for version in ("1", "2", "3"):
        publish(version)
    key = "models/digits/{}/{}"
    client.put_object(Bucket=BUCKET, Key=key.format(1, "manifest.json"), Body=b"{")
    client.put_object(Bucket=BUCKET, Key=key.format(2, "weights"), Body=b"longer")
    client.delete_object(Bucket=BUCKET, Key=key.format(3, "weights"))
    client.put_object(Bucket=BUCKET, Key=key.format(4, "weights"), Body=b"left")
    client.put_object(Bucket=BUCKET, Key=key.format("rubbish", "x"), Body=b"left")
    client.put_object(Bucket=BUCKET, Key=key.format(6, "claim.json"), Body=b"[]")
    model_store.claim(client, BUCKET, "digits", "5", owner="training-1")
    found = report(client)
    rows = {row["version"]: row for row in found["models"][0]["versions"]}
    assert {version: row["state"] for version, row in rows.items()} == {
        "1": "malformed",
        "2": "incomplete",
        "3": "incomplete",
        "4": "unfinished",
        "5": "being published",
        "6": "being published",
    }
    assert "models/digits/1/manifest.json is not JSON" in rows["1"]["detail"]
    assert "weights has 6 bytes, not 1" in rows["2"]["detail"]
    assert "weights has no bytes, not 1" in rows["3"]["detail"]
    assert rows["5"]["detail"].startswith("by training-1 since 20")
    wrong = faults(found)
    assert {"digits version 1", "digits version 2", "digits version 3"} < set(wrong)
    assert wrong["digits-2 can be served"].startswith("incomplete")
    assert any(
        line.startswith("WRONG  digits version 1: malformed") for line in models_report.lines(found)
    )
    assert "malformed" in check_page(found).texts


def test_host_that_runs_another_version_than_declared(client, publish):
    publish("2")
    record(client, "p1", "digits-1", "digits_tf-2")
    client.put_object(Bucket=BUCKET, Key="hosts/p2.json", Body=b"{torn")
    found = report(client)
    assert faults(found)["digits on p1"] == ("ran 1 when it was last deployed; declared: 2. Deploy")
    assert faults(found)["digits on p2"].startswith("nothing is recorded")
    check_page(found)


def test_variants_and_fleets(client, publish):
    publish("1")
    publish("2")
    variants = [
        {"model": "digits", "version": "1", "weight": 90, "fleet": "prediction"},
        {"model": "digits", "version": "2", "weight": 10, "fleet": "prediction"},
        {"model": "other", "version": "1", "weight": 100, "fleet": "nowhere"},
    ]
    for host in ("p1", "p2"):
        record(client, host, "digits-2", "digits-1")
    found = report(client, variants)
    assert set(faults(found)) == {"other-1 can be served"}
    assert [row["weight"] for row in found["models"][0]["versions"]] == [90, 10]
    page = check_page(found)
    assert {"live 90 %", "live 10 %"} <= set(page.texts)


def test_what_a_rollback_would_do(client, publish):
    publish("2")
    answers = {
        "p1": [
            {"item": "other", "services": [{"name": "other-9"}]},
            {"item": "digits", "services": [{"name": "digits-1", "changes": ["digits-2"]}]},
        ],
        "p2": [
            {
                "item": "digits",
                "services": [],
                "msg": "digits: none. There is nothing to go back to.",
            }
        ],
    }
    hosts = report(client, rollbacks=answers)["models"][0]["live"][0]["hosts"]
    assert [host["rollback"] for host in hosts] == ["to version 1", "nothing is kept"]
    answers = {
        "p1": [{"item": "digits", "unreachable": True, "msg": "no route"}],
        "p2": [{"item": "digits", "skipped": True}],
    }
    hosts = report(client, rollbacks=answers)["models"][0]["live"][0]["hosts"]
    assert [host["rollback"] for host in hosts] == ["somewhere; the host did not answer", None]
    answers["p1"] = [{"item": "digits", "msg": "Name the one you mean."}]
    hosts = report(client, rollbacks=answers)["models"][0]["live"][0]["hosts"]
    assert hosts[0]["rollback"] == "Name the one you mean."


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"metrics": st.dictionaries(st.text(max_size=6), ANY, max_size=3)},
            optional={
                "gate": ANY
                | st.fixed_dictionaries({"metric": ANY, "minimum": ANY, "live_value": ANY}),
                "data": ANY,
                "created": ANY,
                "code_revision": ANY,
                "image": ANY,
            },
        ),
        max_size=4,
    )
)
def test_any_manifest_makes_a_page(manifests):
    facts = {
        str(number + 1): {
            "state": "whole",
            "detail": "",
            "manifest": manifest,
            "manifest_sha256": "0",
        }
        for number, manifest in enumerate(manifests)
    }
    store = {"versions": {"digits": facts}, "releases": {}}
    found = models_report.report("<prod>", store, VARIANTS, FLEETS, {}, NOW)
    check_page(found)
    assert models_report.lines(found)


def test_words_of_others_do_not_become_markup(client, publish):
    publish("1", metrics={"<b>x</b>": 0.5}, code_revision='"><script>')
    text = models_report.page(report(client))
    assert "<script" not in text and "<b>" not in text
    check_page(report(client))


# -- choosing


def test_latest_is_the_highest_whole_one(client, publish):
    for version in ("2", "10", "11"):
        publish(version, metrics={"accuracy": float(version) / 100})
    client.delete_object(Bucket=BUCKET, Key="models/digits/11/weights")
    model_store.claim(client, BUCKET, "digits", "12")
    chosen = models_report.choose(client, BUCKET, "digits", "latest", full=True)
    assert (chosen.version, chosen.metrics) == ("10", {"accuracy": 0.1})
    assert "weights is missing" in chosen.passed_over[0]
    with pytest.raises(GroundcrewError, match="weights is missing"):
        models_report.choose(client, BUCKET, "digits", "11", full=True)
    with pytest.raises(GroundcrewError, match="no whole version of model other"):
        models_report.choose(client, BUCKET, "other", "latest", full=False)


def test_both_versions_are_shown_with_their_metrics(client, publish):
    publish("1", metrics={"log_loss": 0.25, "accuracy": 0.9})
    old = models_report.metrics_of(client, BUCKET, "digits", "1")
    assert models_report.compare_lines("1", old, "2", {"accuracy": 0.95}) == [
        "version 1, now: accuracy 0.9, log_loss 0.25",
        "version 2, new: accuracy 0.95",
    ]
    assert models_report.metrics_of(client, BUCKET, "digits", "9") is None
    assert models_report.compare_lines("9", None, "2", {})[0] == "version 9, now: not in the store"
    assert models_report.compare_lines("2", {}, "2", {}) == ["version 2: no metrics"]
