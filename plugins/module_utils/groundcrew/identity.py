"""What the hosts of each fleet may do in the cloud: the policies of files/iam for the functions that a fleet has."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cloud_plan import digest


def render(template: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """A policy document from its template. Raises jinja2.UndefinedError when a variable is missing."""
    from jinja2 import Environment, StrictUndefined

    text = Environment(undefined=StrictUndefined).from_string(template.read_text())
    document: dict[str, Any] = json.loads(text.render(**variables))
    return document


def joined(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One document that allows what several allow. Statements' names are dropped: two documents may use the same one."""
    statements = [
        {key: value for key, value in statement.items() if key != "Sid"}
        for document in documents
        for statement in document["Statement"]
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def roles(
    fleets: Mapping[str, Mapping[str, Sequence[str]]],
    environment: str,
    declared: Mapping[str, Any],
    common: Mapping[str, Any],
    folder: str,
) -> list[dict[str, Any]]:
    """One role a fleet: [{"name", "description", "digest", "policy", "trust"}], the documents as JSON text.

    fleets: fleet that gives hosts their size -> their `functions`, each with a policy files/iam/host/<function>.json.j2, and all `fleets`
    that they are in. declared: model_variants, training_jobs, batch_jobs and services of the inventory. common: account,
    region, partition, bucket, session_manager. folder: files/iam.
    """
    found = []
    below = Path(folder)
    trust = json.loads((below / "trust_ec2.json").read_text())
    for fleet, of in sorted(fleets.items()):
        functions = of["functions"]
        documents = [render(below / "host/all.json.j2", _variables(environment, common))]
        for function in functions:
            uses = _uses(function, of["fleets"], declared)
            template = below / f"host/{function}.json.j2"
            documents.append(render(template, _variables(environment, common, **uses)))
        policy = joined(documents)
        found.append(
            {
                "name": f"groundcrew-{environment}-{fleet}",
                "description": f"Hosts of fleet {fleet}: {', '.join(functions)}",
                "digest": digest([policy, trust]),
                "policy": json.dumps(policy),
                "trust": json.dumps(trust),
            }
        )
    return found


def _variables(environment: str, common: Mapping[str, Any], **uses: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {"models": [], "jobs": [], "inputs": []}
    return {**nothing, **common, "environment_name": environment, **uses}


def _uses(
    function: str, fleets: Sequence[str], declared: Mapping[str, Any]
) -> dict[str, list[str]]:
    """The models, batch jobs and inputs that a function of these fleets works with."""
    if function == "prediction":
        served = (v for v in declared["model_variants"] if v["fleet"] in fleets)
        return {"models": sorted({v["model"] for v in served})}
    if function == "training":
        jobs = list(declared["training_jobs"].values())
        sources = {job.get("env", {}).get("SOURCE_MODEL") for job in jobs} - {None}
        return {
            "models": sorted({job["model"] for job in jobs} | sources),
            "inputs": sorted({job["data"] for job in jobs if job.get("data")}),
        }
    if function == "batch":
        jobs = list(declared["batch_jobs"].values())
        return {
            "models": sorted({job["model"] for job in jobs}),
            "jobs": sorted(declared["batch_jobs"]),
            # The day of a run stands for any.
            "inputs": sorted({re.sub(r"\{(date|hour)\}", "*", job["input"]) for job in jobs}),
        }
    if function == "application":
        read = {s["batch_job"] for s in declared["services"].values() if "batch_job" in s}
        held = [s for s in declared["services"].values() if s.get("prediction") == "embedded"]
        return {"jobs": sorted(read), "models": sorted({s["model"] for s in held})}
    return {}


def write(iam: Any, role: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Make or change one role, its policy and its instance profile. The description, which says that all of it was written, comes last."""
    name = role["name"]
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=role["trust"], Tags=listed)
    except iam.exceptions.EntityAlreadyExistsException:
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=role["trust"])
    iam.put_role_policy(RoleName=name, PolicyName="groundcrew", PolicyDocument=role["policy"])
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_instance_profile(InstanceProfileName=name, Tags=listed)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    iam.update_role(RoleName=name, Description=f"{role['description']} {role['digest']}")
