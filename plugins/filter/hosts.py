"""Filters over the hosts of an environment."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

# Ansible offers module_utils of a repository to modules, not to plugins on the controller.
_PACKAGES = str(Path(__file__).resolve().parents[1] / "module_utils")
if _PACKAGES not in sys.path:
    sys.path.append(_PACKAGES)

from groundcrew import services as services_of  # noqa: E402

# The groups that give a host a function.
FUNCTIONS = ("gateway", "prediction", "application", "training", "batch", "monitoring")


def host_values(names: list[str], hostvars: Any, keys: dict[str, str]) -> list[dict[str, Any]]:
    """One dictionary a host: its name, and for each of ``keys`` the host's variable of that (dotted) name.

    A variable that the host does not have is left out, so a module's own default applies.
    """
    rows = []
    for name in names:
        row: dict[str, Any] = {"name": name}
        for key, path in keys.items():
            value: Any = hostvars[name]
            for part in path.split("."):
                value = value.get(part) if hasattr(value, "get") else None
            if value is not None:
                row[key] = value
        rows.append(row)
    return rows


def registered(names: list[str], hostvars: Any, variable: str, key: str) -> dict[str, Any]:
    """Host name to one value of what a task registered there; hosts without it are left out."""
    return {
        name: hostvars[name][variable][key]
        for name in names
        if key in (hostvars[name].get(variable) or {})
    }


def host_answers(names: list[str], hostvars: Any, variable: str) -> dict[str, bool]:
    """Host name to whether ansible.builtin.ping, registered there, was answered."""
    return {name: "ping" in (hostvars[name].get(variable) or {}) for name in names}


def fleets_of(names: list[str], hostvars: Any) -> dict[str, list[str]]:
    """Fleet to those of the hosts that are in it. People's own machines are no fleet: they may differ in anything but environments."""
    fleets: dict[str, list[str]] = {}
    for name in names:
        for fleet in hostvars[name]["host_fleets"]:
            if fleet != "workstation":
                fleets.setdefault(str(fleet), []).append(name)
    return fleets


def fleets_by_size(names: list[str], hostvars: Any, groups: Any) -> dict[str, dict[str, list[str]]]:
    """Fleet that gives hosts their size -> what its hosts are: {"functions", "fleets"}."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        of = found.setdefault(str(hostvars[name]["fleet_name"]), {"functions": [], "fleets": []})
        functions = {f for f in FUNCTIONS if name in groups.get(f, [])}
        of["functions"] = [f for f in FUNCTIONS if f in functions.union(of["functions"])]
        of["fleets"] = sorted({*of["fleets"], *map(str, hostvars[name]["host_fleets"])})
    return found


def drift_checks(names: list[str], hostvars: Any) -> dict[str, Any]:
    """The drift report of an environment: {"ok", "checks", "hosts": {host: reports}}, after healing where something was healed."""
    checks, hosts = [], {}
    for name in names:
        found = hostvars[name].get("drift_after") or {}
        found = found if "reports" in found else hostvars[name].get("drift_before") or {}
        hosts[name] = found.get("reports", [])
        for report in hosts[name]:
            detail = [
                f"{len(report[kind])} {kind}"
                for kind in ("notes", "packages", "files", "cache")
                if report[kind]
            ]
            what = f"{name}: {report['environment']} ({report['build']})"
            checks.append(
                {
                    "name": f"{name}: {report['environment']}",
                    "ok": report["ok"],
                    "detail": f"{what}: {', '.join(detail) or 'as its lock says'}",
                }
            )
    return {"ok": all(check["ok"] for check in checks), "checks": checks, "hosts": hosts}


def conda_outcomes(outcomes: list[dict[str, Any]]) -> list[str]:
    """What the module conda_environments did, a line an environment."""
    return [
        f"{o['name']}: {o['action']}, {o['before'] or 'nothing'} -> {o['build'] or 'nothing'}"
        f" ({o['downloaded']} files downloaded, {o['seconds']} s)"
        for o in outcomes
    ]


def machine_ids(instances: dict[str, dict[str, Any]], machines: dict[str, str]) -> dict[str, str]:
    """Host name to what identifies its present machine: the instance id and, where there is one, the container behind it."""
    return {
        name: instance["id"] + (f"/{machines[name]}" if name in machines else "")
        for name, instance in instances.items()
    }


def fleet_servers(
    fleet: str, environment: str, groups: Any, hostvars: Any, port: int, suffix: str = ""
) -> list[dict[str, Any]]:
    """Where a service of one fleet listens: [{"name", "address", "port"}], one a host of the fleet."""
    return [
        {"name": name + suffix, "address": hostvars[name]["private_address"], "port": port}
        for name in sorted(groups.get(f"{environment}_{fleet}", []))
    ]


def slots(servers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both slots of each server, disabled: a release enables the one that it is in.

    Slot a has the declared ports, slot b those above.
    """
    return [
        {
            **server,
            **{key: server[key] + slot for key in ("port", "grpc_port") if key in server},
            "name": f"{server['name']}.{'ab'[slot]}",
            "disabled": True,
        }
        for server in servers
        for slot in (0, 1)
    ]


