"""Bytecode for the modules whose packages bring none: compiled once a package, shared by all builds.

Nobody may write into a finished build, so what is not compiled when it is made is compiled again at each start of a program, which
costs `import sklearn` seconds. Conda packages for one platform bring their bytecode; those for any platform, and pip's, do not.
The bytecode is not compared with its source when it is loaded (PEP 552, unchecked): what a build holds is decided when it is made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import GroundcrewError
from . import files
from .layout import Layout, read_json, write_json

_DIGESTS = "digests.json"


def add(
    layout: Layout, prefix: Path, modules: Mapping[str, Sequence[str]], hard_links: bool
) -> dict[str, str]:
    """Compile what is not compiled; returns the SHA-256 of what came from the cache, by path.

    ``modules`` are the .py files by the sha256 of their package, "" for those that no cache knows.

    What Python cannot compile (files for another version, templates) stays without, as pip leaves it.
    """
    python = prefix / "bin/python"
    if not python.exists() or not any(modules.values()):
        return {}
    tag = subprocess.run(
        [str(python), "-I", "-c", "import sys; print(sys.implementation.cache_tag)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    def compiled(module: str) -> str:
        folder, name = os.path.split(module)
        return os.path.join(folder, "__pycache__", f"{name[:-3]}.{tag}.pyc")

    place: Callable[[str, str], object] = os.link if hard_links else shutil.copyfile
    known: dict[str, str] = {}
    new: dict[str, list[str]] = {}
    for sha256, paths in modules.items():
        store = layout.bytecode / f"{sha256}-{tag}"
        kept = _kept(store) if sha256 else None
        if kept is None:
            new[sha256] = [m for m in paths if not (prefix / compiled(m)).exists()]
            continue
        for folder in {os.path.dirname(path) for path in kept}:
            os.makedirs(f"{prefix}/{folder}", exist_ok=True)
        for path in kept:
            place(f"{store}/{path}", f"{prefix}/{path}")
        known.update(kept)
    if not any(new.values()):
        return known
    _compile(python, [str(prefix / module) for paths in new.values() for module in paths])
    for sha256, paths in new.items():
        if sha256:
            _store(layout.bytecode / f"{sha256}-{tag}", prefix, map(compiled, paths), place)
    return known


def _compile(python: Path, modules: Sequence[str]) -> None:
    """By as many processes as there are processors: compileall's own workers are for folders only."""
    workers = min(os.cpu_count() or 1, 8)
    # Isolated: PYTHONPYCACHEPREFIX of whoever runs this would put the bytecode elsewhere.
    command = ["nice", str(python), "-I", "-m", "compileall", "-q"]
    command += ["--invalidation-mode", "unchecked-hash", "-i", "-"]
    running = []
    for number in range(workers):
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        running.append((process, "\n".join(m for m in modules[number::workers] if "\n" not in m)))
    for process, names in running:
        assert process.stdin is not None
        process.stdin.write(names)
        process.stdin.close()
    for process, _ in running:
        process.wait()


def _kept(store: Path) -> dict[str, str] | None:
    """Path and SHA-256 of a package's bytecode as it was kept.

    None when it is not there, or somebody changed it in an environment that shares it.
    """
    try:
        digests = read_json(store / _DIGESTS)
    except GroundcrewError:
        digests = None
    if digests is not None:
        found = files.sha256_of_many([(f"{store}/{path}", 0) for path in digests])
        if found == list(digests.values()):
            return digests
    files.remove_tree(store)
    return None


def _store(
    store: Path, prefix: Path, compiled: Iterable[str], place: Callable[[str, str], object]
) -> None:
    """Keep a package's bytecode for the next builds; the folder is whole or not there."""
    temporary = store.with_name(f".{store.name}.{os.getpid()}.part")
    files.remove_tree(temporary)
    temporary.mkdir(parents=True)
    digests = {}
    for path in compiled:
        if (prefix / path).exists():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            place(f"{prefix}/{path}", f"{temporary}/{path}")
            digests[path] = files.sha256(f"{prefix}/{path}")
    write_json(temporary / _DIGESTS, digests)
    os.replace(temporary, store)
