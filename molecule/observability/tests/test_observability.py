"""What a person and an alert receiver see of the exporter, Prometheus and Alertmanager."""

from __future__ import annotations

import json
import shlex
import time

import pytest

RULES = "/etc/prometheus/rules/groundcrew.yml"
TEXTFILES = "/var/lib/prometheus/node-exporter"


@pytest.fixture
def address(host):
    """The private address of the host."""
    return next(a for a in host.interface.default().addresses if ":" not in a)


@pytest.fixture
def get(host, address):
    """GET on the private address, from the host itself."""

    def fetch(port, path):
        script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"
        return host.check_output(
            f'python3 -c "{script}" {shlex.quote(f"http://{address}:{port}{path}")}'
        )

    return fetch


def wait_until(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)


@pytest.mark.parametrize("port", [9100, 9090, 9093])
def test_listens_on_the_private_address_only(host, address, port):
    assert host.socket(f"tcp://{address}:{port}").is_listening
    for other in ("0.0.0.0", "::", "127.0.0.1"):
        assert not host.socket(f"tcp://{other}:{port}").is_listening


def test_alertmanager_has_no_cluster_port(host):
    assert "9094" not in host.check_output("ss -lntuH")


@pytest.mark.parametrize(
    "unit", ["prometheus-node-exporter", "prometheus", "prometheus-alertmanager"]
)
def test_units(host, unit):
    assert host.service(unit).is_enabled
    assert host.check_output(f"systemctl show -P Restart -P RestartUSec {unit}").split() == [
        "on-failure",
        "2s",
    ]
    assert (
        host.check_output(f"ps -o user= -p $(systemctl show -P MainPID {unit})")
        .strip()
        .startswith("prometh")
    )


def test_nothing_more_was_installed(host):
    assert not host.package("prometheus-node-exporter-collectors").is_installed


def test_alertmanager_configuration_is_closed(host):
    file = host.file("/etc/prometheus/alertmanager.yml")
    assert (file.user, file.group, file.mode) == ("root", "prometheus", 0o640)


@pytest.mark.parametrize(
    "command",
    [
        "promtool check config /etc/prometheus/prometheus.yml",
        f"promtool check rules {RULES}",
        "amtool check-config /etc/prometheus/alertmanager.yml",
    ],
)
def test_configuration_is_valid(host, command):
    result = host.run(command)
    assert result.rc == 0, result.stdout + result.stderr


def test_exporter_answers_what_rules_read(get):
    metrics = get(9100, "/metrics")
    for name in (
        "node_memory_MemAvailable_bytes",
        "node_filesystem_avail_bytes",
        "node_load1",
        "node_textfile_scrape_error 0",
    ):
        assert name in metrics
    assert 'mountpoint="/"' in metrics
    failed = [
        line
        for line in metrics.splitlines()
        if line.startswith("node_scrape_collector_success") and line.endswith(" 0")
    ]
    assert failed == []


def test_file_of_a_batch_job_becomes_a_metric(host, get):
    name = f"{TEXTFILES}/test.prom"
    host.check_output(
        f"echo 'groundcrew_job_last_exit_status{{job=\"nightly\"}} 7' > {name}.new && mv {name}.new {name}"
    )
    try:
        query = "/api/v1/query?query=groundcrew_job_last_exit_status"

        def read():
            return json.loads(get(9090, query))["data"]["result"]

        wait_until(read, "the metric in Prometheus")
        labels = read()[0]["metric"]
        assert (labels["exported_job"], labels["job"], labels["host"]) == (
            "nightly",
            "node",
            "watched",
        )
    finally:
        host.check_output(f"rm {name}")


