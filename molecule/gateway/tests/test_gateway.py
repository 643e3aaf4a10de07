"""What clients, services and an operator see of the gateway."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import cloud

KEY = {"X-Api-Key": "key-of-tester"}
ACCESS_LOG = "/var/log/haproxy/access.log"
LIMIT_BYTES = 1048576
UNDECLARED_BYTES = 65536


@pytest.fixture
def address(host):
    """The private address of the host."""
    return next(a for a in host.interface.default().addresses if ":" not in a)


@pytest.fixture
def ask(host):
    """Send requests over one connection from the host itself; returns the answers, or the one answer of one request."""

    def send(*requests):
        result = host.run(f"/opt/ask.py {shlex.quote(json.dumps(requests))}")
        assert result.rc == 0, result.stderr + host.run("journalctl -u haproxy -n 20").stdout
        answers = json.loads(result.stdout)
        return answers if len(answers) > 1 else answers[0]

    return send


def error_of(answer):
    assert answer["headers"]["content-type"] == "application/json", answer
    return json.loads(answer["body"])["error"]


def runtime(host, command):
    """One command on the runtime socket."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        "s.sendall(sys.argv[1].encode() + b'\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    return host.check_output(f'python3 -c "{script}" {shlex.quote(command)}')


def wait_until(condition, what, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def test_listens_where_it_should(host, address):
    assert host.socket("tcp://0.0.0.0:443").is_listening
    assert host.socket(f"tcp://{address}:8404").is_listening
    assert not host.socket("tcp://0.0.0.0:8404").is_listening
    assert not host.socket("tcp://127.0.0.1:8404").is_listening
    assert host.service("haproxy").is_enabled


def test_secrets_are_closed(host):
    certificate = host.file("/etc/haproxy/certificate.pem")
    assert (certificate.user, certificate.mode) == ("root", 0o600)
    keys = host.file("/etc/haproxy/keys.map")
    assert (keys.user, keys.group, keys.mode) == ("root", "haproxy", 0o640)
    assert "key-of-tester" not in keys.content_string
    socket = host.file("/run/haproxy/admin.sock")
    assert socket.mode == 0o660


@pytest.mark.parametrize(
    "path", ["/v1/models/digits", "/v1/models/digits:predict", "/v1/models/unknown", "/v1/models/"]
)
def test_a_model_needs_a_key(ask, path):
    for headers in ({}, {"X-Api-Key": "wrong"}, {"X_Api_Key": "key-of-tester"}):
        answer = ask({"path": path, "headers": headers, "bytes": 10})
        assert answer["status"] == 401
        assert "X-Api-Key" in error_of(answer)
        assert answer["headers"]["www-authenticate"].startswith("ApiKey")


@pytest.mark.parametrize(
    "path",
    ["/v1/models/digits", "/v1/models/digits:predict", "/v1/models/digits/versions/1:predict"],
)
def test_a_key_opens_the_model(ask, path):
    for key in ("key-of-tester", "next-key-of-tester"):
        answer = ask({"path": path, "headers": {"X-Api-Key": key}, "bytes": 100})
        assert answer["status"] == 200
        received = json.loads(answer["body"])
        assert received["path"] == path
        assert received["port"] in (18080, 18081)
        assert received["bytes"] == 100


def test_unknown_paths(ask):
    assert ask({"path": "/v1/models/unknown", "headers": KEY})["status"] == 404
    for path in ("/v1", "/v1/", "/v1/models", "/v1/other"):
        answer = ask({"path": path, "headers": KEY})
        assert answer["status"] == 404
        assert "/v1/models/<name>" in error_of(answer)
    answer = ask({"path": "/missing"})
    assert (answer["status"], json.loads(answer["body"])["port"]) == (404, 18082), (
        "the application says what it does not have"
    )


def test_a_version_is_asked_for_by_its_number_and_weights_share_the_rest(ask):
    for version, port in (("1", 18080), ("2", 18081)):
        for path in (f"versions/{version}:predict", f"versions/{version}"):
            answer = ask({"path": f"/v1/models/versioned/{path}", "headers": KEY})
            assert json.loads(answer["body"])["port"] == port
    answer = ask({"path": "/v1/models/versioned/versions/3:predict", "headers": KEY})
    assert answer["status"] == 404 and "version" in error_of(answer)
    answers = ask(*[{"path": "/v1/models/versioned:predict", "headers": KEY, "bytes": 9}] * 100)
    assert Counter(json.loads(answer["body"])["port"] for answer in answers) == {
        18080: 90,
        18081: 10,
    }
    assert Counter(answer["headers"]["x-model-version"] for answer in answers) == {
        "1": 90,
        "2": 10,
    }
    # Spread out, not ten in a row.
    versions = "".join(answer["headers"]["x-model-version"] for answer in answers)
    assert "22" not in versions


def test_who_is_sticky_stays_and_a_version_that_is_down_costs_no_answer(ask):
    def asked(user):
        return {
            "path": "/v1/models/three:predict",
            "headers": {**KEY, "X-User-Id": f"user-{user}"},
            "bytes": 9,
        }

    first = ask(*[asked(user) for user in range(100)])
    again = ask(*[asked(user) for user in range(100)])
    versions = [answer["headers"]["x-model-version"] for answer in first]
    assert versions == [answer["headers"]["x-model-version"] for answer in again]
    # 60 : 30 : 10 of a hash's space, and nothing listens behind the last.
    assert set(versions) == {"1", "2"} and 15 <= versions.count("2") <= 45
    assert {answer["status"] for answer in first + again} == {200}
    nobody = {"path": "/v1/models/three:predict", "headers": KEY, "bytes": 9}
    answers = ask(*[nobody] * 100)
    assert Counter(answer["headers"]["x-model-version"] for answer in answers) == {
        "1": 70,
        "2": 30,
    }


def test_a_key_is_for_its_models_and_paths(ask):
    partner = {"X-Api-Key": "key-of-partner"}
    assert ask({"path": "/v1/models/digits:predict", "headers": partner})["status"] == 200
    for path, why in (
        ("/v1/models/versioned:predict", "this model"),
        ("/v1/models/unknown:predict", "this model"),
        ("/v1/models/digits", "this path"),
        ("/v1/models/digits/versions/1:predict", "this path"),
    ):
        answer = ask({"path": path, "headers": partner})
        assert answer["status"] == 403, path
        assert why in error_of(answer)


def grpc_request(model: bytes, version: int = 0) -> str:
    """A gRPC message that holds a PredictRequest with model_spec.name and .version, in hex."""
    spec = b"\x0a" + bytes([len(model)]) + model
    if version:
        spec += b"\x12\x02\x08" + bytes([version])
    request = b"\x0a" + bytes([len(spec)]) + spec
    return (b"\0" + len(request).to_bytes(4, "big") + request).hex()


@pytest.mark.parametrize(
    ("model", "headers", "status"),
    [
        (b"versioned", {}, 401),
        (b"unknown", KEY, 404),
        (b"digits", KEY, 404),
        (b"versioned", KEY, 503),
    ],
)
def test_grpc_needs_a_key_and_a_model_that_speaks_it(ask, model, headers, status):
    answer = ask(
        {
            "path": "/tensorflow.serving.PredictionService/Predict",
            "headers": {"content-type": "application/grpc", **headers},
            "hex": grpc_request(model),
        }
    )
    # 503: the right backend, whose server does not listen. What it answers is tested with the whole system.
    assert answer["status"] == status, answer


@pytest.mark.parametrize(("version", "status"), [(1, 503), (2, 404), (3, 404)])
def test_grpc_asks_for_a_version(ask, version, status):
    answer = ask(
        {
            "path": "/tensorflow.serving.PredictionService/Predict",
            "headers": {"content-type": "application/grpc", **KEY},
            "hex": grpc_request(b"versioned", version),
        }
    )
    assert answer["status"] == status, answer


def test_a_version_without_grpc_takes_no_share_of_it(ask):
    request = {
        "path": "/tensorflow.serving.PredictionService/Predict",
        "headers": {"content-type": "application/grpc", **KEY},
        "hex": grpc_request(b"versioned"),
    }
    answers = ask(*[request] * 30)
    assert {(a["status"], a["headers"]["x-model-version"]) for a in answers} == {(503, "1")}


def test_a_service_sees_only_headers_of_the_gateway(ask):
    forged = {
        **KEY,
        "X-Client-Id": "somebody",
        "X_Client_Id": "somebody",
        "X-Forwarded-For": "203.0.113.1",
        "X_Forwarded_For": "203.0.113.1",
        "Forwarded": "for=203.0.113.1",
    }
    received = json.loads(ask({"path": "/v1/models/digits", "headers": forged})["body"])["headers"]
    assert received["x-client-id"] == "tester"
    assert received["x-forwarded-for"] == "127.0.0.1"
    assert received["x-forwarded-proto"] == "https"
    assert not {"x-api-key", "x_client_id", "x_forwarded_for", "forwarded"} & set(received)
    received = json.loads(ask({"path": "/page", "headers": forged})["body"])["headers"]
    assert not {"x-api-key", "x-client-id", "x_client_id"} & set(received)


def test_each_service_has_its_path(ask, host):
    bare = ask({"path": "/reports"})
    assert (bare["status"], bare["headers"]["location"]) == (308, "/reports/")
    for path, backend in (
        ("/reports/", "application_reports"),
        ("/reports/of/today", "application_reports"),
        ("/reportsx", "application_page"),
        ("/", "application_page"),
    ):
        assert ask({"path": path})["status"] == 200
        lines = host.check_output("tail -n 40 %s", ACCESS_LOG).splitlines()
        last = [entry for entry in map(json.loads, lines) if entry["path"] == path][-1]
        assert last["backend"] == backend, last


def test_who_uploads_something_stays_with_its_host_there_and_nowhere_else(ask, host):
    first = ask({"path": "/reports/files"})
    cookie = first["headers"]["set-cookie"]
    assert "HttpOnly" in cookie and "Secure" in cookie and "SameSite=Lax" in cookie

    def servers(path):
        many = [{"path": path, "headers": {"Cookie": cookie.split(";")[0]}}] * 8
        assert {answer["status"] for answer in ask(*many)} == {200}
        lines = host.check_output("tail -n 40 %s", ACCESS_LOG).splitlines()
        return {e["server"] for e in [e for e in map(json.loads, lines) if e["path"] == path][-8:]}

    assert len(servers("/reports/files/7")) == 1
    assert len(servers("/reports/other")) == 2


def test_request_id(ask):
    answer = ask({"path": "/", "headers": {"X-Request-Id": "order-17:a.b=c"}})
    assert answer["headers"]["x-request-id"] == "order-17:a.b=c"
    assert json.loads(answer["body"])["headers"]["x-request-id"] == "order-17:a.b=c"
    for unfit in ('say "hello"', "x" * 200, ""):
        answer = ask({"path": "/", "headers": {"X-Request-Id": unfit}})
        made = answer["headers"]["x-request-id"]
        assert len(made) == 36
        assert json.loads(answer["body"])["headers"]["x-request-id"] == made
    assert len(ask({"path": "/v1/nothing"})["headers"]["x-request-id"]) == 36


@pytest.mark.parametrize(
    ("size", "chunked", "status"),
    [
        (LIMIT_BYTES, False, 200),
        (LIMIT_BYTES + 1, False, 413),
        (8 * LIMIT_BYTES, False, 413),
        (UNDECLARED_BYTES, True, 200),
        (UNDECLARED_BYTES + 1, True, 413),
        (8 * LIMIT_BYTES, True, 413),
    ],
)
def test_body_size(ask, size, chunked, status):
    """The client gets the answer, not a reset, even though it was still sending; and may go on over the same connection."""
    large = {
        "path": "/v1/models/digits:predict",
        "headers": KEY,
        "bytes": size,
        "chunked": chunked,
        "method": "POST",
    }
    answer, next_answer = ask(large, {"path": "/v1/models/digits", "headers": KEY})
    assert answer["status"] == status, answer
    assert next_answer["status"] == 200
    if status == 413:
        assert "longer than" in error_of(answer)


def test_a_length_beyond_32_bits_is_not_taken_for_a_short_one(ask):
    for length in ("4294967297", "9223372036854775807"):
        answer = ask(
            {
                "path": "/v1/models/digits",
                "headers": {**KEY, "Content-Length": length},
                "method": "POST",
            }
        )
        assert answer["status"] == 413


def test_long_headers(ask):
    answer = ask({"path": "/", "headers": {f"X-Long-{i}": "x" * 1000 for i in range(40)}})
    assert answer["status"] == 431
    assert "headers" in error_of(answer)


def test_refused_with_a_body(ask):
    assert (
        ask({"path": "/v1/models/digits", "headers": {"X-Api-Key": "wrong"}, "bytes": LIMIT_BYTES})[
            "status"
        ]
        == 401
    )


def test_limit_of_a_client(ask):
    slow = {"path": "/v1/models/digits", "headers": {"X-Api-Key": "key-of-slow"}}
    answers = ask(*[slow] * 12)
    assert Counter(a["status"] for a in answers) == {200: 5, 429: 7}
    assert answers[-1]["headers"]["retry-after"] == "10"
    assert "requests" in error_of(answers[-1])
    # The others do not notice.
    assert ask({"path": "/v1/models/digits", "headers": KEY})["status"] == 200


def test_limit_of_a_burst(ask):
    bursty = {"path": "/v1/models/digits", "headers": {"X-Api-Key": "key-of-bursty"}}
    answers = ask(*[bursty] * 6)
    assert Counter(a["status"] for a in answers) == {200: 3, 429: 3}
    assert answers[-1]["headers"]["retry-after"] == "1"
    assert "one second" in error_of(answers[-1])
    wait_until(lambda: ask(bursty)["status"] == 200, "the second to pass")


AT_ONCE = """
import http.client, json, ssl, sys, threading
key, number, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context(cafile="/etc/haproxy/certificate.pem")
context.check_hostname = False
answers = []
def client():
    connection = http.client.HTTPSConnection("127.0.0.1", 443, context=context, timeout=20)
    connection.connect()
    ready.wait()
    connection.request("POST", "/v1/models/digits:predict", b"{}", {"X-Api-Key": key, "X-Seconds": seconds})
    response = connection.getresponse()
    answers.append([response.status, response.getheader("retry-after"), response.read().decode()])
ready = threading.Barrier(number)
threads = [threading.Thread(target=client) for _ in range(number)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(answers))
"""


def at_once(host, key, number, seconds):
    """The same request over as many connections at the same time."""
    command = f"python3 -c {shlex.quote(AT_ONCE)} {key} {number} {seconds}"
    return json.loads(host.check_output(command))


def test_limit_of_requests_at_a_time(host, ask):
    answers = at_once(host, "key-of-few", 6, 1)
    assert Counter(status for status, *_ in answers) == {200: 2, 429: 4}
    refused = next(answer for answer in answers if answer[0] == 429)
    assert refused[1] == "1" and "at a time" in refused[2]
    few = {"path": "/v1/models/digits", "headers": {"X-Api-Key": "key-of-few"}}
    assert ask(few)["status"] == 200, "what has ended is not counted"


def test_a_full_queue_is_an_answer_at_once(host):
    # Two servers work on four requests each and four more wait for them.
    answers = at_once(host, "key-of-tester", 16, 1)
    assert Counter(status for status, *_ in answers) == {200: 12, 503: 4}
    refused = next(answer for answer in answers if answer[0] == 503)
    assert refused[1] == "1" and "wait for this model" in refused[2]


def test_who_sends_slowly_is_cut(host):
    script = """
import json, socket, ssl, time
context = ssl.create_default_context(cafile="/etc/haproxy/certificate.pem")
context.check_hostname = False
begun = {
    "header": b"GET /v1/models/digits HTTP/1.1\\r\\nHost: x\\r\\n",
    "body": b"POST /v1/models/digits:predict HTTP/1.1\\r\\nHost: x\\r\\nX-Api-Key: key-of-tester\\r\\nContent-Length: 99\\r\\n\\r\\n{",
    "page": b"POST / HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 99\\r\\n\\r\\n{",
}
connections = {}
for name, text in begun.items():
    connections[name] = context.wrap_socket(socket.create_connection(("127.0.0.1", 443)))
    connections[name].sendall(text)
start, cut = time.monotonic(), {}
for connection in connections.values():
    connection.settimeout(0.05)
while len(cut) < 3 and time.monotonic() - start < 20:
    for name, connection in connections.items():
        if name in cut:
            continue
        try:
            if name == "header" or round(time.monotonic() * 20) % 20 == 0:
                connection.send(b"x")
            answer = connection.recv(4096)
            cut[name] = [time.monotonic() - start, answer[9:12].decode()]
        except TimeoutError:
            pass
        except OSError:
            cut[name] = [time.monotonic() - start, ""]
print(json.dumps(cut))
"""
    cut = json.loads(host.check_output(f"python3 -c {shlex.quote(script)}"))
    assert set(cut) == {"header", "body", "page"}
    assert all(seconds < 15 for seconds, _ in cut.values()), cut
    assert cut["body"][1] == "408", cut


def processes(host):
    return host.check_output("pgrep -x haproxy").split()


def test_keys_and_shares_change_without_a_reload_and_survive_one(host, ask):
    def with_key(key):
        return ask({"path": "/v1/models/digits", "headers": {"X-Api-Key": key}})["status"]

    def follow():
        names = ("keys", "limits", "scopes", "paths", "variants")
        paths = [f"/etc/haproxy/{name}.map" for name in names]
        return cloud.module("test-1", "gateway_maps", {"paths": paths})

    new = hashlib.sha256(b"newest-key").hexdigest()
    before = processes(host)
    assert with_key("newest-key") == 401
    host.check_output("cp -p /etc/haproxy/keys.map /etc/haproxy/variants.map /root/")
    try:
        host.check_output(f"echo {new} tester >> /etc/haproxy/keys.map")
        host.check_output("sed -i 's/^\\(versioned|[0-9]*\\) .*/\\1 2/' /etc/haproxy/variants.map")
        assert f"/etc/haproxy/keys.map: add {new}" in follow()["changes"]
        assert with_key("newest-key") == 200
        answer = ask({"path": "/v1/models/versioned", "headers": KEY})
        assert answer["headers"]["x-model-version"] == "2"
        assert processes(host) == before, "nothing was reloaded"
        assert not follow()["changed"]
        host.check_output("systemctl reload haproxy")
        wait_until(lambda: with_key("newest-key") == 200, "the key after a reload")
    finally:
        host.check_output("cp -p /root/keys.map /root/variants.map /etc/haproxy/")
        follow()
    assert with_key("newest-key") == 401
    host.check_output("systemctl restart haproxy")
    wait_until(lambda: with_key("key-of-tester") == 200, "the gateway after the restart")
    assert with_key("newest-key") == 401


def test_limit_of_a_source(ask):
    answers = ask(*[{"path": "/"}] * 70)
    # Fewer than 50 when the tests before have used some of it; the window ends by itself.
    statuses = Counter(a["status"] for a in answers)
    assert set(statuses) <= {200, 429}
    assert statuses[429] >= 20
    assert ask({"path": "/v1/models/digits"})["status"] == 429, "guessing keys counts too"
    assert ask({"path": "/v1/models/digits", "headers": KEY})["status"] == 200, (
        "a client with a key is not held to it"
    )
    wait_until(
        lambda: ask({"path": "/"})["status"] == 200, "the window of 10 s to pass", seconds=30
    )


def test_no_server(ask):
    answer = ask({"path": "/v1/models/asleep", "headers": KEY})
    assert answer["status"] == 503
    assert error_of(answer)


@pytest.mark.parametrize(("size", "served"), [(100, True), (120_000, True), (300_000, False)])
def test_a_failing_server_is_replaced_within_the_request(ask, size, served):
    """As long as the request is in the gateway's buffer of 128 KiB."""
    failing = {
        "path": "/v1/models/digits:predict",
        "headers": {**KEY, "X-Fail-Port": "18081"},
        "bytes": size,
    }
    answers = ask(*[failing] * 10)
    assert {json.loads(a["body"])["port"] for a in answers if a["status"] == 200} == {18080}
    assert all(a["status"] == 200 for a in answers) == served
    assert {a["status"] for a in answers} <= {200, 503}


def test_log_has_no_key(host, ask):
    ask(
        {
            "path": "/v1/models/digits?key=key-of-tester",
            "headers": {**KEY, "X-Request-Id": "logged-once"},
        }
    )
    log = []

    def logged():
        log[:] = [
            line
            for line in host.check_output(f"cat {ACCESS_LOG}").splitlines()
            if "logged-once" in line
        ]
        return log

    wait_until(logged, "the request in the log")
    entry = json.loads(log[0])
    assert (entry["client"], entry["path"], entry["status"]) == ("tester", "/v1/models/digits", 200)
    assert (entry["model"], entry["variant"]) == ("digits", "1")
    # TLS, queue, connection, answer; a handshake may take less than a millisecond.
    assert min(entry[phase] for phase in ("Th", "Tw", "Tc", "Tr", "Ta")) >= 0
    assert "key-of-tester" not in host.check_output(f"journalctl -u haproxy; cat {ACCESS_LOG}")


def test_metrics(host, address):
    fetch = f"python3 -c \"import urllib.request as r; print(r.urlopen('http://{address}:8404/metrics').read().decode())\""
    metrics = host.check_output(fetch)
    assert 'haproxy_backend_active_servers{proxy="model_digits.1"} 2' in metrics
    assert 'haproxy_frontend_http_responses_total{proxy="public",code="2xx"}' in metrics


def test_drain_survives_reload_restart_and_a_moved_server(host, ask):
    digits = {"path": "/v1/models/digits", "headers": KEY}

    def ports():
        return {json.loads(a["body"])["port"] for a in ask(*[digits] * 10)}

    def up():
        return all(a["status"] == 200 for a in ask(*[digits] * 4))

    assert ports() == {18080, 18081}
    try:
        runtime(host, "set server model_digits.1/one state drain")
        host.check_output("systemctl reload haproxy")
        wait_until(up, "the gateway after the reload")
        assert ports() == {18081}
        host.check_output("systemctl restart haproxy")
        wait_until(up, "the gateway after the restart")
        assert ports() == {18081}
        # The saved state holds the old port; the configuration must win.
        host.check_output(
            "sed -i.kept '/backend model_digits.1/,/^$/s/:18081 /:18082 /' /etc/haproxy/haproxy.cfg"
        )
        host.check_output("systemctl reload haproxy")
        wait_until(lambda: ports() == {18082}, "the new port")
    finally:
        host.run(
            "test ! -e /etc/haproxy/haproxy.cfg.kept || mv /etc/haproxy/haproxy.cfg.kept /etc/haproxy/haproxy.cfg"
        )
        runtime(host, "set server model_digits.1/one state ready")
        host.run("systemctl reload haproxy")
    wait_until(lambda: up() and ports() == {18080, 18081}, "both servers again")


def send_to(address, *ports):
    """What a release does: module gateway_servers on the gateway's host."""
    return cloud.module(
        "test-1", "gateway_servers", {"serving": {address: ports}, "drain_seconds": 5}
    )


def test_a_slot_takes_over_at_run_time_and_survives_reload_and_restart(host, address, ask):
    slots = {"path": "/v1/models/slots", "headers": KEY}
    others = (18080, 18081, 28080)

    def port():
        answers = [a for a in ask(*[slots] * 4) if a["status"] == 200]
        return {json.loads(a["body"])["port"] for a in answers}

    assert port() == {18082}, (
        "the slot that the role was told of, though both are disabled in the file"
    )
    try:
        change = send_to(address, *others, 18084)
        assert change["enabled"] == ["model_slots.1/one.a"], change
        assert (
            "model_slots.1/one.b" in change["disabled"]
            and "application_page/page" in change["disabled"]
        )
        assert port() == {18084}
        host.check_output("systemctl reload haproxy")
        wait_until(lambda: port() == {18084}, "the same slot after the reload")
        host.check_output("systemctl restart haproxy")
        wait_until(lambda: port() == {18084}, "the same slot after the restart")
        # Nothing listens on 18099: it is refused, and what served serves.
        refused = send_to(address, *others, 18099)
        assert "check of model_asleep.1/nobody does not pass" in refused["msg"], refused
        assert port() == {18084}
    finally:
        send_to(address, *others, 18082)
    wait_until(lambda: port() == {18082}, "the first slot again")
    assert not send_to(address, *others, 18082)["changed"]


def test_without_a_gateway_there_is_nobody_to_tell(address):
    parameters = {
        "serving": {address: [1]},
        "save_program": "/nowhere",
        "master_socket": "/nowhere",
    }
    assert not cloud.module("test-1", "gateway_servers", parameters)["changed"]
    parameters["save_program"] = "/usr/local/sbin/gateway-save-state"
    assert "systemctl start haproxy" in cloud.module("test-1", "gateway_servers", parameters)["msg"]


def test_a_reload_refuses_nobody(host):
    """Clients that keep a connection open and send now and then see nothing of a reload."""
    script = """
import http.client, json, ssl, subprocess, threading, time
context = ssl.create_default_context(cafile="/etc/haproxy/certificate.pem")
context.check_hostname = False
failures, answered, stop = [], [], threading.Event()
def client():
    connection = http.client.HTTPSConnection("127.0.0.1", 443, context=context, timeout=10)
    while not stop.wait(0.05):
        try:
            connection.request("POST", "/v1/models/digits:predict", b"{}", {"X-Api-Key": "key-of-tester"})
            response = connection.getresponse()
            response.read()
            (answered if response.status == 200 else failures).append(response.status)
        except Exception as error:
            failures.append(repr(error))
            connection.close()
threads = [threading.Thread(target=client) for _ in range(4)]
for thread in threads: thread.start()
try:
    for _ in range(3):
        time.sleep(1)
        subprocess.run(["systemctl", "reload", "haproxy"], check=True)
    time.sleep(1)
finally:
    stop.set()
for thread in threads: thread.join()
print(json.dumps([len(answered), failures]))
"""
    answered, failures = json.loads(host.check_output(f"python3 -c {shlex.quote(script)}"))
    assert failures == []
    assert answered > 100


def test_a_broken_configuration_is_not_taken(host, ask):
    host.check_output(
        "cp -p /etc/haproxy/haproxy.cfg /etc/haproxy/haproxy.cfg.kept && echo nonsense >> /etc/haproxy/haproxy.cfg"
    )
    try:
        assert host.run("systemctl reload haproxy").rc != 0
        assert ask({"path": "/v1/models/digits", "headers": KEY})["status"] == 200
    finally:
        host.check_output(
            "mv /etc/haproxy/haproxy.cfg.kept /etc/haproxy/haproxy.cfg && systemctl reload haproxy"
        )


def test_log_is_rotated_and_goes_on(host, ask):
    """HAProxy keeps the file open: what comes after a rotation is in the new one."""
    ask({"path": "/v1/models/digits", "headers": {**KEY, "X-Request-Id": "before-rotation"}})
    rotate = "logrotate --force --state /tmp/rotation /etc/haproxy/access-log.logrotate"
    assert host.run(rotate).rc == 0
    ask({"path": "/v1/models/digits", "headers": {**KEY, "X-Request-Id": "after-rotation"}})
    wait_until(
        lambda: "after-rotation" in host.check_output(f"cat {ACCESS_LOG}"), "the next request"
    )
    assert "before-rotation" not in host.check_output(f"cat {ACCESS_LOG}")
    assert "before-rotation" in host.check_output(f"cat {ACCESS_LOG}.1")
    assert host.file("/var/log/haproxy").mode == 0o750
    assert host.service("groundcrew-gateway-log.timer").is_running
