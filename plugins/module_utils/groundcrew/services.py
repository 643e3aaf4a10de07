"""From what a team writes in its inventory (`models:` and `services:`) to service maps.

Every refusal names the model or service, the key, its value, and the file to edit.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import GroundcrewError
from .service_map import nearest

MODEL_KEYS = (
    "framework",
    "fleet",
    "host_port",
    "version",
    "variants",
    "sticky",
    "image",
    "env",
    "resources",
    "backend",
    "ready_timeout_seconds",
    "drain_seconds",
    "strategy",
)
# What a model may say of the server behind its front; a framework's variables say the same things.
BACKEND_KEYS = (
    "port",
    "path",
    "request_key",
    "response_key",
    "timeout_seconds",
    "command",
    "config",
    "tmpfs",
    "user",
    "read_only",
    "secrets",
)
VARIANT_KEYS = ("version", "weight", "framework", "host_port", "env", "resources", "image")
SERVICE_KEYS = (
    "image",
    "fleet",
    "port",
    "strategy",
    "route",
    "sticky_paths",
    "replicas",
    "prediction",
    "model",
    "version",
    "batch_job",
    "env",
    "command",
    "ready",
    "ready_timeout_seconds",
    "resources",
    "drain_seconds",
)
# A variant has two ports on a host: its own and, one above, the one of its next release.
PORTS_A_VARIANT = 2
# A model without host_port has one by its name, so that a model more or less moves no other: 1,000 blocks of 8 ports.
_FIRST_PORT, _PORT_BLOCKS, _PORTS_A_MODEL = 10000, 1000, 8
# A framework that speaks gRPC too does so on the host at this distance from host_port.
_GRPC_DISTANCE = 10000

# A release that starts well and dies soon must not have replaced one that serves.
STEADY_SECONDS = 8

# Where the application finds what it is given.
API_KEY_FILE = "/run/secrets/api_key"
PREDICTION_CA_FILE = "/etc/groundcrew/prediction-ca.pem"

_MODEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SERVICE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_STICKY = re.compile(r"/[A-Za-z0-9/._-]*")
# Below it the gateway sends everything to one service; /v1 is the models'.
_ROUTE = re.compile(r"/(?!v1/)(?:[a-z0-9][a-z0-9_-]*/)*")


def expand_models(
    models: Any, frameworks: Mapping[str, Mapping[str, Any]], file: str = "models.yml"
) -> list[dict[str, Any]]:
    """Variants of all models, each a service `<model>-<version>`, sorted by model, then as written.

    frameworks: name -> what the role prediction's variables say of it. file: what a person has to
    edit, for the messages. A variant has the keys name, model, version, weight, framework, fleet,
    host_port, grpc_port (when its framework has one) and, where given, image, env, resources,
    backend, ready_timeout_seconds and drain_seconds. Weights of a model sum to 100. Raises
    GroundcrewError for the first fault.
    """
    variants: list[dict[str, Any]] = []
    ports: dict[int, str] = {}
    for name, model in sorted(_entries(models, "models", file).items()):
        for variant in _variants(name, model, frameworks, file):
            for port in (variant[key] for key in ("host_port", "grpc_port") if key in variant):
                taken = ports.setdefault(port, variant["name"])
                if taken != variant["name"]:
                    raise _Fault(f"model {name}", file)(
                        f"host_port {port} of {variant['name']} is {taken}'s; give the model "
                        f"another host_port, {PORTS_A_VARIANT} for each variant."
                    )
            variants.append(variant)
    return variants


def expand_services(services: Any, file: str = "services.yml") -> list[dict[str, Any]]:
    """Services as a team writes them, checked and with defaults: [{name, fleet, image, port, ...}],
    sorted by name.

    Raises GroundcrewError for the first fault.
    """
    expanded = []
    routes: dict[str, str] = {}
    for name, service in sorted(_entries(services, "services", file).items()):
        fault = _Fault(f"service {name}", file)
        if not _SERVICE_NAME.fullmatch(name):
            raise fault(
                "its name has to be lower case letters, digits, '_' and '-', a letter first."
            )
        given = fault.entry(service, SERVICE_KEYS)
        if not isinstance(given.get("image"), str):
            raise fault(
                f"image is {given.get('image')!r}; name an image that is built or listed, such as "
                f"application_digits."
            )
        port = fault.port("port", given.get("port"))
        if port % 2:
            raise fault(f"port is {port}; it has to be even, the odd one above is the second slot.")
        route = given.get("route", "/")
        if not isinstance(route, str) or not _ROUTE.fullmatch(route):
            raise fault(
                f"route is {route!r}; it has to be a path of lower case letters, digits, '_' and '-' that "
                "begins and ends with '/', such as /reports/, and is not below /v1/."
            )
        if routes.setdefault(route, name) != name:
            raise fault(
                f"route {route} is {routes[route]}'s; give the service another, such as /{name}/."
            )
        sticky = given.get("sticky_paths", [])
        if not isinstance(sticky, list) or not all(
            isinstance(path, str) and _STICKY.fullmatch(path) for path in sticky
        ):
            raise fault(
                f"sticky_paths is {sticky!r}; it has to be a list of paths below which a client stays with one "
                "host, such as [/api/files]."
            )
        replicas = given.get("replicas")
        if replicas is not None and (
            isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1
        ):
            raise fault(
                f"replicas is {replicas!r}; it has to be a number of hosts of its fleet from 1."
            )
        expanded.append(
            {
                "fleet": "application",
                **given,
                "name": name,
                "port": port,
                "route": route,
                **_embedded(given, fault),
            }
        )
    return expanded


def _embedded(given: Mapping[str, Any], fault: _Fault) -> dict[str, str]:
    """Where a service predicts, checked; with the version that it holds itself."""
    prediction = given.get("prediction", "gateway")
    if prediction not in ("gateway", "embedded"):
        raise fault(
            f"prediction is {prediction!r}; it has to be gateway, which asks the prediction fleet, or "
            "embedded, which loads the model into the service's own process."
        )
    version = str(given.get("version", ""))
    if prediction == "embedded" and not (
        given.get("model") and (version == "live" or _VERSION.fullmatch(version))
    ):
        raise fault(
            f"prediction is embedded, with model {given.get('model')!r} and version {version!r}; it needs a model "
            'and a version: live, or a number such as "3".'
        )
    if prediction == "gateway" and version:
        raise fault(
            f"version is {version!r}, but the gateway chooses the version; leave it out, or write prediction: embedded."
        )
    return {"prediction": prediction, "version": version}


def members(service: Mapping[str, Any], hosts: Sequence[str]) -> list[str]:
    """The hosts of its fleet that run a service: all, or as many as `replicas` says, from a place that its name gives."""
    listed = sorted(hosts)
    count = min(len(listed), int(service.get("replicas") or len(listed)))
    first = zlib.crc32(str(service["name"]).encode()) % len(listed) if listed else 0
    return sorted((listed + listed)[first : first + count])


def on_host(
    services: Iterable[Mapping[str, Any]], peers: Mapping[str, Sequence[str]], host: str
) -> list[dict[str, Any]]:
    """The services, as expand_services gives them, that one host runs. peers: fleet to its hosts."""
    return [
        dict(service)
        for service in services
        if host in members(service, peers.get(service["fleet"], []))
    ]


def embedded_models(
    services: Iterable[Mapping[str, Any]], live: Mapping[str, str], file: str = "services.yml"
) -> list[dict[str, str]]:
    """Which model versions services hold themselves: [{"service", "model", "version"}], `live` replaced."""
    found = []
    for service in services:
        if service["prediction"] != "embedded":
            continue
        model, version = str(service["model"]), service["version"]
        if version == "live" and model not in live:
            raise _Fault(f"service {service['name']}", file)(
                f"its version is live, and no model '{model}' is served.{nearest(model, live)}"
            )
        chosen = live[model] if version == "live" else version
        found.append({"service": service["name"], "model": model, "version": chosen})
    return found


def in_fleets(entries: Iterable[Mapping[str, Any]], fleets: Sequence[str]) -> list[dict[str, Any]]:
    """The variants or services that belong to one of these fleets."""
    return [dict(entry) for entry in entries if entry["fleet"] in fleets]


def prediction_service(
    variant: Mapping[str, Any],
    framework: Mapping[str, Any],
    images: Mapping[str, str],
    manifests: Mapping[str, Mapping[str, str]],
    model_directory: str,
    placeholders: bool = False,
) -> dict[str, Any]:
    """The service map of one variant.

    framework: what a framework's variables and template say: image and port of the container that
    speaks the prediction contract and, where needed, its env, resources, ready_timeout_seconds; and
    backend, the model server behind it, when it does not itself: image, port, path and the rest of
    BACKEND_KEYS, env, grpc_port. `{model}` and `{version}` in path stand for the variant's. images:
    name -> reference by digest. manifests: model -> version -> sha256 of its manifest.
    model_directory: where models lie on the host. What the variant says of image, env and resources
    is the model server's. Raises GroundcrewError when the image or the manifest is missing; with
    placeholders (check mode on a fresh host, where nothing was built or fetched) stands in for
    them.
    """
    model, version = str(variant["model"]), str(variant["version"])
    where = f"model {model}, version {version}"
    manifest = manifests.get(model, {}).get(version)
    if not manifest and not placeholders:
        raise GroundcrewError(
            f"{where}: the sha256 of its manifest is not known, so it was not fetched to this "
            f"host. "
            f"Run the model_store role for it first."
        )
    source, target = f"{model_directory}/{model}/{version}", f"/models/{model}/{version}"
    contract = {
        "MODEL_NAME": model,
        "MODEL_VERSION": version,
        "MODEL_DIRECTORY": target,
        # A restart checks it too: a folder that was swapped whole is right in itself.
        **({"MODEL_MANIFEST_SHA256": str(manifest)} if manifest else {}),
    }
    service: dict[str, Any] = {
        "name": variant["name"],
        "env": {**contract, "PORT": str(framework["port"]), **framework.get("env", {})},
        "mounts": [{"source": source, "target": target, "read_only": True}],
        "port": framework["port"],
        "host_port": variant["host_port"],
        "ready": {
            "golden": f"{source}/golden.json",
            "path": f"/v1/models/{model}:predict",
            "steady_seconds": STEADY_SECONDS,
        },
        "manifest_sha256": str(manifest) if manifest else None,
    }
    own = _resources(framework.get("resources", {}))
    behind = framework.get("backend")
    server = service
    if behind is not None:
        given = {**behind, **variant.get("backend", {})}
        path = str(given["path"]).replace("{model}", model).replace("{version}", version)
        service["image"] = _image(str(framework["image"]), images, where, placeholders)
        service["env"]["BACKEND_PATH"] = path
        for key in ("request_key", "response_key", "timeout_seconds"):
            if key in given:
                service["env"][f"BACKEND_{key.upper()}"] = str(given[key])
        server = {
            "env": {**contract, **given.get("env", {})},
            "mounts": service["mounts"],
            "port": given["port"],
        }
        for key in ("command", "config", "tmpfs", "user", "read_only", "secrets"):
            if key in given:
                server[key] = given[key]
        if "grpc_port" in variant:
            server["extra_ports"] = {str(variant["grpc_port"]): given["grpc_port"]}
        service["backend"] = server
        service |= own
        own = _resources(given.get("resources", {}))
    image = variant.get("image") or (framework if behind is None else behind).get("image")
    if not image:
        raise GroundcrewError(
            f"{where}: framework {variant['framework']} has no image of its own; give the model "
            f"image: <an image of `images`, or one by digest>."
        )
    server["image"] = _image(str(image), images, where, placeholders)
    server["env"] |= variant.get("env", {})
    server |= _resources({**own.get("resources", {}), **variant.get("resources", {})})
    for key in ("command", "config", "tmpfs"):
        if behind is None and framework.get(key):
            service[key] = framework[key]
    for key in ("ready_timeout_seconds", "drain_seconds", "strategy"):
        value = variant.get(key, framework.get(key))
        if value is not None:
            service[key] = value
    return service


def frameworks(files: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name of each framework -> its variables, from the files of the role prediction."""
    # Not at the top: modules on hosts import this package, and hosts need no PyYAML.
    import yaml

    return {
        Path(file).stem: yaml.safe_load(Path(file).read_text())["__prediction_framework"]
        for file in sorted(files)
    }


