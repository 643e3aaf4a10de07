"""The service map: the declarative description of one long-running container.

The same map is checked on the controller (before a host is touched) and on the host (before a
container is). It says nothing that only one engine understands, so that another engine can be
handed the same map.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import GroundcrewError

# Every key of a service map and the value it has when it is left out. The release hash covers only
# what differs from these, so that a key added here later does not restart every service there is.
DEFAULTS: dict[str, Any] = {
    "name": None,
    "image": None,
    "env": {},
    "env_file": [],
    "mounts": [],
    "tmpfs": ["/tmp"],
    "port": None,
    "host_port": None,
    "extra_ports": {},
    "network": "bridge",
    "strategy": None,
    "ready": {},
    "ready_timeout_seconds": 60,
    "resources": {},
    "command": [],
    "user": "10001:10001",
    "read_only": True,
    "cap_add": [],
    "config": {},
    "secrets": {},
    "labels": {},
    "drain_seconds": 30,
    "stop_seconds": 10,
    "manifest_sha256": None,
    "backend": None,
    "absent": False,
}
# What a backend may say of itself; everything else is the service's.
BACKEND_KEYS = (
    "image",
    "env",
    "env_file",
    "mounts",
    "tmpfs",
    "port",
    "extra_ports",
    "resources",
    "command",
    "user",
    "read_only",
    "cap_add",
    "config",
    "secrets",
)
READY_KEYS = ("golden", "path", "running_seconds", "steady_seconds")
RESOURCE_KEYS = ("cpus", "memory", "gpus")
MOUNT_KEYS = ("source", "target", "read_only")

# Suffixes of container names; release.py says what they mean.
NEXT = "-next"
PREVIOUS = "-previous"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,61}[a-z0-9]")
_IMAGE = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[0-9]+(:[0-9]+)?")
_MEMORY = re.compile(r"[1-9][0-9]*[bkmgBKMG]?")
_CAPABILITY = re.compile(r"[A-Z][A-Z_]*")
_LABEL = re.compile(r"[a-z0-9][a-z0-9._/-]*")


@dataclass(frozen=True)
class Mount:
    """A directory or file of the host inside the container."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Ready:
    """What proves that a container serves.

    golden: file on the host with requests and the right answers; path: where they are posted, or,
    without golden, what has to answer 200; running_seconds: how long the container has to have
    stayed up; steady_seconds: how long, when there is one that serves, which could go on instead.
    """

    golden: str | None = None
    path: str | None = None
    running_seconds: float = 0.0
    steady_seconds: float = 0.0


