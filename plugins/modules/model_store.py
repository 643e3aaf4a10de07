#!/usr/bin/python
"""Fetch model versions from the store to a host, or ask the store what it has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_store
short_description: Fetch model versions from the model store, verified
description:
  - With O(state=present), makes O(directory) hold the listed versions, each file's sha256
    verified. A version appears at C(<directory>/<name>/<version>/) by one rename, whole or not at
    all.
  - With O(state=query), returns what the store has and writes nothing; a version that is missing is
    returned, not an error.
  - Credentials come from boto3's default chain, such as an instance profile or the task's
    C(environment).
options:
  state:
    description: Whether to fetch versions to the host or to ask the store about them.
    type: str
    choices: [present, query]
    default: present
  bucket:
    description: Name of the bucket of the environment.
    type: str
    required: true
  models:
    description: The versions that are wanted.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the model.
        type: str
        required: true
      version:
        description: The version, a whole number. Only with O(state=query) it may be left out, which
          asks for all versions.
        type: str
  directory:
    description: Where versions are kept on the host.
    type: path
    default: /srv/models
  keep:
    description: How many other versions of each listed model stay, the highest first, for a
      rollback. A version that a container of this host, running or kept, or a job of it mounts always
      stays.
    type: int
    default: 2
  verify:
    description: How a version that is there already is checked. V(quick) compares sizes and
      modification times with those at its last full verification, V(full) reads every file.
    type: str
    choices: [quick, full]
    default: quick
  endpoint_url:
    description: Address of a stand-in for Amazon S3. Default is AWS_ENDPOINT_URL.
    type: str
  region:
    description: Region of the bucket. Default is boto3's.
    type: str
  owner:
    description: Owner of the directories and files.
    type: str
  group:
    description: Group of the directories and files.
    type: str
  mode:
    description: Mode of the files, quoted; who may read a file may search its directory.
    type: str
    default: "0644"
attributes:
  check_mode:
    support: full
    description: Says what would be fetched and removed. A store that cannot be reached is a
      warning.
  diff_mode:
    support: none
requirements:
  - boto3 >= 1.20
author: The Groundcrew contributors
"""

EXAMPLES = r"""
- name: install | Fetch the models of this host
  model_store:
    bucket: groundcrew-prod-store
    models:
      - {name: digits, version: "3"}
  environment: "{{ model_store_environment }}"

- name: preflight | Ask the store for the version
  model_store:
    state: query
    bucket: groundcrew-prod-store
    models:
      - {name: digits, version: "3"}
  delegate_to: localhost
  run_once: true
  register: __model_store_query
  failed_when: __model_store_query.missing | length > 0
"""

RETURN = r"""
fetched:
  description: The versions that were not there, as name/version.
  returned: state is present
  type: list
  elements: str
repaired:
  description: The versions that were there and differed from their manifest.
  returned: state is present
  type: list
  elements: str
pruned:
  description: The versions that were removed.
  returned: state is present
  type: list
  elements: str
models:
  description: With state present, name, version, path, manifest_sha256 and metrics of each version;
    with state query, name, versions and manifests (by version) of each model.
  returned: always
  type: list
  elements: dict
missing:
  description: Wanted versions that the store lacks, with name, version, available and message.
  returned: state is query
  type: list
  elements: dict
"""

import grp
import json
import pwd
import traceback
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.groundcrew import model_store, objects
from ansible.module_utils.groundcrew.errors import GroundcrewError

try:
    import boto3  # noqa: F401

    BOTO3_ERROR = None
except ImportError:
    BOTO3_ERROR = traceback.format_exc()

