"""Keys of the gateway's clients over a stand-in of the secret store."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import pytest
from groundcrew.client_keys import change, find, table
from groundcrew.errors import GroundcrewError
from groundcrew.secret_store import SecretStore

OURS = {"name": "application"}
PARTNER = {"name": "partner", "external": True, "models": ["digits"]}
WANTED = {"clients/application": {"kind": "token"}, "clients/partner": {"kind": "issued"}}


@pytest.fixture
def store(aws: None) -> SecretStore:
    import boto3

    # moto keeps one cloud a process, whoever else uses it.
    made = SecretStore(boto3.client("secretsmanager"), f"groundcrew/{uuid.uuid4()}")
    made.ensure(WANTED)
    return made


def kept(store: SecretStore, name: str) -> dict[str, Any]:
    return store.read([f"clients/{name}"]).get(f"clients/{name}", {})


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_deploy_makes_our_own_keys_and_no_others(store: SecretStore) -> None:
    assert set(kept(store, "application")) == {"token", "sha256"}
    assert kept(store, "partner") == {}
    assert store.ensure(WANTED)[1] == [], "the second run makes nothing"


def test_the_life_of_a_partners_key(store: SecretStore) -> None:
    first = change(store, PARTNER, "issue")
    assert kept(store, "partner") == {"sha256": sha256(first)}, "the hash, and not the key"
    second = change(store, PARTNER, "rotate")
    assert second != first
    assert kept(store, "partner") == {"sha256": sha256(second), "previous_sha256": sha256(first)}
    with pytest.raises(GroundcrewError, match=r"two keys of partner are valid.*action=revoke"):
        change(store, PARTNER, "rotate")
    assert change(store, PARTNER, "revoke") == ""
    assert kept(store, "partner") == {"sha256": sha256(second)}
    change(store, PARTNER, "revoke_all")
    assert kept(store, "partner") == {"sha256": ""}
    third = change(store, PARTNER, "issue")
    assert kept(store, "partner") == {"sha256": sha256(third)}
    assert store.ensure(WANTED)[1] == []


def test_the_key_of_our_own_client_changes_in_the_secret_store(store: SecretStore) -> None:
    before = kept(store, "application")
    assert change(store, OURS, "rotate") == "", "nobody has to see it"
    after = kept(store, "application")
    assert after["token"] != before["token"]
    assert after["sha256"] == sha256(after["token"])
    assert after["previous_sha256"] == before["sha256"]
    assert store.ensure(WANTED)[1] == [], "a deploy in between keeps both"
    assert kept(store, "application") == after
    change(store, OURS, "revoke")
    assert kept(store, "application") == {"token": after["token"], "sha256": after["sha256"]}


@pytest.mark.parametrize(
    ("client", "before", "action", "said"),
    [
        (OURS, [], "issue", "made by a deploy"),
        (OURS, [], "revoke", "Our own client needs it"),
        (OURS, [], "revoke_all", "would stop working"),
        (PARTNER, [], "rotate", "action=issue"),
        (PARTNER, [], "revoke", "has no key"),
        (PARTNER, ["issue"], "issue", "has a key already"),
        (PARTNER, ["issue"], "revoke", "action=revoke_all"),
        (PARTNER, ["issue"], "remove", "action is 'remove'"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    store: SecretStore, client: dict[str, Any], before: list[str], action: str, said: str
) -> None:
    for step in before:
        change(store, client, step)
    there = kept(store, client["name"])
    with pytest.raises(GroundcrewError, match=said):
        change(store, client, action)
    assert kept(store, client["name"]) == there


def test_a_dry_run_changes_nothing(store: SecretStore) -> None:
    change(store, PARTNER, "issue", dry_run=True)
    assert kept(store, "partner") == {}


def test_an_unknown_client_is_named(store: SecretStore) -> None:
    assert find([OURS, PARTNER], "partner") is PARTNER
    with pytest.raises(GroundcrewError, match=r"no client 'partnr'.*application, partner"):
        find([OURS, PARTNER], "partnr")


def test_the_table_has_no_key(store: SecretStore) -> None:
    key = change(store, PARTNER, "issue")
    secrets = {name: kept(store, name.partition("/")[2]) for name in WANTED}
    lines = table([OURS, PARTNER], secrets)
    text = "\n".join(lines)
    assert key not in text and secrets["clients/application"]["token"] not in text
    assert f"sha256 {sha256(key)[:8]}…" in lines[1] and "models digits" in lines[1]
    assert "no key" in table([PARTNER], {})[0]
