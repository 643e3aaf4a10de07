"""The IAM policies of files/iam: what they say, and what a stand-in of AWS that checks them lets pass.

moto looks at Effect and Action everywhere and at Resource for S3, but takes conditions as met and asks
for every EC2 call on "*". So a denial with a condition denies always here, an allowance with one allows
always, and EC2's allowances are widened to "*" for it (see `for_moto`). What hangs on a condition or on
a resource of EC2 is only read below, and left to a real account.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import jinja2
import pytest
from botocore.exceptions import ClientError
from groundcrew import batch_store, deploy_lock, model_store
from moto.core import enable_iam_authentication

ROOT = Path(__file__).resolve().parents[3]
FUNCTIONS = ("gateway", "prediction", "application", "training", "batch", "monitoring")
VALUES: dict[str, Any] = {
    "environment_name": "test",
    "account": "123456789012",
    "region": "us-east-1",
    "partition": "aws",
    "bucket": "groundcrew-test-iam-store",
    "models": ["digits", "digits_tf"],
    "jobs": ["nightly"],
    "inputs": ["data/digits/holdout.csv", "data/scans/", "s3://elsewhere/scans/today.csv"],
    "session_manager": True,
    "mfa": True,
}
BUCKET = VALUES["bucket"]
STORE = f"arn:aws:s3:::{BUCKET}"
IAM_ARN = "arn:aws:iam::123456789012"
# A team that has nothing yet, and wants neither Session Manager nor a second factor.
BARE = {"models": [], "jobs": [], "inputs": [], "session_manager": False, "mfa": False}
# They take no resource, or mean everybody's.
ANY_RESOURCE = {
    "ec2:Describe*",
    "ecr:DescribeRepositories",
    "ecr:GetAuthorizationToken",
    "iam:ListRoles",
    "secretsmanager:BatchGetSecretValue",
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
    "sts:GetCallerIdentity",
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ROOT / "files" / "iam"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,  # as Ansible renders them
    keep_trailing_newline=True,
)
ALL = sorted(TEMPLATES.list_templates())
HOST = [f"host/{name}.json.j2" for name in ("all", *FUNCTIONS)]
PEOPLE = ["break_glass.json.j2", "deploy.json.j2", "no_terminate.json.j2"]
BUCKETS = ["bucket.json.j2"]
TRUST = ["trust_account.json.j2", "trust_ec2.json"]
IMAGE = "ami-12c6146b"  # one that moto has

Statement = dict[str, Any]
Actor = Callable[[str], Any]


def render(name: str, **more: Any) -> str:
    return TEMPLATES.get_template(name).render(VALUES | more)


def statements(name: str, **more: Any) -> list[Statement]:
    found: list[Statement] = json.loads(render(name, **more))["Statement"]
    return found


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(name: str, **more: Any) -> dict[str, set[str]]:
    """Every allowed action with its resources."""
    rights: dict[str, set[str]] = {}
    for statement in statements(name, **more):
        if statement["Effect"] == "Allow":
            for action in listed(statement["Action"]):
                rights.setdefault(action, set()).update(listed(statement["Resource"]))
    return rights


def the(name: str, sid: str) -> Statement:
    return next(statement for statement in statements(name) if statement["Sid"] == sid)


# -- what every policy looks like ----------------------------------------------------------------


def test_these_are_all_templates() -> None:
    assert sorted(HOST + PEOPLE + BUCKETS + TRUST) == ALL


@pytest.mark.parametrize("more", [{}, BARE], ids=["full", "bare"])
@pytest.mark.parametrize("name", ALL)
def test_a_policy_is_one_of_iams(name: str, more: dict[str, Any]) -> None:
    document = json.loads(render(name, **more))
    assert set(document) == {"Version", "Statement"} and document["Version"] == "2012-10-17"
    found = document["Statement"]
    assert found, "IAM refuses a policy without a statement"
    assert len({statement["Sid"] for statement in found}) == len(found)
    about = ["Principal"] if name in TRUST else ["Resource"]
    about += ["Principal"] if name in BUCKETS else []
    for statement in found:
        assert set(statement) - {"Condition"} == {"Sid", "Effect", "Action", *about}
        assert re.fullmatch(r"[A-Za-z0-9]+", statement["Sid"])
        assert statement["Effect"] in ("Allow", "Deny")
        assert all(statement[key] for key in about), "an empty list is refused"
        for action in listed(statement["Action"]):
            assert re.fullmatch(r"[a-z0-9]+:(\*|[A-Z][A-Za-z]+\*?)", action)


@pytest.mark.parametrize(
    ("names", "limit"),
    [(HOST + PEOPLE[:2], 10_240), (PEOPLE[2:], 6_144), (BUCKETS, 20_480), (TRUST, 2_048)],
)
def test_a_policy_fits_into_iams_limits(names: list[str], limit: int) -> None:
    # Policies of a role, a policy of its own, of a bucket, of trust.
    # Whitespace does not count; a fleet of ten models and as many jobs still has to fit.
    many = {"models": [f"model_{n}" * 3 for n in range(10)], "jobs": [f"job_{n}" for n in range(9)]}
    sizes = {name: len(re.sub(r"\s", "", render(name, **many))) for name in names}
    assert {name: size for name, size in sizes.items() if size >= limit} == {}


@pytest.mark.parametrize("name", HOST + PEOPLE)
def test_everything_is_a_resource_of_few_allowed_actions_only(name: str) -> None:
    assert {action for action, on in allowed(name).items() if "*" in on} <= ANY_RESOURCE
    wide = {action for action in allowed(name) if action.endswith("*")}
    assert wide <= {"ec2:Describe*", "s3:GetBucket*"}


def test_a_template_that_lacks_a_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="bucket"):
        TEMPLATES.get_template("host/batch.json.j2").render(models=[], jobs=["a"], partition="aws")


@pytest.mark.parametrize("name", [name for name in ALL if name not in TRUST])
def test_another_partition_is_taken_everywhere(name: str) -> None:
    assert "arn:aws:" not in render(name, partition="aws-cn")


# -- what each of them says ----------------------------------------------------------------------


@pytest.mark.parametrize("function", ["gateway", "monitoring"])
def test_these_hosts_may_nothing_of_their_own(function: str) -> None:
    assert set(allowed(f"host/{function}.json.j2")) == {"sts:GetCallerIdentity"}


def test_a_prediction_host_reads_its_models_and_nothing_else() -> None:
    assert allowed("host/prediction.json.j2", models=["digits"]) == {
        "s3:GetObject": {f"{STORE}/models/digits/*"}
    }


def test_an_application_host_reads_its_jobs_results() -> None:
    assert allowed("host/application.json.j2", models=[]) == {
        "s3:GetObject": {f"{STORE}/predictions/nightly/*"},
        "s3:ListBucket": {STORE},
    }
    # And the models that its services hold themselves.
    rights = allowed("host/application.json.j2", models=["digits"])
    assert rights["s3:GetObject"] == {f"{STORE}/models/digits/*", f"{STORE}/predictions/nightly/*"}


def test_a_batch_host_reads_models_and_inputs_and_writes_results() -> None:
    rights = allowed("host/batch.json.j2")
    assert set(rights) == {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}
    assert rights["s3:PutObject"] == {f"{STORE}/predictions/nightly/*"}
    assert rights["s3:GetObject"] == {
        f"{STORE}/models/digits/*",
        f"{STORE}/models/digits_tf/*",
        f"{STORE}/data/digits/holdout.csv",
        f"{STORE}/data/scans/*",
        "arn:aws:s3:::elsewhere/scans/today.csv",
        f"{STORE}/predictions/nightly/*",
    }
    # A prefix is listed, and a missing object told from a forbidden one.
    assert rights["s3:ListBucket"] == {STORE, "arn:aws:s3:::elsewhere"}


def test_a_training_host_publishes_its_models_and_deletes_claims_alone() -> None:
    rights = allowed("host/training.json.j2", models=["digits"], inputs=[])
    assert rights["s3:DeleteObject"] == {f"{STORE}/models/digits/*/claim.json"}
    assert rights["s3:PutObject"] == {
        f"{STORE}/models/digits/*",
        f"{STORE}/data/digits/holdout.csv",
    }
    assert rights["s3:GetObject"] == {f"{STORE}/data/*", f"{STORE}/models/digits/*"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_hosts_list_only_what_they_read_and_have_no_secret(function: str) -> None:
    name = f"host/{function}.json.j2"
    assert "secretsmanager" not in render(name) and "Deny" not in render(name)
    for statement in statements(name):
        # Data of another bucket is listed where a job says that it lies.
        if "s3:ListBucket" in listed(statement["Action"]) and statement["Resource"] == STORE:
            prefixes = statement["Condition"]["StringLikeIfExists"]["s3:prefix"]
            assert prefixes and all(
                re.match(r"(models|predictions)/\w+/|data/", p) for p in prefixes
            )


def test_every_host_pulls_images_and_pushes_none() -> None:
    rights = allowed("host/all.json.j2")
    ecr = {action for action in rights if action.startswith("ecr:")}
    assert ecr == {
        "ecr:GetAuthorizationToken",
        "ecr:BatchGetImage",
        "ecr:GetDownloadUrlForLayer",
        "ecr:BatchCheckLayerAvailability",
    }
    repositories = "arn:aws:ecr:us-east-1:123456789012:repository/groundcrew/*"
    assert rights["ecr:BatchGetImage"] == {repositories}
    without = set(allowed("host/all.json.j2", session_manager=False))
    assert without == ecr and set(rights) - ecr == {a for a in rights if a.startswith("ssm")}


def test_deploy_deletes_nothing_but_its_lock() -> None:
    rights = allowed("deploy.json.j2")
    removing = {
        action: on
        for action, on in rights.items()
        if re.search(r":(Delete|Terminate|Remove|Detach|Disassociate|Put.*Lifecycle)", action)
    }
    own_sessions = "arn:aws:ssm:us-east-1:123456789012:session/${aws:userid}-*"
    assert removing == {
        "s3:DeleteObject": {f"{STORE}/{deploy_lock.KEY}"},
        "ssm:TerminateSession": {own_sessions},
    }
    assert "ec2:ModifyInstanceAttribute" not in rights


def test_deploy_changes_only_what_carries_its_tags() -> None:
    for statement in statements("deploy.json.j2"):
        actions = listed(statement["Action"])
        if (
            not any(action.startswith("ec2:") for action in actions)
            or actions[0] == "ec2:Describe*"
        ):
            continue
        # Others' images, of which what is made carries the tags; and what is baked, which is no instance.
        if statement["Sid"] in ("OutOfImages", "NameWhatIsBaked"):
            assert all(re.search(r"::(image|snapshot)/\*$", on) for on in statement["Resource"])
            continue
        if statement["Sid"] == "AddressOfTheWayOut":
            # The module that makes the gateway gives its address no tags.
            assert statement["Resource"].endswith(":elastic-ip/*")
            assert actions == ["ec2:AllocateAddress", "ec2:CreateNatGateway"]
            continue
        condition = statement["Condition"]["StringEquals"]
        if statement["Sid"] == "TagWhatIsMade":
            assert set(condition) == {"ec2:CreateAction"}
            continue
        kind = "Request" if statement["Sid"] == "MakeWhatCarriesOurTags" else "Resource"
        assert condition == {
            f"aws:{kind}Tag/Project": "groundcrew",
            f"aws:{kind}Tag/Environment": "test",
        }


def test_deploy_hands_roles_to_instances_alone_and_never_its_own() -> None:
    grant = the("deploy.json.j2", "GiveHostsTheirRoles")
    assert grant["Resource"] == f"{IAM_ARN}:role/groundcrew-test-*"
    assert grant["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    denial = the("deploy.json.j2", "LeaveThePeoplesRolesAlone")
    assert denial["Effect"] == "Deny" and "Condition" not in denial
    assert {"iam:PassRole", "iam:PutRolePolicy"} <= set(denial["Action"])
    assert set(denial["Resource"]) == {
        f"{IAM_ARN}:role/groundcrew-test-deploy",
        f"{IAM_ARN}:role/groundcrew-test-break-glass",
    }


def test_no_terminate_only_denies_and_terminating_without_a_condition() -> None:
    found = statements("no_terminate.json.j2")
    assert {statement["Effect"] for statement in found} == {"Deny"}
    terminate = the("no_terminate.json.j2", "TerminateNothing")
    assert terminate["Resource"] == "*" and "Condition" not in terminate


def test_no_terminate_leaves_other_attributes_of_instances_alone() -> None:
    """Read only: see the module's docstring."""
    found = [
        statement["Condition"]
        for statement in statements("no_terminate.json.j2")
        if statement["Action"] == "ec2:ModifyInstanceAttribute"
    ]
    attributes = ["DisableApiTermination", "InstanceInitiatedShutdownBehavior"]
    assert found == [
        {"StringEqualsIgnoreCase": {"ec2:Attribute": attributes}},
        {"StringEqualsIgnoreCase": {"ec2:Attribute/DisableApiTermination": "false"}},
    ]