@dataclass(frozen=True)
class Service:
    """A checked service map. Secrets stay out of its repr.

    backend: a second container, which only this one reaches, on a network of their own; it is made,
    started, stopped and removed with this one. extra_ports: port on the host -> port in the
    container, besides the main one. strategy: blue_green, where a release starts on the other of two
    ports (the declared one or the one above) beside what serves; replace, where what serves is
    stopped first. With blue_green and network: host the release tells the container its port, PORT
    in its environment.
    """

    name: str
    image: str
    env: Mapping[str, str]
    env_file: tuple[str, ...]
    mounts: tuple[Mount, ...]
    tmpfs: tuple[str, ...]
    port: int | None
    host_port: int | None
    extra_ports: Mapping[int, int]
    network: str
    strategy: str
    ready: Ready
    ready_timeout_seconds: float
    cpus: float | None
    memory: str | None
    gpus: str | None
    command: tuple[str, ...]
    user: str
    read_only: bool
    cap_add: tuple[str, ...]
    config: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str]
    drain_seconds: int
    stop_seconds: int
    manifest_sha256: str | None
    backend: Service | None
    absent: bool

    @property
    def parts(self) -> tuple[Service, ...]:
        """The service and, when it has one, its backend."""
        return (self,) if self.backend is None else (self, self.backend)

    @property
    def ports(self) -> tuple[int, ...]:
        """Every port that it may take on the host."""
        return self.ports_of(0) + (self.ports_of(1) if self.beside else ())

    def ports_of(self, slot: int) -> tuple[int, ...]:
        """The ports that it takes on the host in slot 0 or 1, the main one first."""
        own = [] if self.listening_port is None else [self.listening_port]
        extra = [port for part in self.parts for port in part.extra_ports]
        return tuple(port + slot for port in (*own, *extra))

    @property
    def listening_port(self) -> int | None:
        """The port this service takes on the host, in its first slot; None when it takes none."""
        return self.port if self.network == "host" else self.host_port

    @property
    def beside(self) -> bool:
        """Whether a release of it starts beside the one that serves."""
        return self.strategy == "blue_green"

    @property
    def uid_gid(self) -> tuple[int, int]:
        """Owner of the secrets' files."""
        uid, _, gid = self.user.partition(":")
        return int(uid), int(gid)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as " Did you mean 'image'?", or what is known when nothing is near."""
    names = sorted(known)
    matches = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if matches:
        return f" Did you mean '{matches[0]}'?"
    return f" Known: {', '.join(names) or 'none'}."


def refuse_unknown(given: Iterable[Any], known: Sequence[str], where: str) -> None:
    """Raise GroundcrewError for the first key of `given` that is not in `known`."""
    for key in given:
        if key not in known:
            raise GroundcrewError(f"{where}: unknown key '{key}'.{nearest(str(key), known)}")


def parse_service(raw: Any) -> Service:
    """Check one service map and fill in what is left out.

    Raises GroundcrewError that names the service, the key, its value and what is expected.
    """
    if not isinstance(raw, Mapping):
        raise GroundcrewError(f"a service has to be a map, not {raw!r}.")
    given = {str(key): value for key, value in raw.items() if value is not None}
    name = given.get("name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith((NEXT, PREVIOUS)):
        raise GroundcrewError(
            f"service name {name!r}: use 2 to 63 lower case letters, digits, '.', '_' and '-', "
            f"not ending in '{NEXT}' or '{PREVIOUS}'."
        )
    check = _Check(f"service {name}")
    refuse_unknown(given, tuple(DEFAULTS), check.where)
    value = {key: given.get(key, default) for key, default in DEFAULTS.items()}
    absent = check.boolean("absent", value["absent"])

    image = check.text("image", value["image"] or "")
    if not absent and not _IMAGE.fullmatch(image):
        raise check.error(
            "image",
            image,
            "an image with its digest, <repository>@sha256:<64 hex digits>; hosts run digests, "
            "never tags",
        )
    network = check.text("network", value["network"])
    if network not in ("bridge", "host"):
        raise check.error("network", network, "'bridge' or 'host'")
    port = check.port("port", value["port"])
    host_port = check.port("host_port", value["host_port"])
    if host_port is not None and network == "host":
        raise check.error(
            "host_port", host_port, "no host_port with network: host, where port is the host's"
        )
    if host_port is not None and port is None:
        raise check.error("port", port, "the container's port behind host_port")
    if host_port is not None and host_port % 2:
        raise check.error(
            "host_port", host_port, "an even port; the odd one above it is the second slot"
        )

    resources = check.mapping("resources", value["resources"])
    refuse_unknown(resources, RESOURCE_KEYS, f"{check.where}: resources")
    # Two of one that takes a whole GPU do not fit, and one on the host's network may not follow PORT.
    alone = check.gpus(resources.get("gpus")) is not None or network == "host" or host_port is None
    strategy = check.text("strategy", value["strategy"] or ("replace" if alone else "blue_green"))
    if strategy not in ("blue_green", "replace"):
        raise check.error("strategy", strategy, "'blue_green' or 'replace'")
    own_port = port if network == "host" else host_port
    if strategy == "blue_green" and (own_port is None or own_port % 2):
        raise check.error(
            "strategy",
            strategy,
            f"'replace', or an even port on the host (it is {own_port}); the odd one above is the second slot",
        )
    service = Service(
        name=name,
        image=image,
        env=check.env(value["env"]),
        env_file=tuple(
            check.path("env_file", item) for item in check.items("env_file", value["env_file"])
        ),
        mounts=tuple(check.mount(item) for item in check.items("mounts", value["mounts"])),
        tmpfs=tuple(check.path("tmpfs", item) for item in check.items("tmpfs", value["tmpfs"])),
        port=port,
        host_port=host_port,
        extra_ports=check.extra_ports(value["extra_ports"], network),
        network=network,
        strategy=strategy,
        ready=check.ready(value["ready"]),
        ready_timeout_seconds=check.seconds(
            "ready_timeout_seconds", value["ready_timeout_seconds"]
        ),
        cpus=check.cpus(resources.get("cpus")),
        memory=check.memory(resources.get("memory")),
        gpus=check.gpus(resources.get("gpus")),
        command=tuple(
            check.text("command", item) for item in check.items("command", value["command"])
        ),
        user=check.user(value["user"]),
        read_only=check.boolean("read_only", value["read_only"]),
        cap_add=tuple(
            check.matching("cap_add", item, _CAPABILITY, "capabilities such as NET_BIND_SERVICE")
            for item in check.items("cap_add", value["cap_add"])
        ),
        config=check.contents("config", value["config"]),
        secrets=check.contents("secrets", value["secrets"]),
        labels=check.labels(value["labels"]),
        drain_seconds=int(check.seconds("drain_seconds", value["drain_seconds"])),
        stop_seconds=int(check.seconds("stop_seconds", value["stop_seconds"])),
        manifest_sha256=check.sha256("manifest_sha256", value["manifest_sha256"]),
        backend=None
        if value["backend"] is None
        else check.backend(name, value["backend"], network),
        absent=absent,
    )
    check.targets(service)
    for key in ("running_seconds", "steady_seconds"):
        if getattr(service.ready, key) >= service.ready_timeout_seconds:
            raise check.error(
                "ready_timeout_seconds",
                service.ready_timeout_seconds,
                f"more than ready.{key}, {getattr(service.ready, key)}",
            )
    if service.ready.path is not None and service.listening_port is None and not absent:
        raise check.error(
            "ready", service.ready.path, "a host_port (or network: host and a port) to ask at"
        )
    return service


def parse_services(raw: Any) -> list[Service]:
    """Check a list of service maps; names and the ports they take on the host have to be unique."""
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise GroundcrewError(f"services have to be a list of maps, not {type(raw).__name__}.")
    services = [parse_service(item) for item in raw]
    names: set[str] = set()
    ports: dict[int, str] = {}
    for service in services:
        if service.name in names:
            raise GroundcrewError(f"service {service.name}: declared twice. Rename or remove one.")
        names.add(service.name)
        for port in () if service.absent else service.ports:
            if port in ports:
                raise GroundcrewError(
                    f"service {service.name}: port {port} on the host is already {ports[port]}'s. "
                    f"Give one another port."
                )
            ports[port] = service.name
    return services


def fingerprint(
    service: Service, bind_address: str, env_files: Mapping[str, str]
) -> dict[str, str]:
    """What a release consists of, as {key: sha256 of its canonical JSON}; nested maps give
    `key.subkey`.

    env_files: path -> content. Only what differs from the defaults is in it. Contents of secrets
    enter as digests, so the result may be stored and compared. Two services are the same release
    when their fingerprints are equal.
    """
    parts: dict[str, Any] = {"bind_address": bind_address}
    for key, value in _plain(service).items():
        # How a release takes over is not what it is.
        if key in ("absent", "strategy") or value == DEFAULTS[key]:
            continue
        if isinstance(value, dict):
            parts.update({f"{key}.{subkey}": item for subkey, item in value.items()})
        else:
            parts[key] = value
    parts.update({f"env_file content.{path}": content for path, content in env_files.items()})
    return {
        key: hashlib.sha256(canonical(value)).hexdigest() for key, value in sorted(parts.items())
    }


def release_id(parts: Mapping[str, str]) -> str:
    """The release id: the first 12 hex digits of the sha256 over a fingerprint."""
    return hashlib.sha256(canonical(dict(parts))).hexdigest()[:12]


def changed_keys(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Keys whose value was added, changed or removed between two fingerprints, sorted."""
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def public_map(service: Service) -> dict[str, Any]:
    """The map without contents of config and secrets: enough to ask an old release whether it is
    ready.
    """
    plain = _plain(service)
    plain |= {"config": {}, "secrets": {}}
    if plain["backend"] is not None:
        plain["backend"] = _without(plain["backend"], ("config", "secrets"))
    return {key: value for key, value in plain.items() if value != DEFAULTS[key]}


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _without(entries: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key not in keys}


