from __future__ import annotations

import contextlib
import email.message
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from groundcrew import image_build
from groundcrew.errors import GroundcrewError
from groundcrew.image_build import Builder, Image, content_tag

IMAGE = Image("app", "images/app/Dockerfile", "base", inputs=("code", "one.txt"))
BASE = Image("base", "images/base/Dockerfile", "debian:bookworm")
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "images/app/Dockerfile": "FROM base",
        "images/app/requirements.txt": "x",
        "images/base/Dockerfile": "FROM debian",
        "code/a.py": "a",
        "code/deep/b.py": "b",
        "one.txt": "1",
        "elsewhere.txt": "0",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_tag_has_16_hexadecimal_digits_and_is_stable(root: Path) -> None:
    tag = content_tag(root, IMAGE, "p")
    assert len(tag) == 16 and int(tag, 16) >= 0
    assert content_tag(root, IMAGE, "p") == tag


@pytest.mark.parametrize(
    "path", ["images/app/Dockerfile", "images/app/requirements.txt", "code/deep/b.py", "one.txt"]
)
def test_every_input_changes_the_tag(root: Path, path: str) -> None:
    tag = content_tag(root, IMAGE, "p")
    (root / path).write_text("other")
    assert content_tag(root, IMAGE, "p") != tag


def test_new_renamed_and_executable_files_change_the_tag(root: Path) -> None:
    tags = [content_tag(root, IMAGE, "p")]
    (root / "code" / "new.py").write_text("")
    tags.append(content_tag(root, IMAGE, "p"))
    (root / "code" / "new.py").rename(root / "code" / "newer.py")
    tags.append(content_tag(root, IMAGE, "p"))
    (root / "code" / "newer.py").chmod(0o755)
    tags.append(content_tag(root, IMAGE, "p"))
    assert len(set(tags)) == len(tags)


def test_parent_and_target_change_the_tag(root: Path) -> None:
    other = Image("app", IMAGE.dockerfile, "base", target="small", inputs=IMAGE.inputs)
    tags = {
        content_tag(root, IMAGE, "p"),
        content_tag(root, IMAGE, "q"),
        content_tag(root, other, "p"),
    }
    assert len(tags) == 3


def test_what_goes_into_no_image_changes_nothing(root: Path) -> None:
    tag = content_tag(root, IMAGE, "p")
    (root / "elsewhere.txt").write_text("other")
    (root / "code" / "__pycache__").mkdir()
    (root / "code" / "__pycache__" / "a.cpython-311.pyc").write_text("x")
    assert content_tag(root, IMAGE, "p") == tag


