"""Keys of the gateway's clients: issued, rotated and revoked.

The secret ``clients/<name>`` holds the hash of a client's key, and while the key changes the hash of
the one before. Of our own clients (application, verify) it holds the key too; another client's key is
returned once, to whoever had it issued, and is nowhere afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import GroundcrewError
from .secret_store import Secret, SecretStore, token

_PLAYBOOK = "ansible-playbook playbooks/keys.yml -l <environment>"


def find(clients: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The client of this name as the inventory declares it. Raises GroundcrewError."""
    for client in clients:
        if client["name"] == name:
            return client
    raise GroundcrewError(
        f"there is no client '{name}'. Declare it under `clients` in gateway.yml of the environment, as "
        f"{{name: {name}, external: true}}; declared are {', '.join(str(c['name']) for c in clients)}."
    )


def change(
    store: SecretStore, client: Mapping[str, Any], action: str, *, dry_run: bool = False
) -> str:
    """Issue, rotate or revoke; returns the new key of an external client, otherwise "".

    issue: the first key of an external client. rotate: a new key, the one before stays valid.
    revoke: the key before ends. revoke_all: every key of an external client ends at once.
    Raises GroundcrewError when the client's state does not allow it; nothing is changed then.
    """
    name, external = str(client["name"]), bool(client.get("external"))
    secret = f"clients/{name}"
    old = store.read([secret]).get(secret)
    value, key = _next(name, external, old, action)
    if not dry_run:
        if old is None:
            store.create(secret, value)
        else:
            store.write(secret, value)
    return key


def _next(name: str, external: bool, old: Secret | None, action: str) -> tuple[Secret, str]:
    current = (old or {}).get("sha256", "")
    previous = (old or {}).get("previous_sha256", "")
    again = f"-e client={name} -e action="
    if action == "issue":
        if not external:
            raise GroundcrewError(
                f"the key of {name} is made by a deploy and kept in the secret store. "
                f"For a new one: {_PLAYBOOK} {again}rotate"
            )
        if current:
            raise GroundcrewError(
                f"{name} has a key already, {_short(current)}. For a new one beside it: {_PLAYBOOK} {again}rotate"
            )
        made = token()
        return {"sha256": made["sha256"]}, made["token"]
    if not current:
        raise GroundcrewError(f"{name} has no key. Issue one: {_PLAYBOOK} {again}issue")
    if action == "rotate":
        if previous:
            raise GroundcrewError(
                f"two keys of {name} are valid already, {_short(current)} and the one before, {_short(previous)}. "
                f"When the client has changed over: {_PLAYBOOK} {again}revoke"
            )
        made = token()
        value = {"sha256": made["sha256"], "previous_sha256": current}
        return (value, made["token"]) if external else ({**made, **value}, "")
    if action == "revoke":
        if not previous:
            raise GroundcrewError(
                f"{name} has one key, {_short(current)}, and none before it. To change it: {_PLAYBOOK} {again}rotate."
                + (
                    f" To shut {name} out: {_PLAYBOOK} {again}revoke_all"
                    if external
                    else " Our own client needs it."
                )
            )
        return {key: value for key, value in (old or {}).items() if key != "previous_sha256"}, ""
    if action == "revoke_all":
        if not external:
            raise GroundcrewError(
                f"{name} is our own client and would stop working. Was its key seen by somebody? "
                f"{again}rotate, deploy it, then {again}revoke."
            )
        return {"sha256": ""}, ""
    raise GroundcrewError(f"action is '{action}'; use issue, rotate, revoke, revoke_all or show.")


def table(
    clients: Sequence[Mapping[str, Any]], secrets: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """A line a client: whose key it is, the beginnings of its hashes, what it may use. No key."""
    lines = []
    for client in clients:
        secret = secrets.get(f"clients/{client['name']}", {})
        hashes = [secret[key] for key in ("sha256", "previous_sha256") if secret.get(key)]
        said = [
            "external" if client.get("external") else "our own",
            " and before it ".join(_short(value) for value in hashes) or "no key",
            "models " + ", ".join(client.get("models", ["all"])),
            "paths " + ", ".join(client.get("paths", ["all"])),
        ]
        lines.append(f"{client['name']}: {'; '.join(said)}")
    return lines


def _short(sha256: str) -> str:
    return f"sha256 {sha256[:8]}…"
