"""Container images named by what goes into them.

The tag of an image is a hash over its Dockerfile, its inputs and its parent's tag. An image whose tag the registry
already knows is not built again, by this machine or a colleague's; one request per image tells its digest.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .errors import GroundcrewError

DOCKER = "/usr/bin/docker"  # the distribution's: another client earlier on PATH may lack BuildKit
MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json"
)
_AT_A_TIME = 4
# Amazon ECR User Guide, "Private registry": the host names an account and a region.
_ECR = re.compile(r"\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?")


@dataclass(frozen=True)
class Image:
    """One image to build. Paths are relative to the repository."""

    name: str
    dockerfile: str
    parent: str  # another image's name, or a reference that exists
    context: str = "."
    target: str = ""
    tools: tuple[str, ...] = field(default=())  # images that its Dockerfile mounts while it builds
    inputs: tuple[str, ...] = field(
        default=()
    )  # files and folders besides the Dockerfile's own folder


def files_below(root: Path, path: str) -> list[Path]:
    """Every file at or below ``path``, sorted, without what no image wants (caches)."""
    start = root / path
    if start.is_file():
        return [start]
    if not start.is_dir():
        raise GroundcrewError(
            f"image input '{path}' does not exist below {root}. Correct `inputs` of the image."
        )
    return sorted(
        p
        for p in start.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc"
    )


def content_tag(root: Path, image: Image, parent_tag: str) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over everything that goes into the image."""
    digest = hashlib.sha256(json.dumps([image.target, parent_tag]).encode())
    for path in [str(Path(image.dockerfile).parent), *image.inputs]:
        for file in files_below(root, path):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            executable = os.access(file, os.X_OK)
            digest.update(f"{file.relative_to(root)} {executable} {content}\n".encode())
    return digest.hexdigest()[:16]


def ecr_token(host: str) -> str:
    """The token of an Amazon ECR registry, base64 of ``AWS:<password>``, good for twelve hours; "" for any other host.

    Raises GroundcrewError when AWS gives none.
    """
    found = _ECR.fullmatch(host)
    if not found:
        return ""
    import boto3
    import botocore.exceptions

    try:
        reply = boto3.client("ecr", region_name=found[1]).get_authorization_token()
    except (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
    ) as error:
        raise GroundcrewError(
            f"no login to the registry {host}: {error}. Whoever builds images needs credentials of AWS (`aws sts "
            "get-caller-identity` shows whose you have) that may ecr:GetAuthorizationToken."
        ) from error
    return str(reply["authorizationData"][0]["authorizationToken"])


