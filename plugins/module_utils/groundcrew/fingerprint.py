"""One digest over what makes a host behave as it does, with the parts kept, so that two hosts can be told apart in detail.

The parts are a flat mapping, such as::

    system                      Debian 12
    kernel                      6.8.0-1021-aws
    gpu/driver                  595.91
    gpu/cuda                    12.8 13.2
    ami/pytorch                 2.12.0
    conda/digits                77c3db68646f f081a2c33a86c7f0     lock, and content as found on the disk
    conda/digits/numpy          2.4.6 py311_0
    container/digits-1          127.0.0.1:5077/groundcrew/prediction_sklearn@sha256:…
    package/openssl             3.0.17-1~deb12u3
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from .conda import drift
from .conda.layout import Layout
from .system import installed_packages, os_release

# Parts that two hosts with the same environment must agree on wherever they are, also a laptop beside a server.
ENVIRONMENT_PARTS = "conda/"


def parts(conda_root: Path, filesystem: Path = Path("/")) -> dict[str, str]:
    """The parts of this host. ``filesystem`` is where to look for system files."""
    found = {"architecture": platform.machine(), "kernel": platform.release()}
    found.update(machine(filesystem))
    found.update(_conda(Layout(conda_root)))
    found.update(_containers())
    status = _read(filesystem / "var/lib/dpkg/status")
    found.update({f"package/{name}": v for name, v in installed_packages(status).items()})
    return found


def digest(of: Mapping[str, str]) -> str:
    """SHA-256 over the parts."""
    return hashlib.sha256(json.dumps(dict(of), sort_keys=True).encode()).hexdigest()


def environments(of: Mapping[str, str]) -> dict[str, str]:
    """Conda environment -> SHA-256 over its own parts, which nothing else on the host changes."""
    own: dict[str, dict[str, str]] = {}
    for part, value in of.items():
        if part.startswith(ENVIRONMENT_PARTS):
            own.setdefault(part.split("/")[1], {})[part] = value
    return {name: digest(parts) for name, parts in own.items()}


def machine(filesystem: Path = Path("/")) -> dict[str, str]:
    """What the machine image brings: system, GPU driver, CUDA, and a Conda or PyTorch of its own (Deep Learning AMIs)."""
    found = {}
    release = os_release(_read(filesystem / "etc/os-release"))
    if release:
        name = release.get("NAME", "").replace(" GNU/Linux", "")
        found["system"] = f"{name} {release.get('VERSION_ID', '')}".strip()
    driver = re.search(
        # "Kernel Module  535.183.01  …", and of the open modules "Open Kernel Module for x86_64  595.91  …"
        r"Kernel Module\b.*?\s(\d+\.[\d.]+)\s",
        _read(filesystem / "proc/driver/nvidia/version"),
    )
    if driver:
        found["gpu/driver"] = driver.group(1)
    cuda = sorted(
        (p.name[len("cuda-") :] for p in filesystem.glob("usr/local/cuda-*.*")), key=_numbers
    )
    if cuda:
        found["gpu/cuda"] = " ".join(cuda)
    for part, pattern in (
        ("ami/conda", "opt/conda/conda-meta/conda-[0-9]*.json"),
        ("ami/pytorch", "opt/pytorch/lib/python3.*/site-packages/torch-[0-9]*.dist-info"),
        (
            "ami/tensorflow",
            "opt/tensorflow/lib/python3.*/site-packages/tensorflow-[0-9]*.dist-info",
        ),
    ):
        versions = {m.group(1) for p in filesystem.glob(pattern) if (m := _VERSION.search(p.name))}
        if versions:
            found[part] = " ".join(sorted(versions, key=_numbers))
    return found


def differences(hosts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The parts in which hosts that should be the same are not: part -> host -> value ("" where it is missing)."""
    names = {name for of in hosts.values() for name in of}
    table = {name: {host: of.get(name, "") for host, of in hosts.items()} for name in names}
    return {name: row for name, row in sorted(table.items()) if len(set(row.values())) > 1}


