from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import uuid
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from cryptography.hazmat.primitives.serialization.ssh import load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from groundcrew import secret_store
from groundcrew.errors import GroundcrewError
from groundcrew.secret_store import SecretStore

WANTED: dict[str, dict[str, Any]] = {
    "ssh/deploy": {"kind": "ssh_key"},
    "clients/verify": {"kind": "token"},
    "tls/authority": {"kind": "authority", "title": "Groundcrew test"},
    "tls/gateway": {
        "kind": "certificate",
        "issuer": "tls/authority",
        "names": ["localhost", "127.0.0.1"],
    },
}


@pytest.fixture
def store(aws: None) -> SecretStore:
    # Names of its own: moto keeps one cloud a process, whoever's test it is.
    return SecretStore(boto3.client("secretsmanager"), f"groundcrew/{uuid.uuid4()}")


def verify(value: dict[str, str], authority: dict[str, str], name: str) -> None:
    """As a client does: the chain, the dates, the use and the name."""
    subject: Any = x509.DNSName(name)
    if name[0].isdigit():
        subject = x509.IPAddress(ipaddress.ip_address(name))
    trusted = Store([x509.load_pem_x509_certificate(authority["certificate"].encode())])
    certificate = x509.load_pem_x509_certificate(value["certificate"].encode())
    PolicyBuilder().store(trusted).build_server_verifier(subject).verify(certificate, [])


def test_everything_is_made_once(store: SecretStore) -> None:
    values, made = store.ensure(WANTED)
    assert made == list(WANTED)
    assert store.ensure(WANTED) == (values, [])
    # Another process, which only has what is stored.
    assert SecretStore(store.client, store.prefix + "/").read(list(WANTED)) == values


def test_a_secret_that_is_missing_is_made_and_the_others_stay(store: SecretStore) -> None:
    values, _ = store.ensure(WANTED)
    more, made = store.ensure({**WANTED, "clients/new": {"kind": "token"}})
    assert made == ["clients/new"]
    assert {name: more[name] for name in WANTED} == values


def test_dry_run_says_what_would_be_made_and_makes_nothing(store: SecretStore) -> None:
    _, made = store.ensure(WANTED, dry_run=True)
    assert made == list(WANTED)
    assert store.read(list(WANTED)) == {}


def test_more_names_than_one_call_takes(store: SecretStore) -> None:
    wanted = {f"clients/{number}": {"kind": "token"} for number in range(45)}
    values, made = store.ensure(wanted)
    assert len(values) == len(made) == 45
    assert store.ensure(wanted) == (values, [])


def test_authority_signs_for_every_name_and_no_other(store: SecretStore) -> None:
    values, _ = store.ensure(WANTED)
    for name in ("localhost", "127.0.0.1"):
        verify(values["tls/gateway"], values["tls/authority"], name)
    with pytest.raises(VerificationError):
        verify(values["tls/gateway"], values["tls/authority"], "example.com")
    other = secret_store.certificate("Groundcrew test", [], None)
    with pytest.raises(VerificationError):
        verify(values["tls/gateway"], other, "localhost")


def test_key_belongs_to_its_certificate(store: SecretStore) -> None:
    values, _ = store.ensure(WANTED)
    for name in ("tls/authority", "tls/gateway"):
        certificate = x509.load_pem_x509_certificate(values[name]["certificate"].encode())
        key = load_pem_private_key(values[name]["private_key"].encode(), None)
        assert key.public_key() == certificate.public_key()


def test_new_names_renew_the_certificate_alone(store: SecretStore) -> None:
    values, _ = store.ensure(WANTED)
    names = ["localhost", "127.0.0.1", "10.0.0.5"]
    changed = {**WANTED, "tls/gateway": {**WANTED["tls/gateway"], "names": names}}
    renewed, made = store.ensure(changed)
    assert made == ["tls/gateway"]
    assert renewed["tls/authority"] == values["tls/authority"]
    verify(renewed["tls/gateway"], renewed["tls/authority"], "10.0.0.5")
    assert store.ensure(changed) == (renewed, [])


def test_order_of_the_names_renews_nothing(store: SecretStore) -> None:
    store.ensure(WANTED)
    names = list(reversed(WANTED["tls/gateway"]["names"]))
    _, made = store.ensure({**WANTED, "tls/gateway": {**WANTED["tls/gateway"], "names": names}})
    assert made == []


def test_a_certificate_near_its_end_is_renewed(
    store: SecretStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(secret_store, "CERTIFICATE_DAYS", secret_store.RENEW_DAYS - 1)
        store.ensure(WANTED)
    values, made = store.ensure(WANTED)
    assert made == ["tls/gateway"]
    found = x509.load_pem_x509_certificate(values["tls/gateway"]["certificate"].encode())
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert secret_store.RENEW_DAYS < left.days < 398


def test_ssh_key_is_a_pair_in_the_formats_of_openssh() -> None:
    pair = secret_store.ssh_key()
    kind, data = pair["public"].split(" ")
    assert kind == "ssh-ed25519" and base64.b64decode(data)
    private = load_ssh_private_key(pair["private"].encode(), None)
    assert private.public_key() == load_ssh_public_key(pair["public"].encode())


def test_token_has_256_bits_and_its_hash() -> None:
    value = secret_store.token()
    assert len(value["token"]) == 43
    assert value["sha256"] == hashlib.sha256(value["token"].encode()).hexdigest()
    assert secret_store.token() != value


@pytest.mark.parametrize(
    ("want", "message"),
    [
        ({"kind": "password"}, "'x' has kind 'password'; use one of ssh_key"),
        (
            {"kind": "certificate", "issuer": "nobody", "names": ["a"]},
            "names the issuer 'nobody', which does not stand before it",
        ),
    ],
)
def test_what_cannot_be_made_is_named(
    store: SecretStore, want: dict[str, Any], message: str
) -> None:
    with pytest.raises(GroundcrewError, match=message):
        store.ensure({"x": want})
    assert store.read(["x"]) == {}


def test_no_right_to_read_is_no_missing_secret() -> None:
    class Denied:
        def batch_get_secret_value(self, **_arguments: Any) -> dict[str, Any]:
            error = {"SecretId": "p/x", "ErrorCode": "AccessDeniedException", "Message": "no"}
            return {"SecretValues": [], "Errors": [error]}

    with pytest.raises(GroundcrewError, match="secret 'p/x' cannot be read: AccessDenied"):
        SecretStore(Denied(), "p").ensure({"x": {"kind": "token"}})


def test_certificate_of_another_authority_of_the_same_title_is_made_anew() -> None:
    first, second = (secret_store.certificate("Groundcrew", [], None) for _ in range(2))
    signed = secret_store.certificate("localhost", ["localhost"], first)
    assert secret_store.certificate_fits(signed, ["localhost"], first)
    assert not secret_store.certificate_fits(signed, ["localhost"], second)