def test_the_same_files_in_another_checkout_give_the_same_tag(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for file in [p for p in root.rglob("*") if p.is_file()]:
        target = copy / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert content_tag(copy, IMAGE, "p") == content_tag(root, IMAGE, "p")


def test_a_missing_input_is_named(root: Path) -> None:
    image = Image("app", IMAGE.dockerfile, "base", inputs=("gone",))
    with pytest.raises(GroundcrewError, match="image input 'gone' does not exist"):
        content_tag(root, image, "p")


def test_a_change_of_the_parent_reaches_the_child(root: Path) -> None:
    builder = Builder(root, [BASE, IMAGE])
    tag = builder.tag("app")
    (root / "images/base/Dockerfile").write_text("FROM debian # newer")
    assert builder.tag("app") != tag


class Registry(ThreadingHTTPServer):
    """Answers HEAD requests for manifests with what the test says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.manifests: dict[str, str] = {}
        self.status = 404
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_HEAD(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        digest = self.server.manifests.get(self.path)
        self.send_response(200 if digest else self.server.status)
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    # A proxy that does not exist: a registry on loopback must not be asked through it.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Registry() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def builder(root: Path, registry: Registry, **options: Any) -> Builder:
    address = registry.address + options.pop("path", "")
    return Builder(root, [BASE, IMAGE], registry=address, plain_http=True, **options)


def test_digest_of_a_tag_that_the_registry_has(root: Path, registry: Registry) -> None:
    asks = builder(root, registry, authorization="Basic eDp5")
    path = f"/v2/groundcrew/app/manifests/{asks.tag('app')}"
    assert asks.remote_digest("app") is None
    registry.manifests[path] = DIGEST
    assert asks.remote_digest("app") == DIGEST
    assert registry.asked == [(path, "Basic eDp5")] * 2


def test_registry_with_a_path(root: Path, registry: Registry) -> None:
    asks = builder(root, registry, path="/team")
    asks.remote_digest("app")
    assert registry.asked[0][0].startswith("/v2/team/groundcrew/app/manifests/")
    assert asks.remote("app").startswith(f"{registry.address}/team/groundcrew/app:")


@pytest.mark.parametrize("status", [401, 500])
def test_a_refusal_is_no_missing_image(root: Path, registry: Registry, status: int) -> None:
    registry.status = status
    with pytest.raises(GroundcrewError, match=f"answers {status}.*image_registry_push"):
        builder(root, registry).remote_digest("app")


def test_a_registry_that_is_down_is_named(root: Path, registry: Registry) -> None:
    asks = builder(root, registry)
    registry.shutdown()
    registry.server_close()
    with pytest.raises(GroundcrewError, match=f"{registry.address} does not answer"):
        asks.remote_digest("app")


class Docker:
    """What the command line of Docker would be asked, and what it would answer."""

    def __init__(self, have: set[str], fail: str = "") -> None:
        self.have, self.fail, self.calls = have, fail, list[tuple[str, ...]]()

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.calls.append(arguments)
        code = 0
        if arguments[0] == "image":
            code = 0 if arguments[-1] in self.have else 1
        elif arguments[0] == self.fail:
            code = 1
        elif arguments[0] == "build":
            self.have.add(arguments[arguments.index("--tag") + 1])
        return subprocess.CompletedProcess(arguments, code, "out\n", "it broke\n")


def test_parents_are_built_first_and_nothing_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Docker(set())
    monkeypatch.setattr(Builder, "_docker", staticmethod(docker))
    builds = Builder(root, [IMAGE, BASE])
    builds.build("app")
    assert builds.built == ["base", "app"]
    builds.build("app")
    assert builds.built == ["base", "app"]
    command = [call for call in docker.calls if call[0] == "build"][1]
    assert f"PARENT={builds.local('base')}" in command


class SlowDocker(Docker):
    """Builds take a moment, so that two who ask for one image at once meet."""

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if arguments[0] == "build":
            time.sleep(0.2)
        return super().__call__(*arguments)


def test_two_runs_at_once_build_an_image_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = SlowDocker(set())
    monkeypatch.setattr(Builder, "_docker", staticmethod(docker))
    runs = [Builder(root, [IMAGE, BASE]) for _ in range(2)]
    threads = [threading.Thread(target=run.each, args=(["app", "base"], run.build)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call[0] for call in docker.calls].count("build") == 2
    assert sorted(runs[0].built + runs[1].built) == ["app", "base"]


def test_of_several_images_the_one_that_fails_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "_docker", staticmethod(Docker(set(), fail="build")))
    builds = Builder(root, [IMAGE, BASE])
    with pytest.raises(GroundcrewError, match="'base' does not build"):
        builds.each(["app", "base"], builds.build)


def test_ca_bundle_is_a_secret_of_the_build_and_no_part_of_the_image(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Docker(set())
    monkeypatch.setattr(Builder, "_docker", staticmethod(docker))
    with_bundle = Builder(root, [IMAGE, BASE], ca_file="/etc/bundle.pem")
    with_bundle.build("app")
    commands = [call for call in docker.calls if call[0] == "build"]
    assert len(commands) == 2
    for command in commands:
        where = [index for index, word in enumerate(command) if "bundle.pem" in word]
        assert [command[i - 1 : i + 1] for i in where] == [
            ("--secret", "id=ca,src=/etc/bundle.pem")
        ]
    assert with_bundle.tag("app") == Builder(root, [IMAGE, BASE]).tag("app")


def test_without_a_ca_bundle_a_build_has_no_secret(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Docker(set())
    monkeypatch.setattr(Builder, "_docker", staticmethod(docker))
    Builder(root, [IMAGE, BASE]).build("app")
    assert "build" in [call[0] for call in docker.calls]
    assert not any("--secret" in call for call in docker.calls)


def test_an_image_that_the_registry_has_is_not_built(
    root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Docker(set())
    monkeypatch.setattr(Builder, "_docker", staticmethod(docker))
    builds = builder(root, registry)
    registry.manifests[f"/v2/groundcrew/app/manifests/{builds.tag('app')}"] = DIGEST
    assert builds.push("app") == DIGEST
    assert docker.calls == [] and builds.built == []


def test_a_failed_build_says_its_last_lines(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Builder, "_docker", staticmethod(Docker(set(), fail="build")))
    with pytest.raises(GroundcrewError, match="'base' does not build from images/base/Dockerfile"):
        Builder(root, [IMAGE, BASE]).build("app")


def test_a_push_that_the_registry_forgets_is_an_error(
    root: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "_docker", staticmethod(Docker(set())))
    with pytest.raises(GroundcrewError, match="lost image 'app' right after the push"):
        builder(root, registry).push("app")


ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
# What moto gives out: base64 of AWS:123456789012-auth-token.
TOKEN = "QVdTOjEyMzQ1Njc4OTAxMi1hdXRoLXRva2Vu"
PASSWORD = "123456789012-auth-token"
DOCKER = """#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >>asked
case $1 in
image) exit 1 ;;
login) cat >stdin; cat refusal >&2; exit $(cat status) ;;
push) touch "$(echo "$3" | sed 's,.*/groundcrew/,,; s,:.*,,').pushed" ;;
esac
"""


class Reply(NamedTuple):
    headers: dict[str, str]


class Ecr:
    """ECR as the controller meets it: its registry by HTTP, Docker as a program, and who asked AWS for a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.regions: list[str | None] = []
        self.sent: list[tuple[str, str | None]] = []
        self.docker = folder / "docker"
        self.docker.write_text(DOCKER)
        self.docker.chmod(0o755)
        self.login(0, "")

    def login(self, status: int, says: str) -> None:
        (self.folder / "status").write_text(f"{status}\n")
        (self.folder / "refusal").write_text(says)

    def asked(self, command: str) -> list[str]:
        """What Docker was asked, of one command."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [line for line in lines if line.split()[0] == command]

    def open(self, request: urllib.request.Request, timeout: float) -> Any:
        self.sent.append((request.full_url, request.get_header("Authorization")))
        # urllib sends these on, to whatever host a redirection names.
        assert "Authorization" not in request.headers
        name = request.full_url.split("/")[-3]
        if not (self.folder / f"{name}.pushed").exists():
            raise urllib.error.HTTPError(
                request.full_url, 404, "Not Found", email.message.Message(), None
            )
        return contextlib.nullcontext(Reply({"Docker-Content-Digest": DIGEST}))


@pytest.fixture
def ecr(
    aws: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Ecr:
    stand_in = Ecr(tmp_path_factory.mktemp("ecr"))
    client: Callable[..., Any] = boto3.client

    def counted(service: str, **options: Any) -> Any:
        stand_in.regions.append(options.get("region_name"))
        return client(service, **options)

    monkeypatch.setattr(boto3, "client", counted)
    monkeypatch.setattr(image_build, "DOCKER", str(stand_in.docker))
    monkeypatch.setattr(urllib.request, "build_opener", lambda *handlers: stand_in)
    return stand_in


def test_ecr_is_asked_with_a_token_of_its_region(root: Path, ecr: Ecr) -> None:
    asks = Builder(root, [BASE, IMAGE], registry=ECR)
    assert asks.remote_digest("app") is None and asks.remote_digest("base") is None
    assert ecr.sent[0] == (
        f"https://{ECR}/v2/groundcrew/app/manifests/{asks.tag('app')}",
        f"Basic {TOKEN}",
    )
    assert ecr.regions == ["eu-west-1"], "one token is enough for a run"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:5000", "ghcr.io", f"x{ECR}", f"{ECR}.example.org", "public.ecr.aws", ECR.replace("1", "", 1)],
)  # fmt: skip
def test_no_other_registry_gets_a_token(root: Path, ecr: Ecr, host: str) -> None:
    builds = Builder(root, [BASE, IMAGE], registry=f"{host}/team")
    builds.push("app")
    assert ecr.regions == [] and {header for _, header in ecr.sent} == {None}
    assert not ecr.asked("login") and ecr.asked("push")


def test_an_authorization_that_is_given_is_the_one_that_is_sent(root: Path, ecr: Ecr) -> None:
    Builder(root, [BASE, IMAGE], registry=ECR, authorization="Basic eDp5").remote_digest("app")
    assert ecr.sent[0][1] == "Basic eDp5" and ecr.regions == []


def test_docker_logs_in_to_ecr_once_before_the_first_push(root: Path, ecr: Ecr) -> None:
    builds = Builder(root, [BASE, IMAGE], registry=ECR)
    assert builds.each(["app", "base"], builds.push) == {"app": DIGEST, "base": DIGEST}
    assert ecr.asked("login") == [f"login --username AWS --password-stdin {ECR}"]
    assert (ecr.folder / "stdin").read_text() == PASSWORD
    lines = (ecr.folder / "asked").read_text()
    assert lines.index("\nlogin ") < lines.index("\npush ")
    assert PASSWORD not in lines and TOKEN not in lines
    assert ecr.regions == ["eu-west-1"]


def test_docker_is_not_logged_in_where_nothing_is_pushed(root: Path, ecr: Ecr) -> None:
    (ecr.folder / "app.pushed").touch()
    assert Builder(root, [BASE, IMAGE], registry=ECR).push("app") == DIGEST
    assert not (ecr.folder / "asked").exists()


def test_a_login_that_fails_is_named_without_its_token(root: Path, ecr: Ecr) -> None:
    ecr.login(1, f"denied: {PASSWORD} is too old")
    with pytest.raises(
        GroundcrewError, match=f"cannot log in to the registry {ECR}: denied: <token> is"
    ) as error:
        Builder(root, [BASE, IMAGE], registry=ECR).push("app")
    assert PASSWORD not in str(error.value) and not ecr.asked("push")


def test_a_credential_helper_of_ones_own_needs_no_login(root: Path, ecr: Ecr) -> None:
    ecr.login(1, "Error saving credentials: error storing credentials - err: exit status 1, out: `not implemented`")  # fmt: skip
    assert Builder(root, [BASE, IMAGE], registry=ECR).push("app") == DIGEST


def test_without_credentials_of_aws_the_error_says_what_is_missing(
    root: Path, ecr: Ecr, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(
        GroundcrewError, match=f"no login to the registry {ECR}: .*ecr:GetAuthorizationToken"
    ):
        Builder(root, [BASE, IMAGE], registry=ECR).push("app")
    assert ecr.sent == []
