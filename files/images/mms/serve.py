"""Start Multi Model Server for one model, in the foreground.

Serves MODEL_DIRECTORY/<MODEL_NAME>.mar as the model MODEL_NAME. This process becomes the server's:
the launcher that comes with it ignores SIGTERM when it is the first process of a container.

Environment: MODEL_NAME and MODEL_VERSION; MODEL_DIRECTORY (/models/<name>/<version>), WORKERS (1)
and JAVA_OPTIONS, which are added to those below, may be left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

CONFIG = Path(__file__).parent
# Bounded, so that what a container may use is known: the server only hands bodies to the workers.
JAVA_OPTIONS = (
    "-Xms32m",
    "-Xmx256m",
    "-Xss512k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:ReservedCodeCacheSize=32m",
    "-XX:MaxMetaspaceSize=96m",
    "-XX:MaxDirectMemorySize=64m",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
)


class StartError(Exception):
    """What is wrong and what to do about it."""


def archive(env: Mapping[str, str]) -> Path:
    """The model's archive, its checksum that of the manifest beside it. Raises StartError."""
    for name in ("MODEL_NAME", "MODEL_VERSION"):
        if not env.get(name):
            raise StartError(f"{name} must be set in the container's environment")
    model, version = env["MODEL_NAME"], env["MODEL_VERSION"]
    path = Path(env.get("MODEL_DIRECTORY") or f"/models/{model}/{version}") / f"{model}.mar"
    if not path.is_file():
        raise StartError(
            f"{path} does not exist; publish {model} version {version} with a {path.name}, "
            "which model-archiver writes, and mount the version's folder"
        )
    manifest = path.with_name("manifest.json")
    if manifest.is_file():
        expected = json.loads(manifest.read_bytes())["files"].get(path.name, {}).get("sha256")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise StartError(
                f"{path} has the sha256 {found}, {manifest} says {expected}: it was changed or "
                "damaged on this host. Remove the version's folder and deploy again"
            )
    return path


def command(env: Mapping[str, str], path: Path, home: Path, python: str) -> list[str]:
    """The server's command line. Raises StartError."""
    workers = env["WORKERS"]
    if not workers.isdecimal() or int(workers) < 1:
        raise StartError(f"WORKERS is {workers!r}; it must be a whole number of 1 or more")
    return [
        "java",
        *JAVA_OPTIONS,
        *env.get("JAVA_OPTIONS", "").split(),
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile=file://{CONFIG / 'log4j2.xml'}",
        "-cp",
        str(home / "mms" / "frontend" / "*"),
        "com.amazonaws.ml.mms.ModelServer",
        "--python",
        python,
        "-f",
        str(CONFIG / "config.properties"),
        "-s",
        str(path.parent),
        "-m",
        f"{env['MODEL_NAME']}={path.name}",
    ]


def main() -> int:
    env = {**os.environ, "WORKERS": os.environ.get("WORKERS") or "1"}
    package = find_spec("mms")
    if package is None or package.origin is None:
        print("error: multi-model-server is not installed beside this Python", file=sys.stderr)
        return 2
    home = Path(package.origin).parents[1]
    try:
        line = command(env, archive(env), home, sys.executable)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    os.execvpe(line[0], line, env)


if __name__ == "__main__":
    sys.exit(main())
