#!/usr/bin/python3
"""Makes an image of this host's own Python and stub.py, and serves it as a container registry.

    stub_registry.py build DIRECTORY STUB   writes the image there and prints its digest
    stub_registry.py serve DIRECTORY PORT   serves it on loopback, where Docker asks for no TLS

Roles take images by digest, a digest comes from a registry, and a test must not need one elsewhere.
Format: Docker image manifest, version 2, schema 2.
"""

import gzip
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import tarfile

TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def files():
    python = os.path.realpath(sys.executable)
    library = os.path.dirname(os.__file__)
    yield python, "/usr/bin/python3"
    binaries = [python]
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - {"test", "__pycache__", "dist-packages", "idlelib"})
        for name in sorted(names):
            path = os.path.join(folder, name)
            yield os.path.realpath(path), path
            if name.endswith(".so"):
                binaries.append(path)
    said = subprocess.run(["ldd", *binaries], stdout=subprocess.PIPE, text=True, check=True).stdout
    for path in sorted(set(re.findall(r"(/\S+) \(0x", said))):
        yield os.path.realpath(path), path


def build(directory, stub):
    os.makedirs(directory, exist_ok=True)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as layer:
        for source, target in [*files(), (stub, "/srv/stub.py")]:
            layer.add(source, arcname=target.lstrip("/"), recursive=False)
    tar = raw.getvalue()
    zipped = gzip.compress(tar, compresslevel=1, mtime=0)
    config = {
        "architecture": subprocess.run(
            ["dpkg", "--print-architecture"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip(),
        "os": "linux",
        "config": {
            "Cmd": ["/usr/bin/python3", "/srv/stub.py"],
            "Env": ["PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(tar)]},
    }
    config_data = json.dumps(config).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": TYPE,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config_data),
                "digest": digest(config_data),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": len(zipped),
                    "digest": digest(zipped),
                }
            ],
        }
    ).encode()
    for data in (zipped, config_data, manifest):
        with open(os.path.join(directory, digest(data)), "wb") as file:
            file.write(data)
    print(digest(manifest))


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def serve(directory, port):
    class Registry(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            found = re.fullmatch(r"/v2/.+/(manifests|blobs)/(sha256:[0-9a-f]{64})", self.path)
            path = os.path.join(directory, found[2]) if found else ""
            if self.path == "/v2/":
                data, status, kind = b"{}", 200, "application/json"
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    data, status = file.read(), 200
                kind = TYPE if found[1] == "manifests" else "application/octet-stream"
            else:
                data, status, kind = (
                    b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}',
                    404,
                    "application/json",
                )
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            if found:
                self.send_header("Docker-Content-Digest", found[2])
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Registry).serve_forever()


if __name__ == "__main__":
    {"build": build, "serve": serve}[sys.argv[1]](*sys.argv[2:])
