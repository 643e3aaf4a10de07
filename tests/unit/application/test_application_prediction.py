"""The prediction client: what it sends, and what it makes of good, bad and missing answers."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from application_support import PROBABILITIES, Gateway, one_each
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from digits_application.digits import check_prediction, digit_of
from groundcrew.errors import GroundcrewError
from groundcrew_application.circuit import HALF_OPEN, OPEN, CircuitBreaker
from groundcrew_application.prediction import (
    Answer,
    Fallback,
    Hooks,
    PredictionClient,
    PredictionError,
    read_api_key,
)

INSTANCE = [0.0] * 63 + [16.0]


def client_of(gateway: Gateway, timeout_seconds: float = 5.0, **options: Any) -> PredictionClient:
    return PredictionClient(
        gateway.url,
        "digits",
        "key",
        timeout_seconds=timeout_seconds,
        check=check_prediction,
        **options,
    )


class Told(Hooks):
    def __init__(self) -> None:
        self.sources: list[str] = []
        self.errors: list[PredictionError] = []
        self.retries = 0
        self.states: list[str] = []

    def answered(self, source: str, seconds: float) -> None:
        self.sources.append(source)

    def failed(self, error: PredictionError) -> None:
        self.errors.append(error)

    def retried(self) -> None:
        self.retries += 1

    def circuit(self, state: str) -> None:
        self.states.append(state)


def test_sends_the_contract_and_reads_the_answer(gateway: Gateway) -> None:
    prediction = client_of(gateway).predict(INSTANCE, "request-1")
    ((path, headers, body),) = gateway.requests
    assert path == "/v1/models/digits:predict"
    assert body == {"instances": [INSTANCE]}
    assert headers["X-Api-Key"] == "key"
    assert headers["X-Request-Id"] == "request-1"
    assert prediction.predictions == [PROBABILITIES]
    assert digit_of(prediction.predictions[0]) == 7
    assert (prediction.version, prediction.source, prediction.problem) == ("3", "prediction", None)
    assert prediction.timing_ms == {"queue": 0.1, "model": 1.25, "total": 1.5}
    assert prediction.latency_ms > 0


def test_answers_without_version_and_timing_are_good(gateway: Gateway) -> None:
    gateway.headers = {}
    prediction = client_of(gateway).predict(INSTANCE, "r")
    assert (prediction.version, prediction.timing_ms) == (None, {})


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
    assert client_of(gateway).predict(INSTANCE, "r").predictions == [PROBABILITIES]
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


def test_an_answer_that_comes_drop_by_drop_ends_at_the_deadline(gateway: Gateway) -> None:
    gateway.drip_seconds = 0.05
    started = time.perf_counter()
    with pytest.raises(PredictionError, match="in time"):
        client_of(gateway, timeout_seconds=0.3).predict(INSTANCE, "r")
    assert time.perf_counter() - started < 0.6
    gateway.drip_seconds = 0.0
    assert client_of(gateway).predict(INSTANCE, "r").source == "prediction"


def test_both_attempts_share_one_deadline(gateway: Gateway) -> None:
    told = Told()

    def late_then_hang_up() -> bool:
        time.sleep(0.25)
        return False

    gateway.before_answer = late_then_hang_up
    started = time.perf_counter()
    with pytest.raises(PredictionError):
        client_of(gateway, timeout_seconds=0.4, hooks=told).predict(INSTANCE, "r")
    assert time.perf_counter() - started < 0.8
    assert (len(gateway.requests), told.retries) == (2, 1)


def test_too_many_requests_says_when(gateway: Gateway) -> None:
    gateway.status, gateway.headers = 429, {"Retry-After": "7"}
    with pytest.raises(PredictionError) as caught:
        client_of(gateway).predict(INSTANCE, "r")
    assert caught.value.retry_after_seconds == 7


def test_several_instances(gateway: Gateway) -> None:
    gateway.body = one_each
    answer = client_of(gateway).ask([INSTANCE] * 3, "r")
    assert answer.predictions == [PROBABILITIES] * 3


# -- the circuit ----------------------------------------------------------------------------------


def test_the_circuit_opens_and_a_probe_closes_it(gateway: Gateway) -> None:
    now, told = [0.0], Told()
    breaker = CircuitBreaker(3, 10.0, clock=lambda: now[0], changed=told.circuit)
    client = client_of(gateway, breaker=breaker, hooks=told)
    gateway.status = 503
    for _ in range(3):
        with pytest.raises(PredictionError, match="no prediction host is ready"):
            client.predict(INSTANCE, "r")
    assert breaker.state == OPEN and len(gateway.requests) == 3
    now[0] = 4.0
    with pytest.raises(PredictionError, match="no prediction host.*asked again shortly") as caught:
        client.predict(INSTANCE, "r")
    assert caught.value.status == 503 and caught.value.retry_after_seconds == 6
    assert len(gateway.requests) == 3  # left alone
    now[0] = 11.0
    with pytest.raises(PredictionError, match="no prediction host is ready, try"):
        client.predict(INSTANCE, "r")
    assert breaker.state == OPEN and len(gateway.requests) == 4
    now[0], gateway.status = 22.0, 200
    assert client.predict(INSTANCE, "r").source == "prediction"
    assert told.states == [OPEN, HALF_OPEN, OPEN, HALF_OPEN, "closed"]
    assert client.version == "3" and client.answered_seconds_ago is not None


def test_a_late_success_does_not_take_the_reason_from_an_open_circuit(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(gateway, breaker=CircuitBreaker(1), stale_entries=0)
    asked = client._ask

    def slow(instances: list[Any], request_id: str) -> Answer:
        """Another request fails while this one is under way."""
        monkeypatch.setattr(client, "_ask", asked)
        answer = asked(instances, request_id)
        gateway.status = 503
        with pytest.raises(PredictionError, match="no prediction host is ready"):
            client.predict(INSTANCE, "second")
        return answer

    monkeypatch.setattr(client, "_ask", slow)
    assert client.predict(INSTANCE, "first").source == "prediction"
    with pytest.raises(PredictionError, match="no prediction host is ready.*asked again"):
        client.predict(INSTANCE, "third")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
def test_refusals_do_not_open_the_circuit(gateway: Gateway, status: int) -> None:
    client = client_of(gateway, breaker=CircuitBreaker(1))
    gateway.status = status
    for _ in range(2):
        with pytest.raises(PredictionError):
            client.predict(INSTANCE, "r")
    assert len(gateway.requests) == 2


@pytest.mark.parametrize("harm", ["dead", "slow", "malformed", "broken"])
def test_what_opens_the_circuit(gateway: Gateway, harm: str) -> None:
    client = client_of(gateway, timeout_seconds=0.1, breaker=CircuitBreaker(1))
    if harm == "dead":
        gateway.before_answer = lambda: False
    elif harm == "slow":
        gateway.before_answer = lambda: time.sleep(0.3) is None
    elif harm == "malformed":
        gateway.body = b"<html>"
    else:
        gateway.status = 500
    with pytest.raises(PredictionError):
        client.predict(INSTANCE, "r")
    assert client.breaker.state == OPEN


def test_a_bug_in_the_caller_frees_the_probe(gateway: Gateway) -> None:
    now = 0.0
    client = client_of(gateway, breaker=CircuitBreaker(1, 1.0, clock=lambda: now))
    gateway.status = 500
    with pytest.raises(PredictionError):
        client.predict(INSTANCE, "r")
    now, gateway.status = 2.0, 200
    with pytest.raises(TypeError):
        client.ask([object()], "r")
    assert client.predict(INSTANCE, "r").source == "prediction"


def test_many_threads_while_it_comes_and_goes(gateway: Gateway) -> None:
    client = client_of(gateway, breaker=CircuitBreaker(3, 0.02), stale_entries=0)
    outcomes: list[str] = []

    def ask() -> None:
        for _ in range(40):
            try:
                outcomes.append(client.predict(INSTANCE, "r").source)
            except PredictionError as error:
                outcomes.append(str(error.status))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for status in (503, 200, 503, 200):
        gateway.status = status
        time.sleep(0.05)
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == 240 and set(outcomes) <= {"prediction", "503", "502"}
    time.sleep(0.03)
    assert client.predict(INSTANCE, "r").source == "prediction"


# -- answers instead ------------------------------------------------------------------------------


def test_a_stale_answer_says_so(gateway: Gateway) -> None:
    now, told = [100.0], Told()
    client = client_of(gateway, clock=lambda: now[0], stale_seconds=60, hooks=told)
    client.predict(INSTANCE, "r")
    gateway.status = 503
    now[0] += 12
    answer = client.predict(INSTANCE, "r")
    assert (answer.source, answer.age_seconds, answer.version) == ("stale", 12.0, "3")
    assert answer.predictions == [PROBABILITIES]
    assert answer.problem == "no prediction host is ready, try again in a moment"
    with pytest.raises(PredictionError):  # another instance
        client.predict([1.0] * 64, "r")
    now[0] += 60
    with pytest.raises(PredictionError):  # too old
        client.predict(INSTANCE, "r")
    assert told.sources == ["prediction", "stale"]
    assert len(told.errors) == 3


def test_kept_answers_are_bounded_and_the_last_ones(gateway: Gateway) -> None:
    client = client_of(gateway, stale_entries=2)
    rows = [[float(row)] * 64 for row in range(3)]
    for row in (rows[0], rows[1], rows[0], rows[2]):
        client.predict(row, "r")
    gateway.status = 503
    assert client.predict(rows[0], "r").source == client.predict(rows[2], "r").source == "stale"
    with pytest.raises(PredictionError):
        client.predict(rows[1], "r")


def test_the_fallback_is_last(gateway: Gateway) -> None:
    def fallback(instance: Any) -> Fallback | None:
        return Fallback("guess", "2", 3600.0) if instance == INSTANCE else None

    client = client_of(gateway, fallback=fallback)
    gateway.status = 503
    answer = client.predict(INSTANCE, "r")
    assert (answer.source, answer.predictions, answer.version) == ("fallback", ["guess"], "2")
    assert answer.age_seconds == 3600
    with pytest.raises(PredictionError):
        client.predict([0.0] * 64, "r")
    gateway.status = 200
    client.predict(INSTANCE, "r")
    gateway.status = 503
    assert client.predict(INSTANCE, "r").source == "stale"


def test_nothing_instead_of_a_refusal_of_the_instance(gateway: Gateway) -> None:
    client = client_of(gateway, fallback=lambda instance: Fallback("guess"))
    gateway.status, gateway.body = 400, {"error": "instances[0] has 2 values"}
    with pytest.raises(PredictionError, match="has 2 values") as caught:
        client.predict(INSTANCE, "r")
    assert caught.value.refused


def test_an_answer_has_defaults() -> None:
    answer = Answer([1])
    assert (answer.source, answer.age_seconds, answer.timing_ms) == ("prediction", 0.0, {})


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
    assert PredictionClient(url, "digits", "key", ca_file=ours).predict(
        INSTANCE, "r"
    ).predictions == [PROBABILITIES]
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
