#!/usr/bin/python
"""Release long-running containers on a host from declarative service maps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_release
short_description: Release long-running containers on a host from declarative service maps
description:
  - Brings the containers of one host to what a list of service maps says, all of them in one call.
  - A service whose map, contents and model manifest are unchanged and whose container runs is left
    alone.
  - A changed one is pulled, created and proven ready (by its golden prediction or an HTTP 200) on the
    free one of its two ports, beside the old container, which is then stopped and kept. If it never
    becomes ready it is removed, the old one serves on, and the module fails with the last log lines
    and the last readiness answer. With strategy replace the old container is stopped before the new
    one starts, and started again if that fails.
  - Behind gateways this takes two calls, with state ready and settled, and the gateways are told what
    is in C(serving) in between (module gateway_servers).
  - A run that was interrupted anywhere is mended by running it again.
options:
  state:
    description:
      - released is all in one.
      - ready starts what changed beside what serves and hands it over; what is not declared any more
        runs on. settled stops what was replaced. replaced is released without the removal of what is
        not declared any more, for services that were drained before, see C(replacing). withdrawn says that what was handed over is not to
        serve, for the gateways and for a settled after it. query does nothing. pulled fetches C(images) and
        nothing else, so that a release of many hosts has none of that in its batches.
    type: str
    choices: [released, ready, settled, replaced, withdrawn, query, pulled]
    default: released
  services:
    description: Service maps. See the README of role container_service for every key.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {type: str, required: true, description: Name of the service and of its container.}
      image: {type: str, description: "Image with its digest, <repository>@sha256:<digest>."}
      env: {type: dict, description: Environment variables. No secrets.}
      env_file: {type: list, elements: path, description: Files on the host with more variables.}
      mounts:
        type: list
        elements: dict
        description: Maps of source, target and read_only (true).
      tmpfs: {type: list, elements: str, description: "Paths in memory; [/tmp] when left out."}
      port: {type: int, description: Port on which the container listens.}
      host_port: {type: int, description: Even port on bind_address that leads to it.}
      extra_ports: {type: dict, description: "More of them: even port on bind_address -> port in the container."}
      network: {type: str, description: "bridge (when left out) or host."}
      strategy: {type: str, description: "blue_green (when left out, with a host_port and no GPU) or replace."}
      ready:
        type: dict
        description: "Proof: golden (a file) and path, or path alone (HTTP 200); running_seconds, steady_seconds."
      ready_timeout_seconds: {type: float, description: Most seconds until it is ready.}
      resources: {type: dict, description: "Limits: cpus, memory, gpus."}
      command: {type: list, elements: str, description: Arguments instead of the image's.}
      user: {type: str, description: Numeric uid or uid:gid.}
      read_only: {type: bool, description: Whether the root file system is read-only.}
      cap_add: {type: list, elements: str, description: Capabilities; all others are dropped.}
      config: {type: dict, description: "Files: path in the container -> content."}
      secrets: {type: dict, description: "Files of mode 0400: path in the container -> content."}
      labels: {type: dict, description: More labels of the container.}
      drain_seconds: {type: int, description: Seconds the gateway gives open requests.}
      stop_seconds: {type: int, description: Seconds between SIGTERM and SIGKILL.}
      manifest_sha256: {type: str, description: "sha256 of the model's manifest."}
      backend:
        type: dict
        description: >-
          A second container that only this one reaches, at BACKEND_HOST and BACKEND_PORT: image, port, env, env_file, mounts,
          tmpfs, extra_ports, resources, command, user, read_only, cap_add, config, secrets.
      absent: {type: bool, description: Stop and remove the service.}
  images: {description: "With state pulled: images by digest.", type: list, elements: str, default: []}
  remove:
    description: Names of services to stop and remove.
    type: list
    elements: str
    default: []
  family:
    description:
      - A word for all services of this list, such as prediction. Services of the same family that
        are not in the list are removed. One whose port a new service takes is kept as its way back.
    type: str
    default: ""
  rollback:
    description:
      - With state released or ready, instead of releasing, go back to the release before the present one of this service, or of the
        service <rollback>-<version>. It has to become ready, or the present one is started again.
    type: str
    default: ""
  bind_address:
    description: Private address of the host on which ports are published and readiness is asked.
    type: str
    required: true
  state_directory:
    description: Where config and secrets of the releases lie.
    type: path
    default: /var/lib/groundcrew/services
  engine_command:
    description: The docker command line.
    type: str
    default: docker
attributes:
  check_mode: {support: full, description: Says what would change. The engine may be missing yet.}
  diff_mode: {support: full, description: Lists which keys of each map differ and never values.}
author: [Groundcrew]
"""

