#!/usr/bin/python
"""Build and push images whose inputs changed; thin over groundcrew.image_build."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_build
short_description: Build images named by a hash of their inputs, push them, return their digests
description: Runs on the controller. The community.docker modules have no BuildKit on Debian's engine.
options:
  root: {description: The repository., type: path, required: true}
  images:
    description: "Every image: name, dockerfile, parent, context, target, tools, inputs."
    type: list
    elements: dict
    required: true
  wanted: {description: The names that are needed; parents are built when one of them must be., type: list, elements: str, required: true}
  registry_push: {description: "Where to push; empty for images that only this machine needs.", type: str, default: ""}
  registry_pull: {description: The same registry as the hosts see it., type: str, default: ""}
  plain_http: {description: Whether the registry speaks HTTP., type: bool, default: false}
  authorization: {description: HTTP Authorization header for the registry., type: str, default: ""}
  ca_file: {description: CA bundle that builds trust., type: str, default: ""}
"""

RETURN = r"""
images: {description: Name to reference (with digest when pushed)., type: dict, returned: always}
built: {description: What was built or pushed now., type: list, elements: str, returned: always}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.errors import GroundcrewError
from ansible.module_utils.groundcrew.image_build import Builder, Image


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "images": {"type": "list", "elements": "dict", "required": True},
            "wanted": {"type": "list", "elements": "str", "required": True},
            "registry_push": {"type": "str", "default": ""},
            "registry_pull": {"type": "str", "default": ""},
            "plain_http": {"type": "bool", "default": False},
            "authorization": {"type": "str", "default": "", "no_log": True},
            "ca_file": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    try:
        images = [
            Image(**{key: tuple(v) if isinstance(v, list) else v for key, v in image.items()})
            for image in parameters["images"]
        ]
    except TypeError as error:
        module.fail_json(
            msg=f"images: {error}; the keys are name, dockerfile, parent, context, target, tools, inputs."
        )
    known = [image.name for image in images]
    unknown = [name for name in parameters["wanted"] if name not in known]
    if unknown:
        module.fail_json(
            msg=f"image '{unknown[0]}' is used in the inventory but not declared in `images`. Declared are: {', '.join(sorted(known))}."
        )
    builder = Builder(
        Path(parameters["root"]),
        images,
        registry=parameters["registry_push"] or None,
        plain_http=parameters["plain_http"],
        authorization=parameters["authorization"],
        ca_file=parameters["ca_file"],
    )

    def local(name):
        if not module.check_mode:
            builder.build(name)
        return name if builder.present(name) else None

    pushed = bool(parameters["registry_push"])
    work = local if not pushed else builder.remote_digest if module.check_mode else builder.push
    try:
        there = builder.each(parameters["wanted"], work)
    except GroundcrewError as error:
        module.fail_json(msg=str(error), built=builder.built)
    missing = [name for name, found in there.items() if not found]
    # In check mode an image that is not built yet has no digest; zeros cannot be taken for one.
    references = {
        name: f"{parameters['registry_pull']}/groundcrew/{name}@{digest or 'sha256:' + '0' * 64}"
        if pushed
        else builder.local(name)
        for name, digest in there.items()
    }
    module.exit_json(
        changed=bool(builder.built or missing), images=references, built=builder.built or missing
    )


if __name__ == "__main__":
    main()
