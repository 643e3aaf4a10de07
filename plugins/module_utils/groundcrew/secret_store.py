"""Secrets that are made once, kept in AWS Secrets Manager, and read by every later run.

What kinds there are and what each value holds (a JSON object, all strings):

- ``ssh_key``:      ``private`` (OpenSSH), ``public`` (one line without comment)
- ``token``:        ``token`` (43 characters, 256 bits), ``sha256`` (lower-case hexadecimal), and while the key changes
                    ``previous_sha256``: the hash of the key before
- ``issued``:       the hashes alone: the key of a client that is not ours, see client_keys.py. Never made here
- ``authority``:    ``certificate``, ``private_key`` (PEM): a certificate authority, valid for ten years
- ``certificate``:  ``certificate``, ``private_key`` (PEM), signed by an ``authority`` for some ``names``
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import secrets
from typing import Any

from .errors import GroundcrewError

KINDS = ("ssh_key", "token", "issued", "authority", "certificate")
CERTIFICATE_DAYS = 397  # the longest that browsers accept
RENEW_DAYS = 30

Secret = dict[str, str]


def ssh_key() -> Secret:
    """A new Ed25519 key pair in OpenSSH's formats."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    return {
        "private": key.private_bytes(
            s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()
        ).decode(),
        "public": key.public_key()
        .public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
        .decode(),
    }


def token() -> Secret:
    """A new random key for a client of the gateway, and the hash under which the gateway knows it."""
    value = secrets.token_urlsafe(32)
    return {"token": value, "sha256": hashlib.sha256(value.encode()).hexdigest()}


def certificate(name: str, names: list[str], issuer: Secret | None) -> Secret:
    """A new certificate for ``names`` (DNS names or addresses), signed by ``issuer``; without one, an authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    days = CERTIFICATE_DAYS if issuer else 3650
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=None if issuer else 0),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer:
        authority = x509.load_pem_x509_certificate(issuer["certificate"].encode())
        signer: Any = s.load_pem_private_key(issuer["private_key"].encode(), None)
        builder = (
            builder.issuer_name(authority.subject)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
        )
    else:
        signer = key
        builder = builder.issuer_name(subject).add_extension(
            x509.KeyUsage(
                digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )  # fmt: skip
    return {
        "certificate": builder.sign(signer, hashes.SHA256()).public_bytes(s.Encoding.PEM).decode(),
        "private_key": key.private_bytes(
            s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()
        ).decode(),
    }


def certificate_fits(value: Secret, names: list[str], issuer: Secret) -> bool:
    """Whether a stored certificate is valid for exactly ``names``, long enough, and signed by ``issuer``."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    found = x509.load_pem_x509_certificate(value["certificate"].encode())
    authority = x509.load_pem_x509_certificate(issuer["certificate"].encode())
    have = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=RENEW_DAYS)
    try:
        found.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False  # another authority, perhaps of the same name
    return set(have) == {_general_name(n) for n in names} and found.not_valid_after_utc > soon


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class SecretStore:
    """The secrets of one environment: every name is ``<prefix>/<name>``."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client, self.prefix = client, prefix.rstrip("/")

    def read(self, names: list[str]) -> dict[str, Secret]:
        """Those of ``names`` that exist, in calls of at most 20 names each (the service's limit)."""
        found: dict[str, Secret] = {}
        for start in range(0, len(names), 20):
            wanted = [f"{self.prefix}/{name}" for name in names[start : start + 20]]
            page: dict[str, Any] = {"SecretIdList": wanted}
            while True:
                reply = self.client.batch_get_secret_value(**page)
                for error in reply.get("Errors", []):
                    if error.get("ErrorCode") != "ResourceNotFoundException":
                        raise GroundcrewError(
                            f"secret '{error.get('SecretId')}' cannot be read: {error.get('ErrorCode')}"
                            f" {error.get('Message')}. Allow this identity secretsmanager:GetSecretValue on it."
                        )
                for value in reply["SecretValues"]:
                    found[value["Name"][len(self.prefix) + 1 :]] = json.loads(value["SecretString"])
                if not reply.get("NextToken"):
                    break
                page["NextToken"] = reply["NextToken"]
        return found

    def ensure(
        self, wanted: dict[str, dict[str, Any]], dry_run: bool = False
    ) -> tuple[dict[str, Secret], list[str]]:
        """Read every secret of ``wanted`` and make those that are missing or no longer fit.

        ``wanted`` maps a name to ``{"kind": one of KINDS, "names": [...], "issuer": name of an authority}``; the last
        two belong to ``certificate``. An authority must stand before what it signs. Returns the values and the
        names that were made; with ``dry_run`` those that would be.
        """
        values = self.read(list(wanted))
        made: list[str] = []
        for name, want in wanted.items():
            old = values.get(name)
            value = self._value(name, want, old, values)
            values[name] = value
            if value == (old or {}):
                continue
            made.append(name)
            if dry_run:
                continue
            if old is None:
                self.create(name, value)
            else:
                self.write(name, value)
        return values, made

    def create(self, name: str, value: Secret) -> None:
        self.client.create_secret(Name=f"{self.prefix}/{name}", SecretString=json.dumps(value))

    def write(self, name: str, value: Secret) -> None:
        """Replace the value of a secret that exists."""
        self.client.put_secret_value(
            SecretId=f"{self.prefix}/{name}", SecretString=json.dumps(value)
        )

    @staticmethod
    def _value(
        name: str, want: dict[str, Any], old: Secret | None, values: dict[str, Secret]
    ) -> Secret:
        kind = want.get("kind")
        if kind not in KINDS:
            raise GroundcrewError(
                f"secret '{name}' has kind '{kind}'; use one of {', '.join(KINDS)}."
            )
        if kind == "certificate":
            issuer = values.get(want.get("issuer", ""))
            if issuer is None:
                raise GroundcrewError(
                    f"certificate '{name}' names the issuer '{want.get('issuer')}', which does not stand before it."
                )
            if old is not None and certificate_fits(old, want["names"], issuer):
                return old
            return certificate(want["names"][0], want["names"], issuer)
        if old is not None or kind == "issued":
            return old or {}
        if kind == "authority":
            return certificate(want.get("title", name), [], None)
        return ssh_key() if kind == "ssh_key" else token()
