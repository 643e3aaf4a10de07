"""The prediction contract as a client sees it: the same questions to every framework, on its own port and through the gateway."""

from __future__ import annotations

import gzip
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

import cloud
import numpy as np

BUCKET = "groundcrew-test-store"
TOLERANCE = 1e-4
ROW = [0.0] * 64


class Reply(NamedTuple):
    """What came back; `said` is the decoded body."""

    status: int
    said: Any
    headers: Mapping[str, str]


class Bad(NamedTuple):
    """A request that has to be refused, and a word of the reason."""

    name: str
    body: bytes
    status: int
    word: str
    headers: dict[str, str] | None = None
    path: str = ":predict"


def _instances(*rows: Any) -> bytes:
    return json.dumps({"instances": rows}).encode()


BAD = [
    Bad("wrong shape", _instances([1, 2, 3]), 400, "64"),
    Bad("wrong type", _instances([*ROW[:63], "x"]), 400, "[63]"),
    Bad("NaN", _instances(ROW).replace(b"0.0]", b"NaN]"), 400, "NaN"),
    Bad("out of range", _instances([*ROW[:63], 17]), 400, "16"),
    Bad("empty instances", _instances(), 400, "empty"),
    Bad("no JSON", b"not json", 400, "JSON"),
    Bad("10,000 instances", _instances(*[[0] * 64] * 10000), 413, "1"),
    Bad("50 MB", b" " * 50_000_000, 413, "1048576"),
    Bad(
        "truncated gzip",
        gzip.compress(_instances(ROW))[:-12],
        400,
        "gzip",
        {"Content-Encoding": "gzip"},
    ),
    Bad("wrong content type", _instances(ROW), 415, "text/plain", {"Content-Type": "text/plain"}),
    Bad("unknown version", _instances(ROW), 404, "version", path="/versions/99:predict"),
]


def ask(
    url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, ca: str = ""
) -> Reply:
    """One request; a refusal is a reply."""
    given = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=body, headers=given)
    context = ssl.create_default_context(cafile=ca) if ca else None
    try:
        with urllib.request.urlopen(request, context=context, timeout=60) as reply:
            return Reply(reply.status, json.loads(reply.read()), reply.headers)
    except urllib.error.HTTPError as error:
        return Reply(error.code, json.loads(error.read()), error.headers)


def held_out() -> np.ndarray[Any, Any]:
    """The images that no model was trained on, (360, 64)."""
    stored = cloud.client("s3").get_object(Bucket=BUCKET, Key="data/digits/holdout.csv")
    lines = stored["Body"].read().decode().splitlines()[1:]
    images = np.array([[float(value) for value in line.split(",")[1:]] for line in lines])
    assert images.shape == (360, 64)
    return images


def predictions(url: str, headers: Mapping[str, str] | None = None, ca: str = "") -> Any:
    """The predictions for every held-out image, (360, 10), in requests of 60."""
    found = []
    for chunk in np.split(held_out(), 6):
        body = json.dumps({"instances": chunk.tolist()}).encode()
        reply = ask(url, body, headers, ca)
        assert reply.status == 200, reply
        found.extend(reply.said["predictions"])
    return np.array(found)


def assert_same(found: Any, expected: Any, model: str) -> None:
    """Equal labels, and probabilities that differ by no more than float32 can tell."""
    rows = np.flatnonzero(found.argmax(axis=1) != expected.argmax(axis=1))
    assert not len(rows), f"{model} labels rows {rows} differently"
    assert np.abs(found - expected).max() <= TOLERANCE, model
