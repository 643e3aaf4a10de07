#!/usr/bin/python
"""Send predictions at a steady rate and keep what each of them took."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_test
short_description: Send predictions at a steady rate and keep what each of them took
description:
  - Runs on the controller. Requests leave on schedule whether or not the ones before were answered. It ends by itself.
options:
  url: {description: The predict address., type: str, required: true}
  headers: {description: Request headers., type: dict, required: true}
  ca_file: {description: CA bundle for TLS., type: path, required: true}
  bucket: {description: The model store., type: str, required: true}
  model: {description: Name of the model., type: str, required: true}
  version: {description: "The version whose golden.json has the request.", type: str, required: true}
  rate: {description: Requests a second., type: float, required: true}
  seconds: {description: How long., type: float, required: true}
  connections: {description: Persistent connections., type: int, default: 16}
attributes:
  check_mode: {support: none, description: It sends requests.}
author: [Groundcrew]
"""

RETURN = r"""
name: {description: Beginning of the ids of the requests., type: str, returned: success}
figures: {description: "requests, failed, p50_ms, p99_ms, …", type: dict, returned: success}
samples: {description: "One list a request, the fields of Sample in groundcrew.load.", type: list, elements: list, returned: success}
"""

from dataclasses import astuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import golden, load, model_store, objects
from ansible.module_utils.groundcrew.errors import GroundcrewError

MOST_REQUESTS = 200_000


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "headers": {"type": "dict", "required": True, "no_log": True},
            "ca_file": {"type": "path", "required": True},
            "bucket": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "rate": {"type": "float", "required": True},
            "seconds": {"type": "float", "required": True},
            "connections": {"type": "int", "default": 16},
        }
    )
    parameters = module.params
    rate, seconds = parameters["rate"], parameters["seconds"]
    if not 0 < rate * seconds <= MOST_REQUESTS or seconds <= 0:
        module.fail_json(
            msg=f"rate {rate:g} for {seconds:g} s is {rate * seconds:.0f} requests: make both more than 0 "
            f"and their product at most {MOST_REQUESTS}."
        )
    try:
        key = model_store.prefix(parameters["model"], parameters["version"]) + "golden.json"
        with objects.readable_errors(parameters["bucket"]):
            found = objects.get(objects.open_client(), parameters["bucket"], key)
        if found is None:
            raise GroundcrewError(f"the store has no {key}; publish the model version again")
        request = golden.parse(found.data, key).cases[0]["request"]
    except GroundcrewError as error:
        module.fail_json(msg=str(error))
    sent = load.Load(
        url=parameters["url"],
        headers={**parameters["headers"], "Content-Type": "application/json"},
        body=load.body_of(request),
        ca_file=parameters["ca_file"],
        rate=rate,
        connections=parameters["connections"],
        most_seconds=seconds,
    ).start()
    samples = sent.wait()
    module.exit_json(
        changed=False,
        name=sent.name,
        figures=load.figures(samples),
        samples=[list(astuple(sample)) for sample in samples],
    )


if __name__ == "__main__":
    main()