class Builder:
    """Builds images on this machine and pushes them to one registry.

    ``registry`` is where to push (host:port or host/path), None for images that only this machine needs; Amazon ECR is
    logged in to with the AWS credentials of whoever builds, unless there is an ``authorization``, the header to send.
    ``ca_file`` is a CA bundle that builds trust, for networks that re-sign TLS.
    """

    def __init__(
        self,
        root: Path,
        images: list[Image],
        registry: str | None = None,
        plain_http: bool = False,
        authorization: str = "",
        ca_file: str = "",
    ) -> None:
        self.root, self.registry, self.plain_http = root, registry, plain_http
        self.authorization, self.ca_file = authorization, ca_file
        self.images = {image.name: image for image in images}
        self.built: list[str] = []
        self.host, _, self._path = (registry or "").partition("/")
        self._login = threading.RLock()
        self._token: str | None = None
        self._logged_in = False

    def tag(self, name: str) -> str:
        image = self.images[name]
        parent = self.tag(image.parent) if image.parent in self.images else image.parent
        return content_tag(self.root, image, parent)

    def local(self, name: str) -> str:
        """The image's reference on this machine."""
        return f"groundcrew/{name}:{self.tag(name)}"

    def remote(self, name: str) -> str:
        return f"{self.registry}/groundcrew/{name}:{self.tag(name)}"

    def present(self, name: str) -> bool:
        return (
            self._docker("image", "inspect", "--format", "{{.Id}}", self.local(name)).returncode
            == 0
        )

    def remote_digest(self, name: str) -> str | None:
        """The digest that the registry has for the image's tag; None when it does not have it."""
        repository = "/".join(part for part in (self._path, "groundcrew", name) if part)
        scheme = "http" if self.plain_http else "https"
        request = urllib.request.Request(
            f"{scheme}://{self.host}/v2/{repository}/manifests/{self.tag(name)}",
            method="HEAD",
            headers={"Accept": MANIFESTS},
        )
        authorization = self.authorization or (f"Basic {self.token()}" if self.token() else "")
        if authorization:
            # To the registry and to no host that it may redirect to.
            request.add_unredirected_header("Authorization", authorization)
        try:
            # A registry on loopback is not behind the proxy of the environment.
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({})
                if self.plain_http
                else urllib.request.ProxyHandler()
            )
            with opener.open(request, timeout=20) as reply:
                return str(reply.headers["Docker-Content-Digest"])
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise GroundcrewError(
                f"the registry {self.host} answers {error.code} {error.reason} for groundcrew/{name}. "
                "Check image_registry_push and that you are logged in."
            ) from error
        except OSError as error:
            raise GroundcrewError(
                f"the registry {self.host} does not answer: {error}. Start it (playbooks/provision.yml) or correct "
                "image_registry_push."
            ) from error

    def token(self) -> str:
        """ECR's token, asked for once a run; "" where there is none to ask for."""
        with self._login:
            if self._token is None:
                self._token = ecr_token(self.host)
            return self._token

    def log_in(self) -> None:
        """Give Docker the token of ECR, once a run, by its standard input: everybody can read command lines."""
        with self._login:
            if self._logged_in or not self.token():
                return
            password = base64.b64decode(self.token()).decode().partition(":")[2]
            done = self._docker(
                "login", "--username", "AWS", "--password-stdin", self.host, stdin=password
            )
            # What amazon-ecr-credential-helper says, where somebody has set it up: Docker then asks it, and needs no login.
            by_helper = "not implemented" in done.stderr
            if done.returncode != 0 and not by_helper:
                said = done.stderr.strip().replace(password, "<token>")
                raise GroundcrewError(f"Docker cannot log in to the registry {self.host}: {said}")
            self._logged_in = True

    def each(
        self, names: Sequence[str], work: Callable[[str], str | None]
    ) -> dict[str, str | None]:
        """What ``work`` returns for each name. Several are built at a time: most of a build is waiting for downloads,
        and compressing layers takes one processor an image. The first error ends it; what runs is finished first.
        """
        with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
            try:
                return dict(zip(names, pool.map(work, names), strict=True))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody else builds the image meanwhile: no other thread, and no other run from this checkout. A deploy starts
        to build in the background, so a second builder that asks for the same image waits for it, and finds it."""
        with (self.root / self.images[name].dockerfile).open() as file:
            # A file system without locks (some network ones) costs double work, not correctness.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def build(self, name: str) -> None:
        """Build the image (and its parents) unless this machine has it."""
        if not self.present(name):
            with self._alone(name):
                self._build(name)

    def _build(self, name: str) -> None:
        if self.present(name):
            return
        image = self.images[name]
        for tool in image.tools:
            self.build(tool)
        if image.parent in self.images:
            self.build(image.parent)
            parent = self.local(image.parent)
        else:
            parent = image.parent
        command = [
            "build",
            "--file",
            str(self.root / image.dockerfile),
            "--build-arg",
            f"PARENT={parent}",
        ]
        command += ["--tag", self.local(name), "--tag", f"groundcrew/{name}:build"]
        if image.target:
            command += ["--target", image.target]
        if self.ca_file:
            command += ["--secret", f"id=ca,src={self.ca_file}"]
        done = self._docker(*command, "--progress", "plain", str(self.root / image.context))
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines()[-25:]
            raise GroundcrewError(
                f"image '{name}' does not build from {image.dockerfile}. Its last lines:\n"
                + "\n".join(lines)
            )
        self.built.append(name)

    def push(self, name: str) -> str:
        """Build and push the image unless the registry has it; returns its digest."""
        digest = self.remote_digest(name)
        if digest:
            return digest
        with self._alone(name):
            return self._push(name)

    def _push(self, name: str) -> str:
        digest = self.remote_digest(name)
        if digest:
            return digest
        self._build(name)
        self.log_in()
        self._docker("tag", self.local(name), self.remote(name))
        done = self._docker("push", "--quiet", self.remote(name))
        if done.returncode != 0:
            raise GroundcrewError(
                f"image '{name}' cannot be pushed to {self.registry}: {done.stderr.strip()}"
            )
        if name not in self.built:
            self.built.append(name)
        digest = self.remote_digest(name)
        if digest is None:
            raise GroundcrewError(
                f"the registry lost image '{name}' right after the push; its disk may be full."
            )
        return digest

    @staticmethod
    def _docker(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        return subprocess.run(
            [DOCKER, *arguments], env=environment, input=stdin, capture_output=True, text=True, check=False
        )  # fmt: skip