def _plain(service: Service) -> dict[str, Any]:
    """A service as a service map again, normalised."""
    ready: dict[str, Any] = {}
    if service.ready.golden is not None:
        ready["golden"] = service.ready.golden
    if service.ready.path is not None:
        ready["path"] = service.ready.path
    if service.ready.running_seconds:
        ready["running_seconds"] = service.ready.running_seconds
    if service.ready.steady_seconds:
        ready["steady_seconds"] = service.ready.steady_seconds
    limits = {"cpus": service.cpus, "memory": service.memory, "gpus": service.gpus}
    return {
        "name": service.name,
        "image": service.image,
        "env": dict(service.env),
        "env_file": list(service.env_file),
        "mounts": [
            {"source": mount.source, "target": mount.target, "read_only": mount.read_only}
            for mount in service.mounts
        ],
        "tmpfs": list(service.tmpfs),
        "port": service.port,
        "host_port": service.host_port,
        "extra_ports": {str(port): inner for port, inner in service.extra_ports.items()},
        "network": service.network,
        "strategy": service.strategy,
        "ready": ready,
        "ready_timeout_seconds": service.ready_timeout_seconds,
        "resources": {key: value for key, value in limits.items() if value is not None},
        "command": list(service.command),
        "user": service.user,
        "read_only": service.read_only,
        "cap_add": list(service.cap_add),
        "config": dict(service.config),
        "secrets": dict(service.secrets),
        "labels": dict(service.labels),
        "drain_seconds": service.drain_seconds,
        "stop_seconds": service.stop_seconds,
        "manifest_sha256": service.manifest_sha256,
        "backend": None if service.backend is None else _plain_backend(service.backend),
        "absent": service.absent,
    }


