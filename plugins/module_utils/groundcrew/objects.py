"""Small S3 operations with conditions, shared by the model store and the batch store.

Reads work with the boto3 of Debian 12 and Ubuntu 22.04 (1.20 and later). Conditional writes
(``If-Match``, ``If-None-Match``; Amazon S3 User Guide, "Conditional writes") need boto3 1.36 or
later, which the images and the controller have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .errors import GroundcrewError

# What S3 answers for an object that is not there.
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
# 409 is S3's answer while another conditional write of the same key is in progress.
_CONFLICT = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})


class ConflictError(GroundcrewError):
    """A conditional write lost: the object is there already, or is no longer the one that was
    read."""


@dataclass(frozen=True)
class StoredObject:
    """An object's bytes and its entity tag, as S3 gave it (quotes included)."""

    data: bytes
    etag: str


def open_client(endpoint_url: str | None = None, region: str | None = None) -> Any:
    """An S3 client over boto3's default credential chain.

    ``endpoint_url`` falls back to AWS_ENDPOINT_URL, which boto3 itself reads only from 1.28 on.
    Buckets are then addressed by path, because a stand-in for S3 has no name a bucket.
    """
    import boto3
    from botocore.config import Config

    endpoint = (
        endpoint_url
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or None
    )
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"max_attempts": 4, "mode": "standard"},
        s3={"addressing_style": "path"} if endpoint else {},
    )
    return boto3.client("s3", endpoint_url=endpoint, region_name=region or None, config=config)


def error_code(error: Exception) -> str:
    """The S3 error code of a botocore ClientError, or an empty text for any other exception."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def missing_bucket(bucket: str) -> GroundcrewError:
    """The error for a bucket that does not exist."""
    return GroundcrewError(
        f"the store's bucket {bucket!r} does not exist; the provision playbook makes it, "
        "or correct the bucket's name in the inventory"
    )


@contextmanager
def readable_errors(bucket: str) -> Iterator[None]:
    """Turn the errors of boto3 inside the block into a GroundcrewError that says what to mend."""
    import boto3.exceptions
    import botocore.exceptions

    where = f"the store s3://{bucket}"
    try:
        yield
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.NoRegionError) as error:
        raise GroundcrewError(
            f"{where} cannot be asked: {error}. On EC2 the instance profile gives credentials and "
            "region; elsewhere set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION"
        ) from error
    except botocore.exceptions.BotoCoreError as error:
        raise GroundcrewError(
            f"{where} cannot be reached: {error}. Check the network and AWS_ENDPOINT_URL, now "
            f"{os.environ.get('AWS_ENDPOINT_URL')!r}"
        ) from error
    except (botocore.exceptions.ClientError, boto3.exceptions.Boto3Error) as error:
        raise GroundcrewError(
            f"{where} refused a request: {error}. Check that these credentials may read, list and, "
            "for publishing, write this bucket"
        ) from error


def get(client: Any, bucket: str, key: str) -> StoredObject | None:
    """Read one object; None when it does not exist. Raises GroundcrewError when the bucket does
    not."""
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
    except client.exceptions.ClientError as error:
        code = error_code(error)
        if code == "NoSuchBucket":
            raise missing_bucket(bucket) from error
        if code in MISSING:
            return None
        raise
    return StoredObject(data=answer["Body"].read(), etag=str(answer["ETag"]))


def put(
    client: Any,
    bucket: str,
    key: str,
    data: bytes,
    *,
    absent: bool = False,
    etag: str | None = None,
    metadata: dict[str, str] | None = None,
) -> str:
    """Write one object and return its entity tag.

    ``absent=True`` writes only when the key does not exist, ``etag`` only over that very object;
    ConflictError otherwise. A write whose answer was lost is repeated by boto3 and then loses
    against itself, so callers compare what is stored with what they meant to write before they
    report a conflict.
    """
    condition: dict[str, str] = {}
    if absent:
        condition["IfNoneMatch"] = "*"
    elif etag is not None:
        condition["IfMatch"] = etag
    try:
        answer = client.put_object(
            Bucket=bucket, Key=key, Body=data, Metadata=metadata or {}, **condition
        )
    except client.exceptions.ClientError as error:
        code = error_code(error)
        if code == "NoSuchBucket":
            raise missing_bucket(bucket) from error
        if condition and (code in _CONFLICT or (etag is not None and code in MISSING)):
            raise ConflictError(
                f"s3://{bucket}/{key} was written by somebody else in the meantime"
            ) from error
        raise
    return str(answer["ETag"])


def list_keys(client: Any, bucket: str, prefix: str) -> list[str]:
    """Every key under a prefix, sorted. Raises GroundcrewError when the bucket does not exist."""
    keys: list[str] = []
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            keys.extend(str(entry["Key"]) for entry in page.get("Contents", []))
    except client.exceptions.ClientError as error:
        if error_code(error) == "NoSuchBucket":
            raise missing_bucket(bucket) from error
        raise
    return sorted(keys)


def to_json(document: dict[str, Any]) -> bytes:
    """The bytes of a document in the store: indented, keys sorted, a newline at the end; NaN is a
    ValueError."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def timestamp(moment: datetime | None = None) -> str:
    """A moment (now by default) as RFC 3339 in UTC with whole seconds, such as
    2026-01-31T04:05:06Z."""
    chosen = moment or datetime.now(timezone.utc)
    return chosen.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The inverse of :func:`timestamp`. Raises ValueError on anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
