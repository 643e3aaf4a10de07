"""Chromium for the tests of the page, and what they are run against: a running fleet, or an application with stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

REPOSITORY = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox",  # the tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
for folder in ("plugins/module_utils", "tests/browser"):
    if str(REPOSITORY / folder) not in sys.path:
        sys.path.insert(0, str(REPOSITORY / folder))


def program(name: str, package: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is not installed; apt-get install {package}"
    return path


@pytest.fixture(scope="session")
def access() -> dict[str, Any]:
    """What `make deploy` wrote about the fleet; GROUNDCREW_ACCESS names another file."""
    path = Path(os.environ.get("GROUNDCREW_ACCESS", REPOSITORY / "build/local/access.json"))
    assert path.is_file(), f"{path} does not exist; run make deploy, or set GROUNDCREW_ACCESS"
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


def chromium(playwright: Playwright, home: Path) -> Browser:
    return playwright.chromium.launch(
        executable_path=program("chromium", "chromium"),
        args=ARGUMENTS,
        env={**os.environ, "HOME": str(home)},
    )


@pytest.fixture(scope="session")
def browser(
    access: dict[str, Any], playwright: Playwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium with a home of its own, in whose certificate store is the fleet's authority."""
    home = tmp_path_factory.mktemp("home")
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    certutil = [program("certutil", "libnss3-tools"), "-d", f"sql:{database}"]
    subprocess.run([*certutil, "-N", "--empty-password"], check=True)
    trust = ["-A", "-n", "fleet", "-t", "C,,", "-i", access["ca_file"]]
    subprocess.run([*certutil, *trust], check=True)
    started = chromium(playwright, home)
    yield started
    started.close()


@pytest.fixture(scope="session")
def plain_browser(
    playwright: Playwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium without a fleet."""
    started = chromium(playwright, tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of the page go; GROUNDCREW_SCREENSHOTS names another folder."""
    folder = Path(os.environ.get("GROUNDCREW_SCREENSHOTS", REPOSITORY / "build/test"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