def test_no_terminate_lets_the_deploy_role_switch_versions_on() -> None:
    """Read only. Without the exception nobody could make the store: `MakeTheStore` needs the action."""
    assert the("no_terminate.json.j2", "KeepOldVersions")["Condition"] == {
        "ArnNotEquals": {"aws:PrincipalArn": f"{IAM_ARN}:role/groundcrew-test-deploy"}
    }
    assert "s3:PutBucketVersioning" in allowed("deploy.json.j2")


def test_break_glass_reaches_one_environment() -> None:
    for statement in statements("break_glass.json.j2"):
        if statement["Action"] != "ec2:Describe*":
            assert statement["Condition"]["StringEquals"] == {
                "aws:ResourceTag/Project": "groundcrew",
                "aws:ResourceTag/Environment": "test",
            }


def test_who_may_take_the_roles() -> None:
    assert statements("trust_ec2.json")[0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    with_factor, without = (statements("trust_account.json.j2", mfa=m)[0] for m in (True, False))
    assert with_factor["Principal"] == without["Principal"] == {"AWS": f"{IAM_ARN}:root"}
    assert with_factor["Condition"] == {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
    assert "Condition" not in without


# -- what a cloud that checks them lets pass -----------------------------------------------------


def for_moto(document: str) -> str:
    """The policy with EC2's allowances on every resource: moto asks for no other."""
    policy = json.loads(document)
    for statement in policy["Statement"]:
        if statement["Effect"] == "Allow" and listed(statement["Action"])[0].startswith("ec2:"):
            statement["Resource"] = "*"
    return json.dumps(policy)


def role(*policies: str, **more: Any) -> Actor:
    """A new role with these policies; what it gives makes a client of a service that acts as the role."""
    iam = boto3.client("iam")
    name = f"groundcrew-test-{uuid.uuid4()}"
    trust = (ROOT / "files/iam/trust_ec2.json").read_text()
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    for number, policy in enumerate(policies):
        document = for_moto(render(policy, **more))
        iam.put_role_policy(RoleName=name, PolicyName=f"p{number}", PolicyDocument=document)
    # Taken before the checks begin: moto knows no account as the principal of a trust policy.
    answer = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")
    keys = answer["Credentials"]
    connect: Any = boto3.client
    return lambda service: connect(
        service,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )


def administrator(with_no_terminate: bool) -> Actor:
    """A person who may everything, in a group that has no_terminate or has not."""
    iam = boto3.client("iam")
    name = f"ada-{uuid.uuid4()}"
    iam.create_user(UserName=name)
    everything = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
    document = json.dumps({"Version": "2012-10-17", "Statement": everything})
    iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=document)
    if with_no_terminate:
        iam.create_group(GroupName=name)
        policy = iam.create_policy(
            PolicyName=f"groundcrew-{name}", PolicyDocument=render("no_terminate.json.j2")
        )
        iam.attach_group_policy(GroupName=name, PolicyArn=policy["Policy"]["Arn"])
        iam.add_user_to_group(GroupName=name, UserName=name)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    connect: Any = boto3.client
    return lambda service: connect(
        service,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
    )


def refused(call: Callable[..., Any], **arguments: Any) -> str:
    """The code of the refusal; a call that passes is a failure."""
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return str(error.value.response["Error"]["Code"])


# AWS has UnauthorizedOperation for EC2; moto has AccessDenied, and for some services the status alone.
DENIED = {"AccessDenied", "UnauthorizedOperation", "403"}


def launch(ec2: Any) -> str:
    """A tagged instance; unprotected in moto, so that nothing but a policy is in the way."""
    tags = [{"Key": "Project", "Value": "groundcrew"}, {"Key": "Environment", "Value": "test"}]
    answer = ec2.run_instances(
        ImageId=IMAGE,
        MinCount=1,
        MaxCount=1,
        DisableApiTermination=True,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return str(answer["Instances"][0]["InstanceId"])


def state(instance: str) -> str:
    found = boto3.client("ec2").describe_instances(InstanceIds=[instance])
    return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])