def _plain_backend(backend: Service) -> dict[str, Any]:
    plain = _plain(backend)
    return {key: plain[key] for key in BACKEND_KEYS if plain[key] != DEFAULTS[key]}


class _Check:
    """Typed reading of the values of one service; every refusal names the service, the key and the
    value.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def error(self, key: str, value: Any, expected: str) -> GroundcrewError:
        return GroundcrewError(f"{self.where}: {key} is {value!r}; expected {expected}.")

    def text(self, key: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(key, value, "text")
        return str(value)

    def matching(self, key: str, value: Any, pattern: re.Pattern[str], expected: str) -> str:
        text = self.text(key, value)
        if not pattern.fullmatch(text):
            raise self.error(key, value, expected)
        return text

    def boolean(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def items(self, key: str, value: Any) -> list[Any]:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise self.error(key, value, "a list")
        return list(value)

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.error(key, value, "a map")
        return {str(subkey): item for subkey, item in value.items() if item is not None}

    def integer(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]+", str(value)):
            raise self.error(key, value, "a whole number")
        return int(value)

    def seconds(self, key: str, value: Any) -> float:
        number = self.number(key, value)
        if number < 0 or number > 86400:
            raise self.error(key, value, "seconds, 0 to 86400")
        # 60 and 60.0 are the same release.
        return int(number) if number == int(number) else number

    def number(self, key: str, value: Any) -> float:
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not math.isfinite(number):
            raise self.error(key, value, "a number")
        return number

    def port(self, key: str, value: Any) -> int | None:
        if value is None:
            return None
        number = self.integer(key, value)
        if not 1 <= number <= 65535:
            raise self.error(key, value, "a port, 1 to 65535")
        return number

    def extra_ports(self, value: Any, network: str) -> dict[int, int]:
        ports: dict[int, int] = {}
        for outer, inner in self.mapping("extra_ports", value).items():
            key = f"extra_ports.{outer}"
            host_port, port = self.port(key, outer), self.port(key, inner)
            if host_port is None or port is None or host_port % 2 or network == "host":
                raise self.error(
                    key, inner, "an even port on the host to a port of the container, on a bridge"
                )
            ports[host_port] = port
        return ports

    def backend(self, name: str, value: Any, network: str) -> Service:
        entry = self.mapping("backend", value)
        refuse_unknown(entry, BACKEND_KEYS, f"{self.where}: backend")
        if network == "host" or entry.get("port") is None:
            raise self.error(
                "backend", entry.get("port"), "a port that the service asks, and network: bridge"
            )
        try:
            return parse_service({**entry, "name": name})
        except GroundcrewError as error:
            raise GroundcrewError(f"{error} That is its backend's.") from error

    def path(self, key: str, value: Any) -> str:
        # The engine's options are comma separated, and a tmpfs takes options after a colon.
        text = self.text(key, value)
        plain = text.partition(":")[0] if key == "tmpfs" else text
        if (
            not plain.startswith("/")
            or (key != "tmpfs" and "," in text)
            or "\n" in text
            or ".." in plain.split("/")
        ):
            raise self.error(key, value, "an absolute path without '..', commas and line breaks")
        return text

    def user(self, value: Any) -> str:
        user = self.matching("user", value, _USER, "a numeric uid or uid:gid")
        # A bare uid that the image does not know would run with gid 0.
        return user if ":" in user else f"{user}:{user}"

    def sha256(self, key: str, value: Any) -> str | None:
        return None if value is None else self.matching(key, value, _SHA256, "64 hex digits")

    def env(self, value: Any) -> dict[str, str]:
        env = {}
        for name, item in self.mapping("env", value).items():
            if not _VARIABLE.fullmatch(name):
                raise self.error("env", name, "names of letters, digits and '_'")
            # YAML's true is Python's True; programs expect the former.
            env[name] = (
                str(item).lower() if isinstance(item, bool) else self.text(f"env.{name}", item)
            )
        return env

    def labels(self, value: Any) -> dict[str, str]:
        labels = {}
        for name, item in self.mapping("labels", value).items():
            if not _LABEL.fullmatch(name) or name.startswith("groundcrew."):
                raise self.error(
                    "labels",
                    name,
                    "lower case names outside groundcrew.*, which are the release's own",
                )
            labels[name] = self.text(f"labels.{name}", item)
        return labels

    def contents(self, key: str, value: Any) -> dict[str, str]:
        contents = {}
        for target, content in self.mapping(key, value).items():
            if not isinstance(content, str):
                # Not repr(content): it may be a secret.
                raise GroundcrewError(
                    f"{self.where}: {key}.{target} is a {type(content).__name__}; expected text."
                )
            # str() drops the controller's tags, so that a stored copy is plain.
            contents[self.path(key, target)] = str(content)
        return contents

    def mount(self, value: Any) -> Mount:
        entry = self.mapping("mounts", value)
        refuse_unknown(entry, MOUNT_KEYS, f"{self.where}: mounts")
        return Mount(
            source=self.path("mounts.source", entry.get("source", "")),
            target=self.path("mounts.target", entry.get("target", "")),
            read_only=self.boolean("mounts.read_only", entry.get("read_only", True)),
        )

    def ready(self, value: Any) -> Ready:
        entry = self.mapping("ready", value)
        refuse_unknown(entry, READY_KEYS, f"{self.where}: ready")
        golden = self.path("ready.golden", entry["golden"]) if "golden" in entry else None
        path = self.text("ready.path", entry["path"]) if "path" in entry else None
        if path is not None and (not path.startswith("/") or any(c.isspace() for c in path)):
            raise self.error("ready.path", path, "a URL path that starts with '/'")
        if golden is not None and path is None:
            raise self.error("ready.path", path, "the URL path to which the golden requests go")
        # Without a question to ask, staying up is the only proof there is.
        least = 2 if path is None else 0
        return Ready(
            golden,
            path,
            self.seconds("ready.running_seconds", entry.get("running_seconds", least)),
            self.seconds("ready.steady_seconds", entry.get("steady_seconds", 0)),
        )

    def cpus(self, value: Any) -> float | None:
        if value is None:
            return None
        number = self.number("resources.cpus", value)
        if number <= 0:
            raise self.error("resources.cpus", value, "a number above 0")
        return int(number) if number == int(number) else number

    def memory(self, value: Any) -> str | None:
        if value is None:
            return None
        return self.matching("resources.memory", value, _MEMORY, "a size such as 512m or 2g")

    def gpus(self, value: Any) -> str | None:
        if value is None or value == 0 or value == "0":
            return None
        if value == "all":
            return "all"
        number = self.integer("resources.gpus", value)
        if number < 0:
            raise self.error("resources.gpus", value, "a number of GPUs or 'all'")
        return str(number)

    def targets(self, service: Service) -> None:
        seen: set[str] = set()
        for target in [
            *(mount.target for mount in service.mounts),
            *(entry.partition(":")[0] for entry in service.tmpfs),
            *service.config,
            *service.secrets,
        ]:
            clean = target.rstrip("/")
            if clean in seen:
                raise GroundcrewError(
                    f"{self.where}: two things are mounted at {target}. Remove one."
                )
            seen.add(clean)
