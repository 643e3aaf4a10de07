"""The prediction client: what it sends, and what it makes of good, bad and missing answers."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import time
from pathlib import Path

import pytest
from application_support import PROBABILITIES, Gateway
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from digits_application.prediction import PredictionClient, PredictionError, read_api_key
from groundcrew.errors import GroundcrewError

INSTANCE = [0.0] * 63 + [16.0]


def client_of(gateway: Gateway, timeout_seconds: float = 5.0) -> PredictionClient:
    return PredictionClient(gateway.url, "digits", "key", timeout_seconds=timeout_seconds)


def test_sends_the_contract_and_reads_the_answer(gateway: Gateway) -> None:
    prediction = client_of(gateway).predict(INSTANCE, "request-1")
    ((path, headers, body),) = gateway.requests
    assert path == "/v1/models/digits:predict"
    assert body == {"instances": [INSTANCE]}
    assert headers["X-Api-Key"] == "key"
    assert headers["X-Request-Id"] == "request-1"
    assert prediction.digit == 7
    assert prediction.probabilities == PROBABILITIES
    assert prediction.version == "3"
    assert prediction.model_ms == 1.25
    assert prediction.latency_ms > 0


def test_answers_without_version_and_timing_are_good(gateway: Gateway) -> None:
    gateway.headers = {}
    prediction = client_of(gateway).predict(INSTANCE, "r")
    assert (prediction.version, prediction.model_ms) == (None, None)


def test_keeps_its_connection(gateway: Gateway) -> None:
    client = client_of(gateway)
    for _ in range(3):
        client.predict(INSTANCE, "r")
    assert (len(gateway.requests), gateway.connections) == (3, 1)


@pytest.mark.parametrize(
    ("status", "expected", "message"),
    [
        (400, 502, "answered 400: too hot"),
        (401, 502, "refuses this application's key"),
        (404, 502, "answered 404: too hot"),
        (429, 503, "too many predictions"),
        (500, 502, "answered 500: too hot"),
        (503, 503, "no prediction host is ready"),
        (504, 504, "did not answer in time"),
    ],
)
def test_refusals(gateway: Gateway, status: int, expected: int, message: str) -> None:
    gateway.status, gateway.body = status, {"error": "too hot"}
    with pytest.raises(PredictionError, match=message) as caught:
        client_of(gateway).predict(INSTANCE, "r")
    assert caught.value.status == expected
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        {},
        [],
        {"predictions": []},
        {"predictions": [[1.0]]},
        {"predictions": [PROBABILITIES, PROBABILITIES]},
        {"predictions": [["x"] * 10]},
        {"predictions": [[float("nan")] * 10]},
        {"predictions": None},
    ],
)
def test_malformed_answers(gateway: Gateway, body: object) -> None:
    gateway.body = body
    with pytest.raises(PredictionError) as caught:
        client_of(gateway).predict(INSTANCE, "r")
    assert caught.value.status == 502


def test_asks_again_once_when_the_connection_breaks(gateway: Gateway) -> None:
    gateway.before_answer = lambda: len(gateway.requests) > 1
    assert client_of(gateway).predict(INSTANCE, "r").digit == 7
    assert len(gateway.requests) == 2


def test_gives_up_when_the_connection_breaks_twice(gateway: Gateway) -> None:
    gateway.before_answer = lambda: False
    with pytest.raises(PredictionError, match="cannot be reached") as caught:
        client_of(gateway).predict(INSTANCE, "r")
    assert caught.value.status == 502
    assert len(gateway.requests) == 2


def test_nobody_listens(free_port: int) -> None:
    client = PredictionClient(f"http://127.0.0.1:{free_port}", "digits", "key")
    with pytest.raises(PredictionError, match="cannot be reached") as caught:
        client.predict(INSTANCE, "r")
    assert caught.value.status == 502


def test_a_slow_answer_is_not_asked_for_again(gateway: Gateway) -> None:
    def answer_late() -> bool:
        time.sleep(0.5)
        return True

    gateway.before_answer = answer_late
    with pytest.raises(PredictionError, match="in time") as caught:
        client_of(gateway, timeout_seconds=0.1).predict(INSTANCE, "r")
    assert caught.value.status == 504
    assert len(gateway.requests) == 1


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def test_trusts_the_given_authority_and_no_other(gateway: Gateway, tmp_path: Path) -> None:
    ours, other = certificate(tmp_path, "ours"), certificate(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours)
    gateway.socket = context.wrap_socket(gateway.socket, server_side=True)
    url = gateway.url.replace("http:", "https:")
    assert PredictionClient(url, "digits", "key", ca_file=ours).predict(INSTANCE, "r").digit == 7
    for ca_file in (other, None):
        with pytest.raises(PredictionError, match="certificate is not trusted") as caught:
            PredictionClient(url, "digits", "key", ca_file=ca_file).predict(INSTANCE, "r")
        assert caught.value.status == 502


def test_api_key_file(tmp_path: Path) -> None:
    path = tmp_path / "api_key"
    with pytest.raises(GroundcrewError, match="cannot be read"):
        read_api_key(path)
    path.write_text("\n")
    with pytest.raises(GroundcrewError, match="is empty"):
        read_api_key(path)
    path.write_text("secret\n")
    assert read_api_key(path) == "secret"