def test_targets(get):
    def health():
        targets = json.loads(get(9090, "/api/v1/targets"))["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in targets}

    expected = {"node": "up", "prometheus": "up", "alertmanager": "up", "nobody": "down"}
    wait_until(lambda: health() == expected, f"the targets to be {expected}")


def test_prometheus_knows_alertmanager(get):
    managers = json.loads(get(9090, "/api/v1/alertmanagers"))["data"]["activeAlertmanagers"]
    assert len(managers) == 1


def test_an_alert_reaches_the_receiver(host, get):
    """Straight into Alertmanager: waiting for a rule's `for` takes minutes, and promtool judges the rules below."""
    receiver = """
import http.server
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        open("/tmp/alerts.json", "ab").write(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", 18999), Receiver).serve_forever()
"""
    # A name of its own: Alertmanager repeats a known alert only after hours.
    name = f"Rehearsal{time.time_ns()}"
    host.run("systemctl stop receiver; rm -f /tmp/alerts.json")
    host.check_output(f"systemd-run --unit=receiver python3 -c {shlex.quote(receiver)}")
    try:
        address = (
            host.file("/etc/default/prometheus-alertmanager")
            .content_string.split("--web.listen-address=")[1]
            .split()[0]
        )
        host.check_output(
            f"amtool alert add --alertmanager.url=http://{address} alertname={name} environment=scenario"
        )
        # The target that is down may be reported too.
        wait_until(
            lambda: name in host.run("cat /tmp/alerts.json").stdout,
            "the alert (group_wait is 30 s)",
            seconds=60,
        )
    finally:
        host.run("systemctl stop receiver")


# One entry a rule: a series (as promtool writes them, one sample a minute), when to look, and what must fire then.
CASES = {
    "HostDown": ('up{job="node", host="h", instance="i"}', "1 0 0 0 0", "4m", "h does not answer"),
    "ServiceDown": (
        'up{job="gateway", host="h", instance="i"}',
        "1 0 0 0 0",
        "4m",
        "gateway on h does not answer",
    ),
    "GatewayBackendEmpty": (
        'haproxy_backend_active_servers{proxy="model_digits", host="h", instance="i"}',
        "2 0 0 0",
        "3m",
        "h has no server for model_digits",
    ),
    "JobFailed": (
        'groundcrew_job_last_exit_status{family="batch", exported_job="nightly", host="h", instance="i", job="node"}',
        "0 3 3 3",
        "3m",
        "The batch job nightly on h ended with status 3",
    ),
    "CondaDrift": (
        'groundcrew_conda_drift{conda_environment="digits", host="h", instance="i", job="node"}',
        "0 1x10",
        "7m",
        "Conda environment digits on h differs from its lock",
    ),
    "CondaDriftUnchecked": (
        'groundcrew_conda_drift_checked_timestamp_seconds{host="h", instance="i", job="node"}',
        "0x300",
        "246m",
        "The Conda environments of h were not compared with their locks for 4h 6m 0s",
    ),
    "MetricFileUnreadable": (
        'node_textfile_scrape_error{host="h", instance="i", job="node"}',
        "1x10",
        "6m",
        "A *.prom file on h is not valid",
    ),
}
LABELS = 'family="batch", exported_job="nightly", host="h", instance="i", job="node"'
PAIRS = {
    "JobLate": (
        {
            f"groundcrew_job_last_success_timestamp_seconds{{{LABELS}}}": "0x1600",
            f"groundcrew_job_declared_timestamp_seconds{{{LABELS}}}": "0x1600",
            f"groundcrew_job_late_after_seconds{{{LABELS}}}": "93600x1600",
        },
        "1570m",
        "The batch job nightly on h last succeeded 1d 2h 10m 0s ago",
    ),
    "JobHangs": (
        {
            f"groundcrew_job_running{{{LABELS}}}": "1x20",
            f"groundcrew_job_heartbeat_timestamp_seconds{{{LABELS}}}": "0x20",
        },
        "15m",
        "The batch job nightly on h was cut off",
    ),
    "GatewayErrors": (
        {
            'haproxy_frontend_http_responses_total{proxy="public", code="2xx", host="h", instance="i"}': "0+90x20",
            'haproxy_frontend_http_responses_total{proxy="public", code="5xx", host="h", instance="i"}': "0+10x20",
        },
        "15m",
        "10% of the answers of h are 5xx",
    ),
    "DiskAlmostFull": (
        {
            'node_filesystem_avail_bytes{mountpoint="/", fstype="ext4", host="h", instance="i"}': "5x20",
            'node_filesystem_size_bytes{mountpoint="/", fstype="ext4", host="h", instance="i"}': "100x20",
        },
        "15m",
        "/ on h has 5% left",
    ),
}
QUIET = {
    "few errors": (
        "GatewayErrors",
        {
            'haproxy_frontend_http_responses_total{proxy="public", code="2xx", instance="i"}': "0+99x20",
            'haproxy_frontend_http_responses_total{proxy="public", code="5xx", instance="i"}': "0+1x20",
        },
        "15m",
    ),
    "no traffic": (
        "GatewayErrors",
        {'haproxy_frontend_http_responses_total{proxy="public", code="5xx", instance="i"}': "0x20"},
        "15m",
    ),
    "a recent success": (
        "JobLate",
        {
            f"groundcrew_job_last_success_timestamp_seconds{{{LABELS}}}": "0x1600",
            f"groundcrew_job_late_after_seconds{{{LABELS}}}": "93600x1600",
        },
        "1500m",
    ),
    "a run of half a day ago that ended": (
        "JobHangs",
        {
            f"groundcrew_job_running{{{LABELS}}}": "0x800",
            f"groundcrew_job_heartbeat_timestamp_seconds{{{LABELS}}}": "0x800",
        },
        "720m",
    ),
    "a short outage": ("HostDown", {'up{job="node", instance="i"}': "1 0 1 1 1"}, "4m"),
    "half a disk": (
        "DiskAlmostFull",
        {
            'node_filesystem_avail_bytes{mountpoint="/"}': "50x20",
            'node_filesystem_size_bytes{mountpoint="/"}': "100x20",
        },
        "15m",
    ),
}


def judge(host, series, at, rule):
    """The alerts of `rule` that promtool says fire `at` this time: a passing test with none expected means none."""
    test = {
        "rule_files": [RULES],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "alert_rule_test": [{"eval_time": at, "alertname": rule, "exp_alerts": []}],
            }
        ],
    }
    # JSON is YAML.
    host.check_output(f"printf %s {shlex.quote(json.dumps(test))} > /tmp/rules-test.yml")
    return host.run("promtool test rules /tmp/rules-test.yml")


@pytest.mark.parametrize("rule", [*CASES, *PAIRS])
def test_rule_fires(host, rule):
    if rule in CASES:
        name, values, at, summary = CASES[rule]
        series = {name: values}
    else:
        series, at, summary = PAIRS[rule]
    result = judge(host, series, at, rule)
    assert result.rc != 0, f"{rule} did not fire"
    assert f'alertname="{rule}"' in result.stdout + result.stderr
    assert summary in result.stdout + result.stderr


@pytest.mark.parametrize("case", QUIET)
def test_rule_stays_quiet(host, case):
    rule, series, at = QUIET[case]
    result = judge(host, series, at, rule)
    assert result.rc == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout


def test_every_rule_has_a_case(host):
    rules = {
        line.split("alert:")[1].strip()
        for line in host.file(RULES).content_string.splitlines()
        if "- alert:" in line
    }
    assert rules == {*CASES, *PAIRS}