def compare(
    hosts: Mapping[str, Mapping[str, str]], fleets: Mapping[str, Iterable[str]]
) -> list[dict[str, object]]:
    """Compare the hosts of each fleet in everything, and all hosts that have a Conda environment in that environment.

    Returns [{"group", "hosts", "differences": {part: {host: value}}}], also for groups without a difference. Groups of one host have
    nothing to differ from.
    """
    groups: list[tuple[str, list[str], str]] = [
        (f"fleet {fleet}", [h for h in members if h in hosts], "")
        for fleet, members in sorted(fleets.items())
    ]
    # With a slash at the end: digits is not digits_gpu.
    environments = sorted(
        {p.split("/")[1] for of in hosts.values() for p in of if p.startswith(ENVIRONMENT_PARTS)}
    )
    for name in environments:
        part = f"{ENVIRONMENT_PARTS}{name}"
        groups.append(
            (f"conda environment {name}", [h for h, of in hosts.items() if part in of], f"{part}/")
        )
    return [
        {
            "group": group,
            "hosts": sorted(members),
            "differences": differences(
                {
                    h: {k: v for k, v in hosts[h].items() if f"{k}/".startswith(only)}
                    for h in sorted(members)
                }
            ),
        }
        for group, members, only in groups
        if len(members) > 1
    ]


def table(comparison: Iterable[Mapping[str, object]], width: int = 44) -> list[str]:
    """A comparison as lines of text: one table for each group that differs, one line for each that does not."""
    text: list[str] = []
    for group in comparison:
        hosts, found = group["hosts"], group["differences"]
        assert isinstance(hosts, list) and isinstance(found, dict)
        if not found:
            text.append(f"{group['group']}: {len(hosts)} hosts are the same")
            continue
        text.append(f"{group['group']}: {len(found)} differences")
        rows = [["part", *hosts]]
        rows += [
            [part, *(_short(row[h] or "-", width) for h in hosts)] for part, row in found.items()
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        text += [
            "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows
        ]
    return text


_VERSION = re.compile(r"-(\d[\w.+]*?)(?:-[^-]*)?\.(?:json|dist-info)\Z")


def _short(value: str, width: int) -> str:
    return value if len(value) <= width else f"{value[: width - 13]}…{value[-12:]}"


def _numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _conda(layout: Layout) -> dict[str, str]:
    found = {}
    names = layout.declared()
    for name, report in zip(names, drift.scan_all(layout, names)):
        found[f"conda/{name}"] = f"{report['digest']} {str(report['fingerprint'])[:16]}"
        build = layout.current(name)
        if build is None or not layout.is_complete(build):
            continue
        packages = {
            n: " ".join(filter(None, (p["version"], p.get("build"))))
            for n, p in layout.record(build)["packages"].items()
        }
        for change in report["packages"]:
            packages[change["name"]] = f"{change['found'] or 'removed'} ({change['by']})"
        found.update({f"conda/{name}/{n}": version for n, version in packages.items()})
    return found


_CONTAINER = (
    '{{.Names}}\t{{.Label "groundcrew.service"}}\t{{.Label "groundcrew.part"}}\t{{.Image}}\t'
    '{{.Label "groundcrew.release"}}'
)


def _running() -> list[list[str]]:
    """What runs, a row of _CONTAINER each; nothing where there is no engine."""
    try:
        done = subprocess.run(
            ["docker", "ps", "--no-trunc", "--format", _CONTAINER],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 4]


def _containers() -> dict[str, str]:
    """Running containers and the images, by digest, that they were started from. A container's own name may differ from host to host; its
    service's does not."""
    return {
        f"container/{'/'.join(filter(None, (service, part))) or name}": image
        for name, service, part, image, _ in _running()
    }


def releases() -> dict[str, str]:
    """Running service -> its release, which stands for its map, contents and model version on this host."""
    return {service: release for _, service, part, _, release in _running() if service and not part}