def framework_images(
    variants: Iterable[Mapping[str, Any]], frameworks: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The names of the images that these variants run, sorted; images given by digest are not in it."""
    names = set()
    for variant in variants:
        framework = frameworks[variant["framework"]]
        behind = framework.get("backend")
        if behind is not None:
            names.add(framework["image"])
        names.add(variant.get("image") or (behind or framework).get("image"))
    return sorted(name for name in names if name and "@sha256:" not in name)


def _resources(limits: Mapping[str, Any]) -> dict[str, Any]:
    return {"resources": dict(limits)} if limits else {}


def application_service(
    service: Mapping[str, Any],
    images: Mapping[str, str],
    settings: Mapping[str, Any],
    placeholders: bool = False,
) -> dict[str, Any]:
    """The service map of one of the team's web services, which shares the host's network.

    settings: address (private, to listen on), prediction_url, prediction_ca (PEM, "" for none),
    api_key, store_bucket, aws_env_file ("" for none), model_directory (where versions lie on the
    host), embedded (what embedded_models gives) and manifests (model to version to the sha256 of its
    manifest, for services with an embedded model). The service's own env wins. Errors and
    placeholders as for prediction_service.
    """
    name = str(service["name"])
    embedded = {entry["service"]: entry for entry in settings["embedded"]}.get(name)
    env: dict[str, Any] = {
        "HOST": settings["address"],
        "PREDICTION_URL": settings["prediction_url"],
        "API_KEY_FILE": API_KEY_FILE,
        "STORE_BUCKET": settings["store_bucket"],
        "MODEL_NAME": service.get("model"),
        "BATCH_JOB": service.get("batch_job"),
        "ROUTE_PREFIX": service["route"] if service["route"] != "/" else None,
    }
    result: dict[str, Any] = {
        "name": name,
        "image": _image(str(service["image"]), images, f"service {name}", placeholders),
        # An instance profile answers at the first hop only, so a bridge would cut it off.
        "network": "host",
        # PORT tells it which of its two ports it has.
        "strategy": service.get("strategy", "blue_green"),
        "port": service["port"],
        "ready": {"steady_seconds": STEADY_SECONDS, **service.get("ready", {"path": "/healthz"})},
        "secrets": {API_KEY_FILE: settings["api_key"]},
    }
    if settings.get("prediction_ca"):
        env["PREDICTION_CA_FILE"] = PREDICTION_CA_FILE
        result["config"] = {PREDICTION_CA_FILE: settings["prediction_ca"]}
    if settings.get("aws_env_file"):
        result["env_file"] = [settings["aws_env_file"]]
    if embedded:
        model, version = embedded["model"], embedded["version"]
        digest = settings["manifests"].get(model, {}).get(version)
        if not digest and not placeholders:
            raise GroundcrewError(
                f"service {name}: version {version} of model {model}, which it embeds, was not fetched to this host."
            )
        directory = f"/models/{model}/{version}"
        env.update(
            PREDICTION_MODE="embedded",
            MODEL_VERSION=version,
            MODEL_DIRECTORY=directory,
            # Another manifest is another release.
            MODEL_MANIFEST_SHA256=digest or "0" * 64,
        )
        source = f"{settings['model_directory']}/{model}/{version}"
        result["mounts"] = [{"source": source, "target": directory, "read_only": True}]
    result["env"] = {
        key: value for key, value in {**env, **service.get("env", {})}.items() if value is not None
    }
    for key in ("command", "resources", "ready_timeout_seconds", "drain_seconds"):
        if key in service:
            result[key] = service[key]
    return result


def _image(image: str, images: Mapping[str, str], where: str, placeholders: bool) -> str:
    if "@sha256:" in image:
        return image
    if image in images:
        return str(images[image])
    if placeholders:
        return f"{image}@sha256:{'0' * 64}"
    raise GroundcrewError(
        f"{where}: image '{image}' has no digest yet.{nearest(image, images)} Build and push it "
        f"first."
    )


def _variants(
    name: str, model: Any, frameworks: Mapping[str, Mapping[str, Any]], file: str
) -> list[dict[str, Any]]:
    fault = _Fault(f"model {name}", file)
    if not _MODEL_NAME.fullmatch(name):
        raise fault("its name has to be lower case letters, digits and '_', a letter first.")
    given = fault.entry(model, MODEL_KEYS)
    if ("version" in given) == ("variants" in given):
        raise fault('give either version: "3" or variants: [{version: "3", weight: 100}].')
    listed = given.get("variants", [{"version": given.get("version"), "weight": 100}])
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise fault(f"variants is {listed!r}; it has to be a list of {{version, weight}}.")
    first_port = fault.port("host_port", given.get("host_port", _port_by_name(name)))
    fault.entry(given.get("backend", {}), BACKEND_KEYS, "backend: ")
    shared = {
        key: value
        for key, value in given.items()
        if key not in ("version", "variants", "host_port", "framework")
    }
    sticky = given.get("sticky", "")
    if sticky and not re.fullmatch(r"client|[A-Za-z][A-Za-z0-9-]{0,63}", str(sticky)):
        raise fault(
            f"sticky is {sticky!r}; it has to be client, or the name of a header such as X-User-Id."
        )
    variants = []
    for number, item in enumerate(listed):
        own = fault.entry(item, VARIANT_KEYS, f"variant {number + 1}: ")
        version = str(own.get("version"))
        if isinstance(own.get("version"), bool) or not _VERSION.fullmatch(version):
            raise fault(f"version is {own.get('version')!r}; it has to be a whole number from 1.")
        framework = str(own.get("framework", given.get("framework", "")))
        if framework not in frameworks:
            raise fault(f"unknown framework '{framework}'.{nearest(framework, frameworks)}")
        weight = own.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= 100:
            raise fault(f"weight of version {version} is {weight!r}; it has to be 0 to 100.")
        port = fault.port("host_port", own.get("host_port", first_port + PORTS_A_VARIANT * number))
        if port % 2:
            raise fault(
                f"host_port is {port}; it has to be even, the odd one above is the second slot."
            )
        behind = frameworks[framework].get("backend")
        if "backend" in given and behind is None:
            raise fault(f"backend: framework {framework} has no server behind it to describe.")
        variant: dict[str, Any] = {
            "fleet": "prediction",
            **shared,
            **{key: own[key] for key in ("env", "resources", "image") if key in own},
            "name": f"{name}-{version}",
            "model": name,
            "version": version,
            "weight": weight,
            "framework": framework,
            "host_port": port,
        }
        if behind is not None and "grpc_port" in behind:
            variant["grpc_port"] = fault.port("host_port + 10000", port + _GRPC_DISTANCE)
        variants.append(variant)
    versions = [variant["version"] for variant in variants]
    if len(set(versions)) != len(versions):
        raise fault(f"versions {', '.join(versions)}: one is there twice.")
    weights = [variant["weight"] for variant in variants]
    if sum(weights) != 100:
        raise fault(
            f"weights {' + '.join(str(weight) for weight in weights)} sum to {sum(weights)}; they "
            f"have to sum to 100."
        )
    return variants


def _port_by_name(name: str) -> int:
    block = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _PORT_BLOCKS
    return _FIRST_PORT + _PORTS_A_MODEL * block


def _entries(entries: Any, what: str, file: str) -> dict[str, Any]:
    if not isinstance(entries, Mapping):
        raise GroundcrewError(
            f"{what} is a {type(entries).__name__}; it has to be a map. Edit {file}."
        )
    return {str(name): entry for name, entry in entries.items()}


class _Fault:
    """Makes errors about one entry of a file, and reads what may be wrong in it."""

    def __init__(self, what: str, file: str) -> None:
        self._what = what
        self._file = file

    def __call__(self, message: str) -> GroundcrewError:
        return GroundcrewError(f"{self._what}: {message} Edit {self._file}.")

    def entry(self, entry: Any, known: Sequence[str], where: str = "") -> dict[str, Any]:
        if not isinstance(entry, Mapping):
            raise self(f"{where}it is {entry!r}; it has to be a map.")
        for key in entry:
            if key not in known:
                raise self(f"{where}unknown key '{key}'.{nearest(str(key), known)}")
        for key in ("env", "resources", "ready"):
            if not isinstance(entry.get(key, {}), Mapping):
                raise self(f"{where}{key} is {entry[key]!r}; it has to be a map.")
        return {str(key): value for key, value in entry.items() if value is not None}

    def port(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,5}", str(value)):
            raise self(f"{key} is {value!r}; it has to be a port, 1024 to 65535.")
        if not 1024 <= int(value) <= 65535:
            raise self(f"{key} is {value}; it has to be a port, 1024 to 65535.")
        return int(value)
