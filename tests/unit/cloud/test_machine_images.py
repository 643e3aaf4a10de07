"""Pins of machine images: the logic, and the playbook against a stand-in of Systems Manager and EC2."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from groundcrew import machine_images
from groundcrew.errors import GroundcrewError
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).resolve().parents[3]
# Images that moto knows. Only /aws/service/… parameters of its own can exist there, so these have other paths.
OLD, NEW, GPU = "ami-1e749f67", "ami-785db401", "ami-dca37ea5"
SOURCES: dict[str, dict[str, Any]] = {
    "ubuntu": {"parameter": "/mlops/ami/ubuntu", "support_end": "2029-04-30"},
    "dlami_base": {"parameter": "/mlops/ami/dlami", "support_end": datetime.date(2029, 4, 30)},
    "ubuntu_arm64": {"parameter": "/mlops/ami/arm64", "support_end": "2029-04-30"},
}
FLEETS: dict[str, dict[str, Any]] = {
    "gateway": {"instance_type": "c7i.large"},
    "prediction": {"instance_type": "c7i.xlarge", "machine_image": "ubuntu"},
    "training": {"instance_type": "g6.xlarge", "machine_image": "dlami_base"},
}


def pin(date: str = "2026-01-01", support_end: str = "2029-04-30") -> dict[str, str]:
    return {"id": OLD, "name": "an image", "date": date, "support_end": support_end}


def test_only_what_the_fleets_use_is_wanted() -> None:
    assert machine_images.wanted(FLEETS, SOURCES) == ["dlami_base", "ubuntu"]
    assert machine_images.wanted(FLEETS, SOURCES, only="ubuntu") == ["ubuntu"]


@pytest.mark.parametrize(
    ("fleets", "sources", "only", "words"),
    [
        (
            {"training": {"machine_image": "dlami"}},
            SOURCES,
            "",
            "Fleet training has machine_image: dlami, .*Known are dlami_base, ubuntu, ubuntu_arm64.*vars/fleet.yml",
        ),
        (FLEETS, SOURCES, "debian", "machine_image is debian.*Known are dlami_base, ubuntu"),
        (
            FLEETS,
            SOURCES,
            "ubuntu_arm64",
            "which no fleet uses. Used are dlami_base, ubuntu. Write machine_image: ubuntu_arm64",
        ),
        (FLEETS, {}, "", "machine_image_sources is empty"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    fleets: Any, sources: Any, only: str, words: str
) -> None:
    with pytest.raises(GroundcrewError, match=words):
        machine_images.wanted(fleets, sources, only, "vars")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"support_end": "2029-04-30"}, "mine lacks parameter"),
        ({"parameter": "/a"}, "mine lacks support_end"),
        ({"parameter": "/a", "support_end": "April 2029"}, "support_end of mine is 'April 2029'"),
    ],
)
def test_half_a_source_is_refused(source: dict[str, str], words: str) -> None:
    with pytest.raises(GroundcrewError, match=words):
        machine_images.parameters(["mine"], {"mine": source})


@pytest.mark.parametrize(
    ("path", "below"),
    [
        (
            "/aws/service/deeplearning/ami/x86_64/base-ubuntu-24.04/latest/ami-id",
            "/aws/service/deeplearning/ami/x86_64",
        ),
        (
            "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
            "/aws/service/canonical/ubuntu/server",
        ),
        ("/mlops/ami/ubuntu", "/mlops/ami"),
    ],
)
def test_a_parameter_that_does_not_exist_comes_with_how_to_list_them(path: str, below: str) -> None:
    with pytest.raises(GroundcrewError) as raised:
        machine_images.ids(["/there", path], [OLD, None], "eu-west-1")
    assert f"no parameter {path} in eu-west-1" in str(raised.value)
    assert "aws ssm get-parameters-by-path" in str(raised.value)
    assert f"--path {below} " in str(raised.value)


def test_a_parameter_that_holds_something_else_is_refused() -> None:
    with pytest.raises(GroundcrewError, match="Parameter /ecs holds .*which is no AMI id"):
        machine_images.ids(["/ecs"], ['{"image_id": "ami-1e749f67"}'], "us-east-1")


def test_pins_are_what_ec2_says_and_the_others_are_kept() -> None:
    images = [{"image_id": NEW, "name": "noble", "creation_date": "2026-08-01T10:20:30.000Z"}]
    kept = {"ubuntu": pin(), "dlami_base": pin("2025-01-01")}
    pinned = machine_images.pins(["ubuntu"], [NEW], images, SOURCES, kept)
    assert pinned == {
        "dlami_base": pin("2025-01-01"),
        "ubuntu": {"id": NEW, "name": "noble", "date": "2026-08-01", "support_end": "2029-04-30"},
    }
    with pytest.raises(GroundcrewError, match=f"EC2 does not show {OLD}, to which /mlops/ami/dl"):
        machine_images.pins(["dlami_base"], [OLD], images, SOURCES, {})


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True).filter(
            # Words that YAML reads as something else are no names of images.
            lambda name: isinstance(yaml.safe_load(name), str)
        ),
        st.builds(
            lambda name, date: {**pin(str(date)), "name": name},
            # EC2 allows less: letters, digits, spaces and ()[]./-'@_
            st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=128),
            st.dates(),
        ),
        max_size=4,
    )
)
def test_the_file_reads_as_what_was_pinned(pins: dict[str, dict[str, str]]) -> None:
    text = machine_images.render(pins, "prod")
    assert yaml.safe_load(text) == {"machine_images": pins}
    assert "ansible-playbook playbooks/pin_ami.yml -l prod" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("date", "support_end", "words"),
    [
        ("2026-08-01", "2029-04-30", []),
        ("2026-07-03", "2029-04-30", []),  # 60 days
        ("2026-07-02", "2029-04-30", ["ami-1e749f67.* is 61 days old.* -l prod$"]),
        ("2026-08-01", "2026-11-01", []),  # 61 days
        ("2026-08-01", "2026-10-31", ["support ends in 60 days, on 2026-10-31.* -l prod$"]),
        ("2026-08-01", "2026-09-01", ["support ends in 0 days"]),
        ("2026-08-01", "2026-08-31", ["support ended 1 days ago, on 2026-08-31.*machine_image"]),
        ("2020-01-01", "2025-01-01", ["days old", "support ended"]),
    ],
)
@pytest.mark.parametrize(
    "today", ["2026-09-01", "2026-09-01T23:59:59Z", datetime.datetime(2026, 9, 1, 12)]
)
def test_old_pins_and_ended_support_are_named(
    date: str, support_end: str, words: list[str], today: Any
) -> None:
    lines = machine_images.warnings({"ubuntu": pin(date, support_end)}, today, "prod")
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert re.search(word, line) and line.startswith("Machine image ubuntu (ami-1e749f67)")


def test_a_pin_without_a_date_is_refused_by_name() -> None:
    with pytest.raises(GroundcrewError, match="date of ubuntu is None"):
        machine_images.warnings({"ubuntu": {"id": OLD}}, "2026-09-01")
    assert machine_images.warnings({}, "2026-09-01") == []


def test_every_environment_of_a_real_account_names_sources_that_exist() -> None:
    shared = ROOT / "inventories/shared/group_vars/aws/machine_images.yml"
    sources = yaml.safe_load(shared.read_text())["machine_image_sources"]
    machine_images.parameters(sources, sources)
    for environment in ("staging", "prod"):
        folder = ROOT / f"inventories/{environment}/group_vars/{environment}"
        fleets = yaml.safe_load((folder / "fleet.yml").read_text())["fleets"]
        assert machine_images.wanted(fleets, sources)


# ---- the playbook ----


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an AWS stand-in."""
    for name in ("AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_URL", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def put(cloud: str) -> Iterator[Callable[[str, str], None]]:
    """Sets a parameter of Systems Manager; it is gone afterwards, moto keeps one account in a process."""
    import boto3

    client = boto3.client("ssm", "us-east-1", endpoint_url=cloud, aws_access_key_id="testing", aws_secret_access_key="testing")  # fmt: skip
    names: set[str] = set()

    def set_parameter(name: str, value: str) -> None:
        client.put_parameter(Name=name, Value=value, Type="String", Overwrite=True)
        names.add(name)

    yield set_parameter
    if names:
        client.delete_parameters(Names=sorted(names))


class Trial:
    """A checkout with one environment, `trial`, below the groups of this repository."""

    def __init__(self, root: Path, cloud: str) -> None:
        self.root = root
        self.folder = root / "inventories/trial/group_vars/trial"
        self.pins = self.folder / "machine_images.yml"
        self.folder.mkdir(parents=True)
        shutil.copytree(ROOT / "inventories/shared", root / "inventories/shared")
        (root / "inventories/trial/hosts.yml").write_text(
            "trial:\n  children:\n    trial_training: {hosts: {trial-1: {private_address: 10.9.0.1}}}\n"
            "aws: {children: {trial: {}}}\ntraining: {children: {trial_training: {}}}\n"
        )
        self.declare(
            environment_name="trial",
            aws_region="us-east-1",
            aws_endpoint_url=cloud,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            fleets=FLEETS,
            machine_image_sources=SOURCES,
        )

    def declare(self, **variables: Any) -> None:
        file = self.folder / "fleet.yml"
        before = yaml.safe_load(file.read_text()) if file.exists() else {}
        file.write_text(yaml.safe_dump({**before, **variables}))

    def run(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                "playbooks/pin_ami.yml",
                f"--inventory={self.root}/inventories/shared",
                f"--inventory={self.root}/inventories/trial",
                "--limit=trial",
                *arguments,
            ],
            cwd=ROOT,
            env={**os.environ, "GROUNDCREW_ROOT": str(self.root), "ANSIBLE_NOCOLOR": "true"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        return output

    def pinned(self) -> dict[str, dict[str, str]]:
        return dict(yaml.safe_load(self.pins.read_text())["machine_images"])


@pytest.fixture
def trial(tmp_path: Path, cloud: str) -> Trial:
    return Trial(tmp_path, cloud)


def test_the_playbook_pins_shows_keeps_and_renews(
    trial: Trial, put: Callable[[str, str], None]
) -> None:
    put("/mlops/ami/ubuntu", OLD)
    put("/mlops/ami/dlami", GPU)

    output = trial.run("--check")
    assert "changed=1" in output and f"+    id: {OLD}" in output
    assert not trial.pins.exists(), "check mode writes nothing"

    trial.run()
    pinned = trial.pinned()
    assert sorted(pinned) == ["dlami_base", "ubuntu"], "no fleet uses ubuntu_arm64"
    assert pinned["ubuntu"]["id"] == OLD and pinned["dlami_base"]["id"] == GPU
    assert pinned["ubuntu"]["name"].startswith("ubuntu/images/hvm-ssd/ubuntu-trusty-14.04")
    assert pinned["dlami_base"]["name"] == "Deep Learning AMI Ubuntu Linux - 2.4_Oct2017"
    assert pinned["dlami_base"]["support_end"] == "2029-04-30"
    assert datetime.date.fromisoformat(pinned["ubuntu"]["date"])
    text = trial.pins.read_text()
    assert text.startswith("# Generated by: ansible-playbook playbooks/pin_ami.yml -l trial\n")
    assert max(map(len, text.splitlines())) <= 140

    assert "changed=0" in trial.run()

    put("/mlops/ami/ubuntu", NEW)
    put("/mlops/ami/dlami", NEW)
    output = trial.run("--extra-vars=machine_image=ubuntu")
    assert f"-    id: {OLD}" in output and f"+    id: {NEW}" in output and GPU not in output
    assert (trial.pinned()["ubuntu"]["id"], trial.pinned()["dlami_base"]) == (
        NEW,
        pinned["dlami_base"],
    )

    # A fleet that starts from something else now: the pin that nobody needs any more goes.
    trial.declare(fleets={"training": {"machine_image": "ubuntu"}})
    trial.run()
    assert sorted(trial.pinned()) == ["ubuntu"]


def test_the_playbook_says_what_is_wrong(trial: Trial, put: Callable[[str, str], None]) -> None:
    def refusal(*arguments: str) -> str:
        return " ".join(trial.run(*arguments, fails=True).split())

    put("/mlops/ami/ubuntu", OLD)
    output = refusal()
    assert "Systems Manager has no parameter /mlops/ami/dlami in us-east-1" in output
    assert "aws ssm get-parameters-by-path --recursive --region us-east-1 --path /mlops/ami" in output  # fmt: skip

    output = refusal("--extra-vars=machine_image=ubunto")
    assert "Known are dlami_base, ubuntu, ubuntu_arm64." in output

    put("/mlops/ami/dlami", "ami-00000000000000000")
    assert "ami-00000000000000000" in refusal()

    trial.declare(machine_image_sources={})
    assert "machine_image_sources is empty" in refusal()
    assert not trial.pins.exists()
