"""Roles of fleets: each may do what its functions need, with the models and jobs that are declared for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
from groundcrew import identity
from moto import mock_aws

FOLDER = str(Path(__file__).resolve().parents[3] / "files/iam")
COMMON = {
    "account": "123456789012",
    "region": "us-east-1",
    "partition": "aws",
    "bucket": "store",
    "session_manager": True,
}
DECLARED = {
    "model_variants": [
        {"model": "digits", "fleet": "prediction"},
        {"model": "scans", "fleet": "prediction_gpu"},
    ],
    "training_jobs": {"t": {"model": "digits_tf", "env": {"SOURCE_MODEL": "digits"}}},
    "batch_jobs": {"nightly": {"model": "digits", "input": "data/x.csv"}},
    "services": {"web": {"batch_job": "nightly"}, "other": {}},
}


EVERYTHING = {"everything": ["prediction", "training", "batch"]}


def policies(fleets: dict[str, list[str]]) -> dict[str, str]:
    found = identity.roles(
        {
            name: {"functions": functions, "fleets": [name, *EVERYTHING.get(name, [])]}
            for name, functions in fleets.items()
        },
        "prod",
        DECLARED,
        COMMON,
        FOLDER,
    )
    return {role["name"].removeprefix("groundcrew-prod-"): role["policy"] for role in found}


def test_a_fleet_reads_its_own_models_and_no_others() -> None:
    found = policies({"prediction": ["prediction"], "prediction_gpu": ["prediction"]})
    assert "models/digits/" in found["prediction"] and "scans" not in found["prediction"]
    assert "models/scans/" in found["prediction_gpu"] and "digits" not in found["prediction_gpu"]
    assert "PutObject" not in found["prediction"]


def test_one_host_that_is_everything_may_what_each_function_may() -> None:
    found = policies({"everything": ["gateway", "prediction", "training", "batch", "application"]})
    policy = found["everything"]
    for word in ("models/digits/", "models/digits_tf/", "predictions/nightly/", "data/x.csv"):
        assert word in policy
    assert not [s for s in json.loads(policy)["Statement"] if s["Effect"] != "Allow"]


def test_a_change_of_what_is_declared_is_a_change_of_the_digest() -> None:
    def digest(declared: dict[str, Any]) -> str:
        (role,) = identity.roles(
            {"batch": {"functions": ["batch"], "fleets": ["batch"]}},
            "prod",
            declared,
            COMMON,
            FOLDER,
        )
        assert role["description"] == "Hosts of fleet batch: batch"
        return str(role["digest"])

    more = {**DECLARED, "batch_jobs": {"weekly": DECLARED["batch_jobs"]["nightly"]}}  # type: ignore[index]
    assert digest(DECLARED) == digest(dict(DECLARED)) != digest(more)


@mock_aws
def test_a_role_is_written_whole_and_again_after_a_change() -> None:
    iam = boto3.client("iam", region_name="us-east-1")
    (role,) = identity.roles(
        {"batch": {"functions": ["batch"], "fleets": ["batch"]}}, "prod", DECLARED, COMMON, FOLDER
    )
    for wanted in (
        role,
        role,
        {**role, "digest": "another", "policy": role["policy"].replace("x.csv", "y.csv")},
    ):
        identity.write(iam, wanted, {"Project": "groundcrew"})
        name = "groundcrew-prod-batch"
        found = iam.get_role(RoleName=name)["Role"]
        assert found["Description"] == f"Hosts of fleet batch: batch {wanted['digest']}"
        policy = iam.get_role_policy(RoleName=name, PolicyName="groundcrew")["PolicyDocument"]
        assert policy == json.loads(wanted["policy"])
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        assert [r["RoleName"] for r in profile["Roles"]] == [name]