def test_deploy_launches_and_stops_and_terminates_nothing(aws: None) -> None:
    deploy = role("deploy.json.j2", "no_terminate.json.j2")("ec2")
    with enable_iam_authentication():
        instance = launch(deploy)
        assert refused(deploy.terminate_instances, InstanceIds=[instance]) in DENIED
        # Neither the protection nor, in moto, any other attribute; on AWS the deploy role has no right to either.
        code = refused(
            deploy.modify_instance_attribute,
            InstanceId=instance,
            DisableApiTermination={"Value": False},
        )
        assert code in DENIED
        deploy.stop_instances(InstanceIds=[instance])
        deploy.start_instances(InstanceIds=[instance])
    assert state(instance) == "running"


def test_deploy_alone_has_no_right_to_terminate_either(aws: None) -> None:
    deploy = role("deploy.json.j2")("ec2")
    with enable_iam_authentication():
        instance = launch(deploy)
        assert refused(deploy.terminate_instances, InstanceIds=[instance]) in DENIED


def test_break_glass_lifts_the_protection_first(aws: None) -> None:
    ec2 = boto3.client("ec2")
    instance = launch(ec2)
    # moto forgets the protection that a launch asks for.
    ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": True})
    glass = role("break_glass.json.j2")("ec2")
    with enable_iam_authentication():
        assert refused(glass.terminate_instances, InstanceIds=[instance]) == "OperationNotPermitted"
        glass.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": False})
        glass.terminate_instances(InstanceIds=[instance])
        assert refused(glass.run_instances, ImageId=IMAGE, MinCount=1, MaxCount=1) in DENIED
    assert state(instance) == "terminated"


