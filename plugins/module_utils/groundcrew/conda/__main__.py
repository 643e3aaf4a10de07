"""groundcrew-conda: environments on this host, for people and for cron.

Exit status: 0 all right, 1 an environment differs from its lock, 2 something could not be done (the message says what).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GroundcrewError
from . import drift
from .layout import Layout, read_json

if TYPE_CHECKING:
    from . import environments


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="groundcrew-conda", description="Conda environments that are what their locks say."
    )
    parser.add_argument("--root", type=Path, default=os.environ.get("GROUNDCREW_CONDA_ROOT"))
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="environments, their builds, and what a rollback goes to")
    check = commands.add_parser("drift", help="compare with the locks, every file by its content")
    check.add_argument("names", nargs="*", metavar="ENV")
    check.add_argument("--json", action="store_true")
    check.add_argument("--metrics", type=Path, metavar="FILE", help="also for node exporter")
    for name, text in (
        ("heal", "build anew from a verified cache, and switch to it"),
        ("rollback", "go back to the build that was in use before"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("names", nargs=1, metavar="ENV")
    commands.add_parser("prune", help="remove builds that nobody uses or may go back to")
    options = parser.parse_args(arguments)
    if options.root is None:
        parser.error("say where the environments are: --root or GROUNDCREW_CONDA_ROOT")
    # Absolute: builds have their path written into them.
    layout = Layout(Path(os.path.abspath(options.root)))
    try:
        return int(_COMMANDS[options.command](layout, options))
    except GroundcrewError as error:
        print(f"groundcrew-conda: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"groundcrew-conda: {error}. Run it with sudo.", file=sys.stderr)
        return 2


# `environments` brings what downloads and builds need, a tenth of a second of imports: the drift check does without.


def settings(layout: Layout) -> environments.Settings:
    """As the last deploy had them."""
    from . import environments

    kept = read_json(layout.settings) or {}
    return environments.Settings(**kept)


def _list(layout: Layout, _: Any) -> int:
    for name in layout.names():
        print(f"{name}  {layout.current(name)}  before: {layout.previous(name) or 'none'}")
    return 0


def _drift(layout: Layout, options: Any) -> int:
    reports = drift.scan_all(layout, options.names or layout.declared())
    if options.metrics:
        handle, temporary = tempfile.mkstemp(dir=options.metrics.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(drift.metrics(reports, time.time()))
        os.chmod(temporary, 0o644)
        os.replace(temporary, options.metrics)
    if options.json:
        print(json.dumps(reports, indent=2))
    else:
        print("\n".join(line for report in reports for line in drift.lines(report)))
    return int(not all(report["ok"] for report in reports))


def _heal(layout: Layout, options: Any) -> int:
    from . import environments

    (name,) = options.names
    lock = layout.lock_path(name)
    if not lock.exists():
        raise GroundcrewError(
            f"There is no lock of '{name}' here, only: {', '.join(layout.names())}."
        )
    done = environments.ensure(layout, name, lock.read_text(), settings(layout), heal=True)
    print(f"{name}: {done.before} -> {done.build}, {done.seconds} s")
    environments.prune(layout)
    return 0


def _rollback(layout: Layout, options: Any) -> int:
    from . import environments

    done = environments.rollback(layout, options.names[0])
    print(
        f"{done.name}: {done.before} -> {done.build}. The next deploy goes to its lock's build again."
    )
    return 0


def _prune(layout: Layout, _: Any) -> int:
    from . import environments

    removed = environments.prune(layout)
    print(f"removed: {', '.join(removed) or 'nothing'}")
    return 0


_COMMANDS = {
    "list": _list,
    "drift": _drift,
    "heal": _heal,
    "rollback": _rollback,
    "prune": _prune,
}


if __name__ == "__main__":
    sys.exit(main())
