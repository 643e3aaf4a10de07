#!/usr/bin/env python3
"""Conda environments from locks against pip and uv, with the same packages, in one run on this machine.

Usage: conda.py [REPETITIONS]     writes build/bench/conda.json with every figure, prints medians, ratios and the targets

Everything comes from folders of this machine, so nothing here measures a network: Groundcrew installs from the test channel
(file://), pip and uv from the wheels that the channel was made of (--no-index --find-links). Each figure is the wall time of
whole processes, their start included. The repetitions are interleaved, and the kernel has read every file before the first one.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE_UTILS = REPOSITORY / "plugins/module_utils"
CHANNEL = REPOSITORY / ".cache/conda_channel"
WHEELS = REPOSITORY / ".cache/wheels"
REPORT = REPOSITORY / "build/bench/conda.json"
sys.path.insert(0, str(MODULE_UTILS))

from groundcrew.conda import drift, environments, files  # noqa: E402
from groundcrew.conda.layout import Layout  # noqa: E402
from groundcrew.conda.lock import parse  # noqa: E402
from groundcrew.conda.solve import lock_file  # noqa: E402

PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas")
MORE = ("pyarrow", "boto3", "joblib", "certifi", "idna", "pip")
SCANNED = 20_000
UV = Path(sys.prefix) / "bin/uv"
INSTALL = """
import sys
from pathlib import Path
from groundcrew.conda import environments
from groundcrew.conda.layout import Layout
root, name, lock, address, action = sys.argv[1:]
settings = environments.Settings({"local": address})
done = environments.ensure(Layout(Path(root)), name, Path(lock).read_text(), settings)
assert done.action == action, done
"""


def locked(folder: Path, name: str, packages: tuple[str, ...]) -> Path:
    """A lock of these packages and Python 3.11, solved against the test channel."""
    dependencies = "".join(f"  - {package}\n" for package in ("python=3.11", *packages))
    (folder / f"{name}.yml").write_text(f"channels: [local]\ndependencies:\n{dependencies}")
    text = lock_file(
        folder, name, {"local": CHANNEL.as_uri()}, ["linux-64"], {"__glibc": "2.35"}
    ).text
    (folder / f"{name}.lock").write_text(text)
    return folder / f"{name}.lock"


def run(*command: str | Path, **environment: str | Path) -> None:
    variables = {**os.environ, **{key: str(value) for key, value in environment.items()}}
    done = subprocess.run(
        [str(word) for word in command],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = locked(folder, "same", PACKAGES)
        conda = parse("same", self.lock.read_text()).platform("linux-64").conda
        # What pip and uv install: the same releases.
        self.requirements = [f"{p.name}=={p.version}" for p in conda if p.name != "python"]
        self.root = folder / "conda"
        self.uv_cache = folder / "uv_cache"
        self.number = 0

    def fresh(self, name: str) -> Path:
        self.number += 1
        return self.folder / f"{name}{self.number}"

    def ensure(self, root: Path, name: str, action: str) -> None:
        run(
            *(sys.executable, "-c", INSTALL, root, name, self.lock, CHANNEL.as_uri(), action),
            PYTHONPATH=MODULE_UTILS,
        )

    # Each returns what is to be removed when the clock has stopped.

    def conda_first(self) -> Path:
        root = self.fresh("root")
        self.ensure(root, "one", "built")
        return root

    def conda_second(self) -> str:
        self.number += 1
        name = f"second{self.number}"
        self.ensure(self.root, name, "built")
        return name

    def conda_unchanged(self) -> None:
        self.ensure(self.root, "one", "same")

    def conda_drift(self) -> None:
        run(
            *(sys.executable, "-m", "groundcrew.conda", "--root", self.folder / "scanned", "drift"),
            PYTHONPATH=MODULE_UTILS,
        )

    def pip(self, *options: str) -> Path:
        venv = self.fresh("venv")
        run(sys.executable, "-m", "venv", venv)
        sources = ("--no-index", "--find-links", WHEELS)
        quiet = ("--quiet", "--disable-pip-version-check", *options)
        run(venv / "bin/python", "-m", "pip", "install", *quiet, *sources, *self.requirements)
        return venv

    def pip_without_bytecode(self) -> Path:
        return self.pip("--no-compile")

    def uv(self, cache: Path | None = None) -> list[Path]:
        venv = self.fresh("venv")
        cold = self.fresh("cache")
        variables = {"UV_CACHE_DIR": cache or cold, "UV_NO_CONFIG": "1", "UV_OFFLINE": "1"}
        run(UV, "venv", "--quiet", "--python", sys.executable, venv, **variables)
        sources = ("--no-index", "--find-links", WHEELS)
        command = (UV, "pip", "install", "--quiet", "--python", venv / "bin/python")
        run(*command, *sources, *self.requirements, **variables)
        return [venv, cold]

    def uv_warm(self) -> list[Path]:
        return self.uv(self.uv_cache)

    def prepare(self) -> int:
        """Warm caches, and enough files to scan; returns their number.

        An environment of every package of the channel, linked into the cache, so that the cache is compared too; then copies (no
        shared inodes) of the one that is installed above, until there are enough. All of them are files of real wheels.
        """
        self.ensure(self.root, "one", "built")
        self.uv_warm()
        layout = Layout(self.folder / "scanned")
        everything = locked(self.folder, "everything", PACKAGES + MORE).read_text()
        scanned, count = 0, 0
        while scanned < SCANNED:
            settings = environments.Settings({"local": CHANNEL.as_uri()}, hard_links=count == 0)
            text = everything if count == 0 else self.lock.read_text()
            done = environments.ensure(layout, f"scanned{count}", text, settings)
            scanned += sum(1 for _ in files.walk(layout.build(done.build)))
            count += 1
        reports = drift.scan_all(layout, layout.names())
        assert all(report["ok"] for report in reports)
        return sum(report["scanned"] for report in reports)

    def tidy(self, made: object) -> None:
        for path in made if isinstance(made, list) else [made]:
            if isinstance(path, Path):
                files.remove_tree(path)
            elif isinstance(path, str):
                layout = Layout(self.root)
                environments.remove(layout, path)
                environments.prune(layout)


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("The wheels are for Python 3.11: set .venv up with it (./setup.sh dev).")
    run(sys.executable, REPOSITORY / "tests/conda_channel/build.py")
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=REPOSITORY / ".cache"))
    try:
        bench = Bench(folder)
        scanned = bench.prepare()
        measured: dict[str, Callable[[], object]] = {
            "first install, cold cache": bench.conda_first,
            "second environment, warm cache": bench.conda_second,
            "unchanged check": bench.conda_unchanged,
            f"drift scan of {scanned} files": bench.conda_drift,
            "venv + pip": bench.pip,
            "venv + pip --no-compile": bench.pip_without_bytecode,
            "uv, cold cache": bench.uv,
            "uv, warm cache": bench.uv_warm,
        }
        seconds: dict[str, list[float]] = {name: [] for name in measured}
        processor: dict[str, list[float]] = {name: [] for name in measured}
        for number in range(repetitions):
            for name, work in measured.items():
                start, used = time.monotonic(), processor_seconds()
                made = work()
                seconds[name].append(round(time.monotonic() - start, 3))
                processor[name].append(round(processor_seconds() - used, 3))
                bench.tidy(made)
                print(f"{number + 1}/{repetitions}  {name}: {seconds[name][-1]:.2f} s", flush=True)
    finally:
        files.remove_tree(folder)
        shutil.rmtree(folder, ignore_errors=True)
    report(seconds, processor, scanned, bench.requirements)


def processor_seconds() -> float:
    """Of all programs that were run; on a busy machine the wall time says more about its neighbours."""
    used = os.times()
    return used.children_user + used.children_system


def report(
    seconds: dict[str, list[float]],
    processor: dict[str, list[float]],
    scanned: int,
    requirements: list[str],
) -> None:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    first, second = median["first install, cold cache"], median["second environment, warm cache"]
    pip, uv = median["venv + pip"], median["uv, warm cache"]
    ratios = {
        "first install / venv + pip": first / pip,
        "first install / uv, cold cache": first / median["uv, cold cache"],
        "first install / uv, warm cache": first / uv,
        "second environment / venv + pip": second / pip,
        "second environment / venv + pip --no-compile": second / median["venv + pip --no-compile"],
        "second environment / uv, warm cache": second / uv,
    }
    scan = median[f"drift scan of {scanned} files"]
    targets = [
        ("second environment: at most 2 s", second, second <= 2),
        ("second environment: at most half of venv + pip", second / pip, second / pip <= 0.5),
        (
            "unchanged check: at most 0.5 s",
            median["unchanged check"],
            median["unchanged check"] <= 0.5,
        ),
        (f"drift scan of {scanned} files: at most 2 s", scan, scan <= 2),
    ]
    programs = {
        "pip": [sys.executable, "-m", "pip", "--version"],
        "uv": [str(UV), "--version"],
    }
    versions = {
        name: subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for name, command in programs.items()
    }
    document = {
        "ok": all(met for *_, met in targets),
        "checks": [{"name": n, "ok": met, "detail": f"{v:.2f}"} for n, v, met in targets],
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {**versions, "python": sys.version.split()[0]},
        "packages": requirements,
        "scanned_files": scanned,
        "seconds": seconds,
        "processor_seconds": processor,
        "medians": median,
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{versions['pip']}\n{versions['uv']}\n{', '.join(requirements)}\n")
    print(f"{'median':>9}  fastest  slowest  processor")
    for name, values in seconds.items():
        print(
            f"{median[name]:7.2f} s  {min(values):7.2f}  {max(values):7.2f}  {statistics.median(processor[name]):9.2f}  {name}"
        )
    print("\n    ratio")
    for name, value in ratios.items():
        print(f"{value:9.2f}  {name}")
    print("\ntargets")
    for name, value, met in targets:
        print(f"{value:9.2f}  {'met    ' if met else 'NOT MET'}  {name}")
    print(
        f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; every figure: {REPORT}"
    )


if __name__ == "__main__":
    main()