def test_an_administrator_with_no_terminate_is_refused(aws: None) -> None:
    ec2 = boto3.client("ec2")
    instance = launch(ec2)
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    careful, free = administrator(True), administrator(False)
    with enable_iam_authentication():
        assert refused(careful("ec2").terminate_instances, InstanceIds=[instance]) in DENIED
        # Denied with a condition on tags, which moto takes as met: this volume has none.
        assert refused(careful("ec2").delete_volume, VolumeId=volume) in DENIED
        assert refused(careful("s3").delete_bucket, Bucket=BUCKET) in DENIED
        careful("ec2").stop_instances(InstanceIds=[instance])
        # The same person without the policy: it is what refuses.
        free("ec2").terminate_instances(InstanceIds=[instance])
        free("s3").delete_bucket(Bucket=BUCKET)
    assert state(instance) == "terminated"


@pytest.fixture
def store(aws: None) -> Any:
    """The environment's bucket, as an administrator sees it."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    return client


def publish(client: Any, directory: Path, model: str, version: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "model.bin").write_bytes(b"weights")
    case = {"request": {"instances": [[0]]}, "response": {"predictions": [0]}}
    golden = {"cases": [case], "tolerance": 0}
    (directory / "golden.json").write_text(json.dumps(golden))
    held = model_store.claim(client, BUCKET, model, version, "test")
    manifest = {"framework": "sklearn", "signature": {}, "metrics": {}}
    model_store.publish(client, BUCKET, held, directory, manifest)


def test_a_training_host_publishes_by_the_code_that_it_runs(store: Any, tmp_path: Path) -> None:
    host = role("host/all.json.j2", "host/training.json.j2", models=["digits"])("s3")
    with enable_iam_authentication():
        publish(host, tmp_path / "digits", "digits", "1")
        # A claim that comes to nothing is let go.
        model_store.release(host, BUCKET, model_store.claim(host, BUCKET, "digits", "2", "test"))
        host.put_object(Bucket=BUCKET, Key="data/digits/holdout.csv", Body=b"id\n")
        for method, key in (
            (host.delete_object, "models/digits/1/model.bin"),
            (host.delete_object, "data/digits/holdout.csv"),
            (host.put_object, "models/other/1/model.bin"),
            (host.put_object, "data/digits/train.csv"),
            (host.put_object, "predictions/nightly/LATEST"),
            (host.put_object, "locks/deploy.json"),
        ):
            assert refused(method, Bucket=BUCKET, Key=key) in DENIED
    assert model_store.versions(store, BUCKET, "digits") == ["1"]


def test_a_prediction_host_fetches_its_models_and_no_other(store: Any, tmp_path: Path) -> None:
    for model in ("digits", "other"):
        publish(store, tmp_path / model, model, "1")
    host = role("host/all.json.j2", "host/prediction.json.j2", models=["digits"])("s3")
    with enable_iam_authentication():
        fetched = model_store.fetch(host, BUCKET, "digits", "1", tmp_path / "host/digits/1")
        with pytest.raises(ClientError, match="Access ?Denied"):
            model_store.fetch(host, BUCKET, "other", "1", tmp_path / "host/other/1")
        for method in (host.put_object, host.delete_object):
            key = "models/digits/1/model.bin"
            assert refused(method, Bucket=BUCKET, Key=key) in DENIED
        assert refused(host.list_objects_v2, Bucket=BUCKET) in DENIED
        assert refused(host.get_object, Bucket=BUCKET, Key="predictions/nightly/LATEST") in DENIED
    assert (fetched.path / "model.bin").read_bytes() == b"weights"


def test_a_batch_host_writes_what_an_application_host_reads(store: Any) -> None:
    store.put_object(Bucket=BUCKET, Key="data/digits/holdout.csv", Body=b"id\n1\n")
    store.put_object(Bucket=BUCKET, Key="data/digits/other.csv", Body=b"id\n1\n")
    batch = role("host/all.json.j2", "host/batch.json.j2")("s3")
    application = role("host/all.json.j2", "host/application.json.j2", models=[])("s3")
    with enable_iam_authentication():
        batch.get_object(Bucket=BUCKET, Key="data/digits/holdout.csv")
        run = "20260131T040506Z"
        writer = batch_store.BatchWriter(batch, BUCKET, "nightly", run)
        writer.add_part(0, b"part", 1)
        writer.add_rejected(b"none", 0)
        assert writer.finish({})[1]
        newest = batch_store.read_latest(application, BUCKET, "nightly")
        assert newest is not None and newest.run_id == run

        latest = {"Bucket": BUCKET, "Key": "predictions/nightly/LATEST"}
        for method in (batch.delete_object, application.put_object, application.delete_object):
            assert refused(method, **latest) in DENIED
        for client, key in (
            (batch, "data/digits/other.csv"),
            (application, "data/digits/holdout.csv"),
            (application, "models/digits/1/model.bin"),
            (application, "predictions/other/LATEST"),
        ):
            assert refused(client.get_object, Bucket=BUCKET, Key=key) in DENIED


def test_deploy_takes_and_lets_go_of_its_lock_and_removes_no_other_object(store: Any) -> None:
    store.put_object(Bucket=BUCKET, Key="models/digits/1/manifest.json", Body=b"{}")
    deploy = role("deploy.json.j2", "no_terminate.json.j2")("s3")
    with enable_iam_authentication():
        deploy_lock.acquire(deploy, BUCKET, run="1-1", what="test")
        assert deploy_lock.release(deploy, BUCKET, "1-1")
        deploy.get_object(Bucket=BUCKET, Key="models/digits/1/manifest.json")
        key = "models/digits/1/manifest.json"
        assert refused(deploy.delete_object, Bucket=BUCKET, Key=key) in DENIED
        assert refused(deploy.put_object, Bucket=BUCKET, Key=key) in DENIED
        assert refused(deploy.delete_bucket, Bucket=BUCKET) in DENIED


@pytest.mark.parametrize("function", ["gateway", "monitoring"])
def test_these_hosts_are_refused_everything(store: Any, function: str) -> None:
    host = role("host/all.json.j2", f"host/{function}.json.j2")
    with enable_iam_authentication():
        assert refused(host("s3").get_object, Bucket=BUCKET, Key="models/a/1/b") in DENIED
        assert refused(host("ec2").describe_instances) in DENIED
        assert refused(host("secretsmanager").list_secrets) in DENIED