def gateway_models(
    variants: list[dict[str, Any]], environment: str, groups: Any, hostvars: Any
) -> list[dict[str, Any]]:
    """The gateway's view of the models: [{"name", "variants": [{"version", "weight", "servers"}]}], two servers for each variant on
    each host of its fleet, by slots()."""
    models: dict[str, dict[str, Any]] = {}
    for variant in variants:
        version = str(variant["version"])
        servers = fleet_servers(
            variant["fleet"],
            environment,
            groups,
            hostvars,
            int(variant["host_port"]),
            "-" + version,
        )
        grpc = {"grpc_port": variant["grpc_port"]} if "grpc_port" in variant else {}
        sticky = {"sticky": variant["sticky"]} if "sticky" in variant else {}
        model = models.setdefault(
            variant["model"], {"name": variant["model"], **sticky, "variants": []}
        )
        model["variants"].append(
            {
                "version": version,
                "weight": variant["weight"],
                "servers": slots([{**server, **grpc} for server in servers]),
            }
        )
    return [models[name] for name in sorted(models)]


def gateway_applications(
    services: list[dict[str, Any]], environment: str, groups: Any, hostvars: Any
) -> list[dict[str, Any]]:
    """The gateway's view of the team's services: name, route, sticky_paths, health_path, and two servers a host, by slots().

    services: as the filter groundcrew_services gives them.
    """
    return [
        {
            "name": service["name"],
            "route": service["route"],
            # Whole, as the gateway sees them.
            "sticky_paths": [
                service["route"][:-1] + path for path in service.get("sticky_paths", [])
            ],
            "health_path": service.get("ready", {}).get("path", "/healthz"),
            "servers": slots(_service_servers(service, environment, groups, hostvars)),
        }
        for service in services
    ]


def _service_servers(
    service: dict[str, Any], environment: str, groups: Any, hostvars: Any
) -> list[dict[str, Any]]:
    """fleet_servers() of the hosts that run one of the team's services."""
    fleet = groups.get(f"{environment}_{service['fleet']}", [])
    chosen = services_of.members(service, fleet)
    return [
        server
        for server in fleet_servers(
            service["fleet"], environment, groups, hostvars, int(service["port"])
        )
        if server["name"] in chosen
    ]


def gateway_buckets(variants: list[dict[str, Any]]) -> list[str]:
    """The version of each of a model's hundred buckets: as many as its weight says. The last versions have the last buckets, so that
    those keep theirs when their share grows."""
    return [str(variant["version"]) for variant in variants for _ in range(variant["weight"])]