# The specifications of the host's jobs, by role container_job.
JOBS = Path("/etc/groundcrew/jobs")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "query"], "default": "present"},
            "bucket": {"type": "str", "required": True},
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "version": {"type": "str"},
                },
            },
            "directory": {"type": "path", "default": "/srv/models"},
            "keep": {"type": "int", "default": 2},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
            "endpoint_url": {"type": "str"},
            "region": {"type": "str"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "str", "default": "0644"},
        },
        supports_check_mode=True,
    )
    query = module.params["state"] == "query"
    if BOTO3_ERROR is not None:
        if module.check_mode:
            # On a fresh host the package comes with this very run.
            module.warn("boto3 is not installed yet, so the model store was not asked")
            module.exit_json(
                changed=True, fetched=[], repaired=[], pruned=[], models=[], missing=[]
            )
        module.fail_json(msg=missing_required_lib("boto3"), exception=BOTO3_ERROR)
    try:
        with objects.readable_errors(module.params["bucket"]):
            result = ask(module) if query else fetch(module)
    except GroundcrewError as error:
        if not (query and module.check_mode):
            module.fail_json(msg=str(error))
        module.warn(str(error))
        result = {"changed": False, "models": [], "missing": everything_missing(module, str(error))}
    module.exit_json(**result)


def ask(module: AnsibleModule) -> dict:
    wanted = [(entry["name"], entry["version"]) for entry in module.params["models"]]
    return {"changed": False, **model_store.query(client(module), module.params["bucket"], wanted)}


def everything_missing(module: AnsibleModule, message: str) -> list:
    return [
        {"name": entry["name"], "version": entry["version"], "available": [], "message": message}
        for entry in module.params["models"]
    ]


def fetch(module: AnsibleModule) -> dict:
    wanted = []
    for entry in module.params["models"]:
        if entry["version"] is None:
            raise GroundcrewError(f"model {entry['name']} has no version; give one, quoted")
        wanted.append((entry["name"], entry["version"]))
    if module.params["keep"] < 0:
        raise GroundcrewError(f"keep is {module.params['keep']}; it must be 0 or more")
    outcome = model_store.reconcile(
        client(module),
        module.params["bucket"],
        wanted,
        module.params["directory"],
        keep=module.params["keep"],
        full=module.params["verify"] == "full",
        check_mode=module.check_mode,
        ownership=ownership(module),
        in_use=mounted(module),
    )
    for warning in outcome.warnings:
        module.warn(warning)
    return {
        "changed": outcome.changed,
        "fetched": outcome.fetched,
        "repaired": outcome.repaired,
        "pruned": outcome.pruned,
        "models": outcome.models,
    }


def mounted(module: AnsibleModule) -> set[str]:
    """Directories that containers of this host, running or kept for a rollback, and its jobs mount."""
    found = set()
    for file in JOBS.glob("*.json"):
        try:
            mounts = json.loads(file.read_text()).get("mounts", [])
        except ValueError as error:
            raise GroundcrewError(
                f"{file} is damaged: {error}. Remove it and deploy the jobs again."
            ) from error
        found.update(mount["source"] for mount in mounts)
    docker = module.get_bin_path("docker")
    if docker is None:
        return found
    _, containers, _ = module.run_command([docker, "ps", "--all", "--quiet"])
    if containers.strip():
        shown = "{{range .Mounts}}{{println .Source}}{{end}}"
        # One may go between the two commands; the others are told all the same.
        _, sources, _ = module.run_command(
            [docker, "inspect", "--format", shown, *containers.split()]
        )
        found.update(sources.split())
    return found


def client(module: AnsibleModule) -> object:
    return objects.open_client(module.params["endpoint_url"], module.params["region"])


def ownership(module: AnsibleModule) -> model_store.Ownership:
    try:
        mode = int(module.params["mode"], 8)
        owner, group = module.params["owner"], module.params["group"]
        uid = None if owner is None else user_id(owner)
        gid = None if group is None else group_id(group)
    except ValueError:
        raise GroundcrewError(
            f"mode is {module.params['mode']!r}; it must be octal digits, quoted, such as '0644'"
        ) from None
    except KeyError as error:
        if module.check_mode:
            # The account may come with this very run.
            return model_store.Ownership(mode=mode)
        raise GroundcrewError(f"this host has no such owner or group: {error.args[0]}") from None
    return model_store.Ownership(uid=uid, gid=gid, mode=mode)


def user_id(owner: str) -> int:
    return int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid


def group_id(group: str) -> int:
    return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


if __name__ == "__main__":
    main()