EXAMPLES = r"""
- name: service | Release the model servers
  container_release:
    bind_address: 10.0.0.11
    family: prediction
    services:
      - name: digits-1
        image: registry.example/prediction_sklearn@sha256:0123…
        env: {MODEL_NAME: digits}
        mounts: [{source: /srv/models/digits/1, target: /models/digits/1}]
        port: 8080
        host_port: 18080
        ready: {golden: /srv/models/digits/1/golden.json, path: "/v1/models/digits:predict"}
"""

RETURN = r"""
services:
  description: What was done for each service, in the order of the list, then the removed ones.
  returned: always
  type: list
  elements: dict
  contains:
    name: {type: str, description: Name of the service.}
    release: {type: str, description: First 12 hex digits of the release's hash.}
    image: {type: str, description: Image with digest.}
    action:
      type: str
      description: One of none, created, replaced, started, cleaned, removed, absent, rolled back, settled, withdrawn.
    changes: {type: list, description: Keys of the map that differ; of a rollback what served before.}
    ready_ms: {type: int, description: Milliseconds from start to ready; null if nothing started.}
serving: {description: Ports on bind_address to which gateways are to send., returned: success, type: list, elements: int}
handed_over: {description: Services of which a release waits for the gateways., returned: success, type: list, elements: str}
again: {description: They are an interrupted run's; settle and call again., returned: success, type: bool}
replacing: {description: "Services to drain before state replaced, which stops them first.", returned: success, type: list, elements: str}
replacing_ports: {description: Their ports., returned: success, type: list, elements: int}
unwanted: {description: Services that run and are not declared., returned: success, type: list, elements: str}
drain_seconds: {description: Seconds that open requests of what is replaced may take., returned: success, type: int}
"""

import contextlib
import shutil
import signal
from types import FrameType
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.container_engine import DockerEngine
from ansible.module_utils.groundcrew.errors import GroundcrewError
from ansible.module_utils.groundcrew.release import (
    LinuxHost,
    ReleaseError,
    Releaser,
    Report,
    lock,
    summary,
    without_engine,
)
from ansible.module_utils.groundcrew.service_map import BACKEND_KEYS, Service, parse_services

SERVICE_OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "image": {"type": "str"},
    "env": {"type": "dict"},
    "env_file": {"type": "list", "elements": "path"},
    "mounts": {"type": "list", "elements": "dict"},
    "tmpfs": {"type": "list", "elements": "str"},
    "port": {"type": "int"},
    "host_port": {"type": "int"},
    "extra_ports": {"type": "dict"},
    "network": {"type": "str"},
    "strategy": {"type": "str"},
    "ready": {"type": "dict"},
    "ready_timeout_seconds": {"type": "float"},
    "resources": {"type": "dict"},
    "command": {"type": "list", "elements": "str"},
    "user": {"type": "str"},
    "read_only": {"type": "bool"},
    "cap_add": {"type": "list", "elements": "str"},
    "config": {"type": "dict"},
    # Contents of secrets are hidden in everything this module returns, its failures and log lines
    # included.
    "secrets": {"type": "dict", "no_log": True},
    "labels": {"type": "dict"},
    "drain_seconds": {"type": "int"},
    "stop_seconds": {"type": "int"},
    "manifest_sha256": {"type": "str"},
    "absent": {"type": "bool"},
}


