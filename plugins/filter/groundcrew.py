"""Filters over models:, services: and other data; the logic is in plugins/module_utils/groundcrew."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# Ansible offers module_utils of a repository to modules, not to plugins on the controller.
_PACKAGES = str(Path(__file__).resolve().parents[1] / "module_utils")
if _PACKAGES not in sys.path:
    sys.path.append(_PACKAGES)

from groundcrew import (  # noqa: E402
    canary,
    client_keys,
    cloud_plan,
    fingerprint,
    flows,
    identity,
    jobs,
    load,
    machine_images,
    rebuild,
)
from groundcrew.conda import declared, lock  # noqa: E402
from groundcrew.errors import GroundcrewError  # noqa: E402
from groundcrew.inventory import faults, fleet_faults, unedited  # noqa: E402
from groundcrew.service_map import parse_services  # noqa: E402
from groundcrew.services import (  # noqa: E402
    application_service,
    embedded_models,
    expand_models,
    expand_services,
    framework_images,
    frameworks,
    in_fleets,
    on_host,
    prediction_service,
)


def _plain(value: Any) -> Any:
    """A copy of plain dicts, lists and scalars: Ansible's own containers template themselves
    lazily.
    """
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(
                *(_plain(argument) for argument in arguments),
                **{key: _plain(value) for key, value in keywords.items()},
            )
        except GroundcrewError as error:
            raise AnsibleFilterError(str(error)) from error

    return call


def service_fault(services: Any) -> str:
    """What is wrong with a list of service maps; "" when nothing is."""
    try:
        parse_services(services)
    except GroundcrewError as error:
        return str(error)
    return ""


class FilterModule:
    """Filters of this repository."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "inventory_faults": faults,
            "fleet_faults": _filter(fleet_faults),
            "inventory_unedited": unedited,
            "conda_environment_names": _filter(declared.names),
            "conda_locks": _filter(lock.deployable),
            "fingerprint_comparison": _filter(fingerprint.compare),
            "fingerprint_table": _filter(fingerprint.table),
            "groundcrew_models": _filter(expand_models),
            "groundcrew_frameworks": _filter(frameworks),
            "groundcrew_framework_images": _filter(framework_images),
            "groundcrew_services": _filter(expand_services),
            "groundcrew_in_fleets": _filter(in_fleets),
            "groundcrew_on_host": _filter(on_host),
            "groundcrew_embedded_models": _filter(embedded_models),
            "groundcrew_prediction_service": _filter(prediction_service),
            "groundcrew_application_service": _filter(application_service),
            "groundcrew_service_fault": _filter(service_fault),
            "gateway_client_table": _filter(client_keys.table),
            "flows_allowed": _filter(flows.allowed),
            "flows_security_groups": _filter(flows.security_groups),
            "flows_closed_to": _filter(flows.closed_to),
            "variant_ports": _filter(flows.variant_ports),
            "service_ports": _filter(flows.service_ports),
            "load_blame": _filter(load.blame_of),
            "load_csv": _filter(load.csv_of),
            "load_lines": _filter(load.lines),
            "canary_pair": _filter(canary.pair),
            "canary_weights": _filter(canary.weights),
            "canary_step": _filter(canary.step),
            "canary_summary": _filter(canary.summary),
            "groundcrew_live_versions": _filter(jobs.live_versions),
            "groundcrew_live_jobs": _filter(jobs.live_jobs),
            "groundcrew_job_fleet_faults": _filter(jobs.fleet_faults),
            "groundcrew_batch_jobs": _filter(jobs.batch_jobs),
            "groundcrew_job_files": _filter(jobs.library_files),
            "groundcrew_training_jobs": _filter(jobs.training_jobs),
            "fleet_roles": _filter(identity.roles),
            "cloud_plan": _filter(cloud_plan.plan),
            "cloud_plan_lines": _filter(cloud_plan.lines),
            "cloud_digest": _filter(cloud_plan.digest),
            "hosts_gone": _filter(rebuild.gone),
            "rebuild_verdicts": _filter(rebuild.verdicts),
            "rebuild_lines": _filter(rebuild.lines),
            "machine_images_wanted": _filter(machine_images.wanted),
            "machine_image_parameters": _filter(machine_images.parameters),
            "machine_image_ids": _filter(machine_images.ids),
            "machine_image_pins": _filter(machine_images.pins),
            "machine_images_file": _filter(machine_images.render),
            "machine_image_warnings": _filter(machine_images.warnings),
        }
