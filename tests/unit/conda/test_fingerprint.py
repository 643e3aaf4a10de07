"""The fingerprint of a host: what its image brings, what differs between hosts, and how that is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conda_host import LIB, ONE, OTHER, TWO, Host
from groundcrew import fingerprint
from groundcrew.system import installed_packages, os_release

UBUNTU = 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\n# a comment\n'
DEBIAN = 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\n'
# Both forms of /proc/driver/nvidia/version: of the proprietary and of the open kernel modules.
DRIVER = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
OPEN_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.91  Release Build  (dvs)\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
)
STATUS = """\
Package: openssl
Status: install ok installed
Version: 3.0.17-1
Description: Secure Sockets Layer toolkit
 Version: not this one
 .

Package: gone
Status: deinstall ok config-files
Version: 1.0

Package: held
Status: hold ok installed
Version: 2.0

Package: half
Status: install ok half-configured
Version: 1.0

Package: libc6
Architecture: amd64
Status: install ok installed
Version: 2.36-9

Package: libc6
Architecture: i386
Status: install ok installed
Version: 2.36-8
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def test_a_deep_learning_ami_of_today_has_pytorch_and_cuda_and_no_conda(tmp_path: Path) -> None:
    site = "opt/pytorch/lib/python3.12/site-packages"
    files = {
        "etc/os-release": UBUNTU,
        "proc/driver/nvidia/version": OPEN_DRIVER,
        f"{site}/torch-2.12.0+cu130.dist-info/METADATA": "",
        f"{site}/torch_tensorrt-2.9.0.dist-info/METADATA": "",
        f"{site}/torch-model-archiver-0.12.0.dist-info/METADATA": "",
        **{f"usr/local/cuda-{v}/version.json": "" for v in ("13.2", "12.8", "12.10")},
        "usr/local/cuda-samples/x": "",
    }
    root = tree(tmp_path, files)
    (root / "usr/local/cuda").symlink_to("cuda-13.2")
    (root / "usr/local/cuda-13").symlink_to("cuda-13.2")
    assert fingerprint.machine(root) == {
        "system": "Ubuntu 24.04",
        "gpu/driver": "595.91",
        "gpu/cuda": "12.8 12.10 13.2",
        "ami/pytorch": "2.12.0+cu130",
    }


def test_an_old_deep_learning_ami_has_conda(tmp_path: Path) -> None:
    files = {
        "etc/os-release": UBUNTU.replace("24.04", "20.04"),
        "proc/driver/nvidia/version": DRIVER,
        "opt/conda/conda-meta/conda-4.12.0-py39h06a4308_0.json": "",
        "opt/conda/conda-meta/conda-package-handling-1.8.1-py39h7f8727e_0.json": "",
        "opt/conda/conda-meta/conda-content-trust-0.1.1-pyhd3eb1b0_0.json": "",
        "opt/tensorflow/lib/python3.10/site-packages/tensorflow-2.18.0.dist-info/METADATA": "",
        "opt/tensorflow/lib/python3.10/site-packages/tensorflow-text-2.18.1.dist-info/METADATA": "",
        "usr/local/cuda-11.8/version.json": "",
    }
    assert fingerprint.machine(tree(tmp_path, files)) == {
        "system": "Ubuntu 20.04",
        "gpu/driver": "535.183.01",
        "gpu/cuda": "11.8",
        "ami/conda": "4.12.0",
        "ami/tensorflow": "2.18.0",
    }


def test_a_plain_machine_has_neither(tmp_path: Path) -> None:
    assert fingerprint.machine(tree(tmp_path, {"etc/os-release": DEBIAN})) == {
        "system": "Debian 12"
    }
    assert fingerprint.machine(tmp_path / "empty") == {}


def test_os_release_takes_every_kind_of_quotes() -> None:
    assert os_release("A=1\nB='two words'\nC=\"x=y\"\n\n#D=4\nnonsense\n") == {
        "A": "1",
        "B": "two words",
        "C": "x=y",
    }


def test_installed_packages_are_those_that_are_installed() -> None:
    assert installed_packages(STATUS) == {
        "openssl": "3.0.17-1",
        "held": "2.0",
        "libc6": "2.36-9 2.36-8",
    }
    assert installed_packages("") == {}


def test_parts_of_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    host.ensure("a", ONE, OTHER)
    system = tree(tmp_path / "system", {"etc/os-release": DEBIAN, "var/lib/dpkg/status": STATUS})
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    # Name, service, part, image, release: a backend's own name is another one on every host.
    docker.write_text(
        "#!/bin/sh\nprintf '%s\\t%s\\t%s\\t%s\\t%s\\n'"
        " digits-1 digits-1 '' registry/x@sha256:12 r1 digits-1-5e0b0f digits-1 backend registry/y@sha256:34 r1"
        " probe '' '' registry/z@sha256:56 ''\n"
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(docker.parent), prepend=os.pathsep)
    before = fingerprint.parts(host.layout.root, system)
    assert before["system"] == "Debian 12" and before["package/openssl"] == "3.0.17-1"
    assert {part: image for part, image in before.items() if part.startswith("container/")} == {
        "container/digits-1": "registry/x@sha256:12",
        "container/digits-1/backend": "registry/y@sha256:34",
        "container/probe": "registry/z@sha256:56",
    }
    assert fingerprint.releases() == {"digits-1": "r1"}
    assert before["conda/a/one"] == "1.0 0" and before["conda/a/other"] == "1.0 0"
    assert {"architecture", "kernel"} <= before.keys()
    assert fingerprint.parts(host.layout.root, system) == before

    folder = host.file("a", LIB)
    folder.chmod(0o755)
    (folder / "one-1.1.dist-info").mkdir()
    for name, text in (("METADATA", "Name: one\n"), ("INSTALLER", "pip\n")):
        (folder / "one-1.1.dist-info" / name).write_text(text)
    after = fingerprint.parts(host.layout.root, system)
    changed = {part for part in before if before[part] != after[part]}
    assert changed == {"conda/a", "conda/a/one"} and after["conda/a/one"] == "1.1 (pip)"
    assert fingerprint.digest(before) != fingerprint.digest(after)
    host.layout.record_path(str(host.layout.current("a"))).unlink()
    assert fingerprint.parts(host.layout.root, system)["conda/a"] == "None None"