SERVICE_OPTIONS["backend"] = {
    "type": "dict",
    "options": {key: SERVICE_OPTIONS[key] for key in BACKEND_KEYS},
}


class Interrupted(BaseException):
    """A signal asked this process to end; the release logic first restores what served."""


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(signal.Signals(number).name)


def _result(report: Report, check: bool, serving: list[int]) -> dict[str, Any]:
    changed = [outcome for outcome in report.outcomes if outcome.changed]
    return {
        "changed": bool(changed),
        "services": [
            {
                "name": outcome.name,
                "release": outcome.release,
                "image": outcome.image,
                "action": outcome.action,
                "changes": outcome.changes,
                "ready_ms": outcome.ready_ms,
            }
            for outcome in report.outcomes
        ],
        "serving": serving,
        "handed_over": report.handed_over,
        "again": report.again,
        "replacing": report.replacing,
        "replacing_ports": report.replacing_ports,
        "unwanted": report.unwanted,
        "drain_seconds": report.drain_seconds,
        "diff": {"prepared": "".join(summary(outcome, future=check) for outcome in changed)},
    }


def _run(
    releaser: Releaser, parameters: dict[str, Any], services: list[Service], check: bool
) -> Report:
    state = parameters["state"]
    if state == "query" or (check and state in ("settled", "withdrawn")):
        return Report([])
    if state == "settled":
        return Report(releaser.settle())
    if state == "withdrawn":
        return releaser.withdraw()
    hold = state == "ready"
    if parameters["rollback"]:
        return releaser.rollback(parameters["rollback"], check=check, hold=hold)
    keep = state == "replaced"
    return releaser.run(services, parameters["remove"], check=check, hold=hold, keep=keep)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": [
                    "released",
                    "ready",
                    "settled",
                    "replaced",
                    "withdrawn",
                    "query",
                    "pulled",
                ],
                "default": "released",
            },
            "services": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": SERVICE_OPTIONS,
            },
            "images": {"type": "list", "elements": "str", "default": []},
            "remove": {"type": "list", "elements": "str", "default": []},
            "family": {"type": "str", "default": ""},
            "rollback": {"type": "str", "default": ""},
            "bind_address": {"type": "str", "required": True},
            "state_directory": {"type": "path", "default": "/var/lib/groundcrew/services"},
            "engine_command": {"type": "str", "default": "docker"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    check = bool(module.check_mode)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        services = parse_services(parameters["services"])
        remove, address = parameters["remove"], parameters["bind_address"]
        # A query of a host that has no engine yet, or a check run on a fresh one.
        if (check or parameters["state"] == "query") and shutil.which(
            parameters["engine_command"]
        ) is None:
            outcomes = [] if parameters["rollback"] else without_engine(services, remove, address)
            module.exit_json(**_result(Report(outcomes), check, []))
        releaser = Releaser(
            DockerEngine(parameters["engine_command"]),
            LinuxHost(),
            state_directory=parameters["state_directory"],
            bind_address=address,
            family=parameters["family"],
            log=module.log,
        )
        if parameters["state"] == "pulled":
            missing = releaser.pull(parameters["images"], check=check)
            module.exit_json(**{**_result(Report([]), check, []), "changed": bool(missing)})
        alone = (
            contextlib.nullcontext()
            if check or parameters["state"] == "query"
            else lock(parameters["state_directory"])
        )
        with alone:
            report = _run(releaser, parameters, services, check)
            serving = releaser.serving()
    except ReleaseError as error:
        module.fail_json(msg=str(error), **_result(Report(error.done), check, []))
    except GroundcrewError as error:
        module.fail_json(msg=str(error), **_result(Report([]), check, []))
    except Interrupted as error:
        module.fail_json(
            msg=f"interrupted by {error}; what served before serves. Run it again.",
            **_result(Report([]), check, []),
        )
    module.exit_json(**_result(report, check, serving))


if __name__ == "__main__":
    main()
