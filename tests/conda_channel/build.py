#!/usr/bin/env python3
"""Builds the local Conda channel of the tests: real packages, from hash-pinned wheels, the same bytes on every machine.

Usage: build.py [OUTPUT] [--wheels FOLDER]     does nothing, in well under a second, when nothing changed
       build.py --check-locks                  also solve *_local.yml beside this file; exit 1 when a lock differs
       build.py --write-locks                  also write their locks
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
WHEELS = HERE / "wheels.txt"
STAMP = "stamp.json"
PROCESSES = 2


def inputs_digest() -> str:
    """Tells whether a channel was made from these very inputs."""
    digest = hashlib.sha256(version("zstandard").encode())
    for path in (*sorted(HERE.glob("*.py")), WHEELS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(output: Path, digest: str) -> bool:
    try:
        stamp = json.loads((output / STAMP).read_text())
        sizes = {name: (output / name).stat().st_size for name in stamp["files"]}
    except (OSError, ValueError, KeyError):
        return False
    return stamp == {"inputs": digest, "files": sizes}


def pinned() -> dict[str, tuple[str, str]]:
    """Lines of wheels.txt: SHA-256 to name and name==version."""
    lines = [line.split() for line in WHEELS.read_text().splitlines() if line[:1] not in ("", "#")]
    return {
        h.partition("sha256:")[2]: (release.partition("==")[0], release) for release, h in lines
    }


def fetch(folder: Path) -> list[Path]:
    """The pinned wheels, downloaded into ``folder`` unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pinned()
    have = _by_digest(folder)
    missing = [
        (name, f"{release} --hash=sha256:{h}")
        for h, (name, release) in wanted.items()
        if h not in have
    ]
    # pip takes one version of a package at a time.
    groups: dict[str, list[str]] = {}
    for name, line in missing:
        groups.setdefault(name, []).append(line)
    for lines in zip_longest(*groups.values()):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.write("\n".join(filter(None, lines)))
            requirements.flush()
            _download(folder, requirements.name)
    have = _by_digest(folder)
    return [have[digest] for digest in wanted]


def _by_digest(folder: Path) -> dict[str, Path]:
    return {
        hashlib.sha256(path.read_bytes()).hexdigest(): path for path in sorted(folder.glob("*.whl"))
    }


def _download(folder: Path, requirements: str) -> None:
    # For CPython 3.11 on x86_64, whatever runs this program.
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "any")
    options = [
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--abi",
        "none",
    ]
    for platform in platforms:
        options += ["--platform", platform]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += [
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--dest",
        str(folder),
        *options,
        "-r",
        requirements,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"The wheels of {WHEELS} cannot be downloaded:\n{done.stderr.strip()}")


def build(output: Path, wheels: Path) -> None:
    """Write every package and the index below ``output``; the stamp comes last."""
    from rattler.index import index_fs

    files = sorted(fetch(wheels), key=lambda path: -path.stat().st_size)
    (output / STAMP).unlink(missing_ok=True)
    for directory in ("noarch", "linux-64"):
        (output / directory).mkdir(parents=True, exist_ok=True)
        for old in (output / directory).iterdir():
            old.unlink()
    names = frozenset(name for name, _ in pinned().values())
    with ProcessPoolExecutor(PROCESSES) as pool:
        packages = list(pool.map(_convert, files, [names] * len(files), [output] * len(files)))
    packages += _interpreters(output)
    asyncio.run(index_fs(output, write_zst=False, write_shards=False, force=True))
    sizes = {str(path.relative_to(output)): path.stat().st_size for path in sorted(packages)}
    stamp = {"inputs": inputs_digest(), "files": sizes}
    (output / STAMP).write_text(json.dumps(stamp, indent=1))


def _convert(wheel: Path, names: frozenset[str], output: Path) -> Path:
    from conda_package import write
    from wheel_package import package_of

    return write(package_of(wheel, names), output)


def _interpreters(output: Path) -> list[Path]:
    from conda_package import write
    from interpreters import CPYTHON, PYPY

    return [write(CPYTHON, output), write(PYPY, output)]


def check_locks(output: Path, write: bool) -> int:
    """Solve every spec beside this file; the number of locks that differ."""
    sys.path.insert(0, str(REPOSITORY / "plugins/module_utils"))
    from groundcrew.conda.solve import lock_file, specs, write_text

    differ = 0
    for name in specs(HERE):
        solution = lock_file(
            HERE, name, {"local": output.as_uri()}, ["linux-64"], {"__glibc": "2.35"}
        )
        path = HERE / f"{name}.lock"
        if path.exists() and path.read_text() == solution.text:
            print(f"{path.name}: equals a fresh solve")
            continue
        print(f"{path.name}: differs from a fresh solve", *solution.difference, sep="\n")
        differ += 1
        if write:
            write_text(path, solution.text)
    return differ


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("output", nargs="?", type=Path, default=REPOSITORY / ".cache/conda_channel")
    parser.add_argument("--wheels", type=Path, default=REPOSITORY / ".cache/wheels")
    parser.add_argument("--check-locks", action="store_true")
    parser.add_argument("--write-locks", action="store_true")
    options = parser.parse_args()
    output = Path(os.path.abspath(options.output))
    start = time.monotonic()
    if is_current(output, inputs_digest()):
        print(f"{output}: up to date")
    else:
        build(output, options.wheels)
        print(f"{output}: built in {time.monotonic() - start:.1f} s")
    if options.check_locks or options.write_locks:
        differ = check_locks(output, options.write_locks)
        if differ and not options.write_locks:
            raise SystemExit(
                "Review the difference, then run: tests/conda_channel/build.py --write-locks"
            )


if __name__ == "__main__":
    main()
    # py-rattler's threads may outlive what they use while the interpreter ends (a segmentation fault, after all was done).
    sys.stdout.flush()
    os._exit(0)