def test_a_host_without_docker_has_no_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not [p for p in fingerprint.parts(tmp_path, tmp_path) if p.startswith("container/")]


def test_environments_on_two_roots_have_one_fingerprint(tmp_path: Path) -> None:
    short, long = Host(tmp_path / "s"), Host(tmp_path / "a much longer name of a folder")
    for host in (short, long):
        host.ensure("a", ONE)
    assert fingerprint._conda(short.layout) == fingerprint._conda(long.layout)
    long.ensure("a", TWO)
    assert fingerprint._conda(short.layout) != fingerprint._conda(long.layout)


def test_an_environments_own_fingerprint_is_of_its_own_parts() -> None:
    parts = {"conda/a": "1 1", "conda/a/one": "1.0", "conda/ab": "2 2", "package/openssl": "3"}
    found = fingerprint.environments(parts)
    assert found.keys() == {"a", "ab"}
    assert (
        fingerprint.environments({**parts, "package/openssl": "4", "conda/ab": "3 3"})["a"]
        == (found["a"])
    )
    assert fingerprint.environments({**parts, "conda/a/one": "1.1"})["a"] != found["a"]


def test_the_digest_is_of_all_parts_in_any_order() -> None:
    assert fingerprint.digest({"a": "1", "b": "2"}) == fingerprint.digest({"b": "2", "a": "1"})
    assert fingerprint.digest({"a": "1"}) != fingerprint.digest({"a": "1", "b": ""})


def test_differences_are_the_parts_that_are_not_the_same_everywhere() -> None:
    hosts = {"h1": {"a": "1", "b": "1"}, "h2": {"a": "1", "b": "2", "c": "3"}}
    assert fingerprint.differences(hosts) == {
        "b": {"h1": "1", "h2": "2"},
        "c": {"h1": "", "h2": "3"},
    }
    assert fingerprint.differences({"h1": {"a": "1"}}) == {} == fingerprint.differences({})


def test_fleets_are_compared_in_everything_and_environments_wherever_they_are() -> None:
    hosts = {
        "p1": {"kernel": "1", "conda/digits": "x", "conda/digits/numpy": "2"},
        "p2": {"kernel": "2", "conda/digits": "x", "conda/digits/numpy": "2"},
        "laptop": {"kernel": "9", "conda/digits": "y", "conda/digits/numpy": "3"},
        "alone": {"kernel": "7"},
    }
    fleets = {"prediction": ["p2", "p1", "not reached"], "batch": ["alone"]}
    found = fingerprint.compare(hosts, fleets)
    assert [(g["group"], g["hosts"]) for g in found] == [
        ("fleet prediction", ["p1", "p2"]),
        ("conda environment digits", ["laptop", "p1", "p2"]),
    ]
    assert found[0]["differences"] == {"kernel": {"p1": "1", "p2": "2"}}
    differences = found[1]["differences"]
    assert isinstance(differences, dict)
    assert set(differences) == {"conda/digits", "conda/digits/numpy"}


def test_an_environment_is_not_another_whose_name_begins_with_its_own() -> None:
    same = {"conda/digits": "x", "conda/digits/numpy": "2"}
    hosts = {
        "h1": {**same, "conda/digits_gpu": "1", "conda/digits_gpu/numpy": "2"},
        "h2": {**same, "conda/digits_gpu": "2", "conda/digits_gpu/numpy": "3"},
    }
    found = {g["group"]: g["differences"] for g in fingerprint.compare(hosts, {})}
    assert found["conda environment digits"] == {}
    assert found["conda environment digits_gpu"]


def test_the_table_has_a_line_for_each_part_and_a_column_for_each_host() -> None:
    hosts = {
        "h1": {"kernel": "6.1", "container/web": "registry/web@sha256:" + "1" * 64},
        "h2": {"kernel": "6.10", "container/web": "registry/web@sha256:" + "2" * 64},
        "h3": {"kernel": "6.1"},
    }
    text = fingerprint.table(fingerprint.compare(hosts, {"a": hosts, "b": ["h1", "h1"]}))
    assert text[0] == "fleet a: 2 differences"
    assert text[1].split() == ["part", "h1", "h2", "h3"]
    assert text[2].split()[0] == "container/web" and text[2].split()[-1] == "-"
    assert "…111111111111" in text[2] and "…222222222222" in text[2] and "1" * 60 not in text[2]
    assert text[3].split() == ["kernel", "6.1", "6.10", "6.1"]
    assert len({line.index("6.1") for line in text[3:4]} | {text[1].index("h1")}) == 1
    assert text[4] == "fleet b: 2 hosts are the same"