def gateway_share(limit: int, gateways: int) -> int:
    """What one of several gateways may let through of a limit, rounded up; 0 stays no limit."""
    return -(-int(limit) // int(gateways))


def model_versions(variants: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What module model_store is to fetch for these variants: [{"name", "version"}]."""
    return [{"name": variant["model"], "version": str(variant["version"])} for variant in variants]


def model_manifests(fetched: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Model to version to the sha256 of its manifest, from what module model_store returns."""
    manifests: dict[str, dict[str, str]] = {}
    for model in fetched:
        if model.get("manifest_sha256"):
            manifests.setdefault(model["name"], {})[str(model["version"])] = model[
                "manifest_sha256"
            ]
    return manifests


def golden_checks(variants: list[dict[str, Any]], host: str, address: str) -> list[dict[str, Any]]:
    """For module outcome_checks: the golden cases of each variant, asked on the host that serves it."""
    return [
        {
            "name": f"{variant['name']} on {host}",
            # The variant is in one of its two slots.
            "urls": [
                f"http://{address}:{int(variant['host_port']) + slot}/v1/models/{variant['model']}:predict"
                for slot in (0, 1)
            ],
            "golden_file": f"/srv/models/{variant['model']}/{variant['version']}/golden.json",
        }
        for variant in variants
    ]


def gateway_golden_checks(
    variants: list[dict[str, Any]], gateway_url: str, bucket: str, ca_file: str, api_key: str
) -> list[dict[str, Any]]:
    """For module outcome_checks: the golden cases of each variant, asked through the gateway; by its version when there are others."""
    models = [variant["model"] for variant in variants]
    return [
        {
            "name": f"{variant['name']} through the gateway",
            "urls": [f"{gateway_url}/v1/models/{variant['model']}{path}:predict"],
            "golden_model": {
                "bucket": bucket,
                "model": variant["model"],
                "version": str(variant["version"]),
            },
            "headers": {"X-Api-Key": api_key},
            "ca_file": ca_file,
            "attempts": 10,
        }
        for variant in variants
        for path in [
            f"/versions/{variant['version']}" if models.count(variant["model"]) > 1 else ""
        ]
    ]


def host_checks(names: list[str], hostvars: Any, variable: str, what: str) -> list[dict[str, Any]]:
    """The checks that module outcome_checks left in a variable of each host; one that failed for each host without any."""
    found: list[dict[str, Any]] = []
    for name in sorted(names):
        result = hostvars[name].get(variable) or {}
        missing = {
            "name": f"{what} on {name}",
            "ok": False,
            "detail": str(result.get("msg", "the host was not asked")),
        }
        found.extend(result.get("checks") or [missing])
    return found


def check_lines(checks: list[dict[str, Any]]) -> list[str]:
    """One line for people for each check."""
    return [
        f"{'ok' if check['ok'] else 'FAILED'}  {check['name']}: {check['detail']}"
        for check in checks
    ]


def model_metrics(models: list[dict[str, Any]], variant: dict[str, Any]) -> str:
    """The metrics in a variant's manifest as text, from what module model_store answers to a query."""
    for model in models:
        if model["name"] == variant["model"]:
            metrics = model["manifests"].get(str(variant["version"]), {}).get("metrics", {})
            return (
                ", ".join(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in sorted(metrics.items())
                )
                or "no metrics"
            )
    return "no metrics"


def scrape_targets(
    variants: list[dict[str, Any]],
    services: dict[str, Any],
    environment: str,
    groups: Any,
    hostvars: Any,
) -> list[dict[str, Any]]:
    """What Prometheus scrapes, one job a kind: node exporters, gateways, services of models and of the team."""

    def both_slots(job: str, servers: list[dict[str, Any]], service: str) -> list[dict[str, Any]]:
        """A service on each of its hosts; it answers in one of its slots."""
        return [
            {
                "job": job,
                "targets": [f"{server['address']}:{server['port'] + slot}" for slot in (0, 1)],
                "labels": {"service": service, "host": server["name"]},
            }
            for server in servers
        ]

    hosts = sorted(groups[environment])
    targets = [
        {
            "job": "node",
            "targets": [f"{hostvars[host]['private_address']}:9100"],
            "labels": {"host": host},
        }
        for host in hosts
    ]
    targets += [
        {
            "job": "gateway",
            "targets": [f"{server['address']}:{server['port']}"],
            "labels": {"host": server["name"]},
        }
        for server in fleet_servers("gateway", environment, groups, hostvars, 8404)
    ]
    for variant in variants:
        servers = fleet_servers(
            variant["fleet"], environment, groups, hostvars, int(variant["host_port"])
        )
        targets += both_slots("prediction", servers, variant["name"])
    for name, service in sorted(services.items()):
        placed = {"fleet": "application", **service, "name": name}
        servers = _service_servers(placed, environment, groups, hostvars)
        targets += both_slots("application", servers, name)
    return targets


def service_hosts(
    variants: list[dict[str, Any]], services: dict[str, Any], environment: str, groups: Any
) -> list[str]:
    """The hosts of an environment that run prediction or application services, sorted."""
    fleets = {variant["fleet"] for variant in variants}
    fleets |= {service.get("fleet", "application") for service in services.values()}
    return sorted({host for fleet in fleets for host in groups.get(f"{environment}_{fleet}", [])})


def serving_ports(results: list[dict[str, Any]], hostvars: Any) -> dict[str, list[int]]:
    """Address to the ports that serve there, from a loop of module container_release over hosts; silent ones are left out."""
    return {
        hostvars[result["item"]]["private_address"]: result["serving"]
        for result in results
        if "serving" in result
    }


def client_secrets(clients: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The secrets of the gateway's clients: of our own the key, made when it is missing; of others what playbooks/keys.yml issued."""
    return {
        f"clients/{client['name']}": {"kind": "issued" if client.get("external") else "token"}
        for client in clients
    }


def gateway_clients(
    clients: list[dict[str, Any]], secrets: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    """The gateway's clients with the hashes of their keys, at most two each; the keys themselves stay in the secret store. An external
    one whose first key was not issued yet is left out."""
    found = []
    for client in clients:
        secret = secrets["clients/" + client["name"]]
        hashes = [secret[key] for key in ("sha256", "previous_sha256") if secret.get(key)]
        known = {key: value for key, value in client.items() if key != "external"}
        if hashes:
            found.append({**known, "key_sha256": hashes})
    return found


def gateway_faults(models: list[dict[str, Any]], clients: list[dict[str, Any]]) -> list[str]:
    """What of gateway_models and gateway_clients cannot work, a sentence each with the edit that mends it."""
    found = []
    for model in models:
        variants = model["variants"]
        weights = [variant["weight"] for variant in variants]
        if len({str(variant["version"]) for variant in variants}) < len(variants):
            found.append(f"Model {model['name']} has a version twice: list its servers under one.")
        if variants and (sum(weights) != 100 or min(weights) < 0):
            found.append(
                f"The weights of model {model['name']} are {' + '.join(map(str, weights))}: make their sum 100."
            )
        sticky = model.get("sticky", "client")
        if not re.fullmatch(r"client|[A-Za-z][A-Za-z0-9-]{0,63}", sticky):
            found.append(
                f"Model {model['name']} is sticky by {sticky!r}: write client, or the name of a header such as X-User-Id."
            )
    names = {model["name"] for model in models}
    clients_twice = [client["name"] for client in clients]
    for name in sorted({name for name in clients_twice if clients_twice.count(name) > 1}):
        found.append(
            f"Client {name} is there twice: give both keys in the key_sha256 of one entry."
        )
    for client in clients:
        unknown = sorted(set(client.get("models", [])) - names)
        if unknown:
            found.append(
                f"Client {client['name']} may use {', '.join(unknown)}, which is not served: correct its `models`. "
                f"Served are {', '.join(sorted(names)) or 'none'}."
            )
        if "models" in client and not client["models"]:
            found.append(
                f"Client {client['name']} may use no model: list some, or leave `models` out."
            )
        bad = [
            path for path in client.get("paths", ["/"]) if not re.fullmatch(r"/[!-{}~]*", str(path))
        ]
        if bad or client.get("paths") == []:
            found.append(
                f"Client {client['name']} has the paths {bad or []}: each begins with / and has no spaces and no |."
            )
        for key in ("requests_per_10_seconds", "burst", "concurrent_requests"):
            if int(client.get(key, 0)) < 0:
                found.append(
                    f"{key} of client {client['name']} is {client[key]}: 0 is no limit, a number is one."
                )
    return found


def chosen_image(name: str, choices: dict[str, str]) -> str:
    """What the name of an image stands for."""
    return choices.get(name, name)


def chosen_images(references: dict[str, str], choices: dict[str, str]) -> dict[str, str]:
    """The references with those of the names that stand for another image."""
    return references | {name: references.get(choice, choice) for name, choice in choices.items()}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        return {
            "host_values": host_values,
            "groundcrew_chosen_image": chosen_image,
            "groundcrew_chosen_images": chosen_images,
            "registered": registered,
            "fleets_of": fleets_of,
            "host_answers": host_answers,
            "fleets_by_size": fleets_by_size,
            "drift_checks": drift_checks,
            "conda_outcomes": conda_outcomes,
            "machine_ids": machine_ids,
            "fleet_servers": fleet_servers,
            "gateway_slots": slots,
            "service_hosts": service_hosts,
            "serving_ports": serving_ports,
            "gateway_models": gateway_models,
            "model_versions": model_versions,
            "golden_checks": golden_checks,
            "gateway_golden_checks": gateway_golden_checks,
            "host_checks": host_checks,
            "check_lines": check_lines,
            "model_metrics": model_metrics,
            "scrape_targets": scrape_targets,
            "gateway_clients": gateway_clients,
            "client_secrets": client_secrets,
            "gateway_applications": gateway_applications,
            "gateway_buckets": gateway_buckets,
            "gateway_share": gateway_share,
            "gateway_faults": gateway_faults,
            "model_manifests": model_manifests,
        }
