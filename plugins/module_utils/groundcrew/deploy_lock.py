"""One deploy of an environment at a time: a lock in its store, with a holder, a purpose and an end.

The lock is one S3 object, written only if it is not there, or if it is still the one that was read
(If-None-Match, If-Match), so two who ask at once cannot both have it.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import GroundcrewError

KEY = "locks/deploy.json"
SECONDS = 2 * 3600


@dataclass(frozen=True)
class Lock:
    """holder: user@host. machine and run: which process of which machine. since, until: UTC, ISO 8601.

    taken_from: what was said when it was taken from somebody else, "" when it was free.
    """

    holder: str
    machine: str
    run: str
    what: str
    since: str
    until: str
    taken_from: str = ""

    def __str__(self) -> str:
        return f"{self.holder}, since {self.since}: {self.what}"


def run_of(pid: int) -> str:
    """A name of a process of this machine that no later process has; "" when it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else f"{pid}-{after_name[19]}"


def machine() -> str:
    """A name of this machine that no other has."""
    try:
        return Path("/etc/machine-id").read_text().strip()[:16] or f"{uuid.getnode():x}"
    except OSError:
        return f"{uuid.getnode():x}"


def acquire(
    client: Any,
    bucket: str,
    *,
    run: str,
    what: str,
    steal: str = "",
    seconds: int = SECONDS,
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc),
) -> Lock:
    """Take the lock for a process of this machine, or keep it.

    It is free when nobody has it, when its time is over, and when its process was of this machine
    and is gone. steal: a reason to take it from whoever has it. Raises GroundcrewError that says who
    has it, since when, what for, until when, and how to go on.
    """
    import botocore.exceptions

    begun = now().replace(microsecond=0)
    mine = Lock(
        holder=f"{getpass.getuser()}@{socket.gethostname()}",
        machine=machine(),
        run=run,
        what=what,
        since=begun.isoformat(),
        until=(begun + datetime.timedelta(seconds=seconds)).isoformat(),
    )
    for _ in range(5):
        found = _read(client, bucket)
        condition: dict[str, str] = {"IfNoneMatch": "*"}
        wanted = mine
        if found is not None:
            held, tag = found
            condition = {"IfMatch": tag}
            ours = held.machine == mine.machine
            if ours and held.run == run:
                wanted = Lock(**{**asdict(mine), "since": held.since})
            elif ours and run_of(int(held.run.partition("-")[0])) != held.run:
                pass  # killed: the same command again goes on
            elif held.until <= begun.isoformat():
                pass
            elif steal:
                wanted = Lock(**{**asdict(mine), "taken_from": f"{held}; because: {steal}"})
            else:
                raise GroundcrewError(
                    f"Another deploy has this environment: {held}. It is let go when that run ends, at the latest at "
                    f"{held.until}. If you know that it is dead: -e steal_lock='<why>'. Nothing was changed."
                )
        try:
            client.put_object(
                Bucket=bucket, Key=KEY, Body=json.dumps(asdict(wanted)).encode(), **condition
            )
        except botocore.exceptions.ClientError as error:
            if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                continue  # somebody was faster: look again
            raise GroundcrewError(_refusal(error, bucket)) from error
        return wanted
    raise GroundcrewError(
        f"the deploy lock s3://{bucket}/{KEY} changes hands faster than it can be read. Run it again."
    )


def release(client: Any, bucket: str, run: str) -> bool:
    """Let go what this process of this machine holds; whether it held it."""
    found = _read(client, bucket)
    if found is None or (found[0].machine, found[0].run) != (machine(), run):
        return False
    client.delete_object(Bucket=bucket, Key=KEY)
    return True


def _read(client: Any, bucket: str) -> tuple[Lock, str] | None:
    """The lock and its ETag; None when nobody has it."""
    import botocore.exceptions

    try:
        reply = client.get_object(Bucket=bucket, Key=KEY)
    except botocore.exceptions.ClientError as error:
        if _code(error) in ("NoSuchKey", "404"):
            return None
        raise GroundcrewError(_refusal(error, bucket)) from error
    try:
        said = json.loads(reply["Body"].read())
        return Lock(**{field.name: said[field.name] for field in fields(Lock)}), reply["ETag"]
    except (ValueError, KeyError, TypeError) as error:
        raise GroundcrewError(
            f"the deploy lock s3://{bucket}/{KEY} is no lock of ours ({error}). Look at it, then remove it: "
            f"aws s3 rm s3://{bucket}/{KEY}"
        ) from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _refusal(error: Any, bucket: str) -> str:
    if _code(error) == "NoSuchBucket":
        return (
            f"the store s3://{bucket} does not exist yet. Make it: ansible-playbook playbooks/provision.yml "
            f"-l <environment>"
        )
    return f"the deploy lock in s3://{bucket} cannot be used: {error}"


def remember(path: Path, bucket: str, run: str) -> None:
    """Leave what the callback plugin deploy_lock needs to let it go at the end of the run."""
    names = ["AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"]
    # A stand-in's credentials are no secret and are not in the environment of the run itself.
    if os.environ.get("AWS_ENDPOINT_URL"):
        names += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    environment = {name: os.environ[name] for name in names if name in os.environ}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"bucket": bucket, "run": run, "environment": environment}))
