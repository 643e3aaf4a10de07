#!/usr/bin/python
"""Prove outcomes: predictions right, pages up, strangers refused. Never fails; the caller judges the list of results."""

from __future__ import annotations

DOCUMENTATION = r"""
module: outcome_checks
short_description: Run a list of checks against running services and return what each found
description:
  - Every check is run, whatever the others found, so that one report tells everything that is wrong.
options:
  checks:
    description: What to check.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: What the report calls it., type: str, required: true}
      urls: {description: "Where to ask; one of them has to answer right.", type: list, elements: str, required: true}
      golden_file: {description: A golden.json on this host; each case is posted to the URL., type: path}
      golden_model: {description: "The same from the model store: bucket, model, version.", type: dict}
      status: {description: The expected status., type: int, default: 200}
      method: {description: HTTP method., type: str, default: GET}
      body: {description: Request body., type: str}
      contains: {description: What the answer must contain., type: str}
      maximum: {description: "JSON keys of the answer and the largest value that each may have.", type: dict, default: {}}
      headers: {description: Request headers., type: dict, default: {}}
      ca_file: {description: CA bundle for TLS., type: path}
      attempts: {description: "How often to ask, a second apart.", type: int, default: 1}
      requests: {description: "How many plain requests are sent at once, of which the last counts.", type: int, default: 1}
"""

RETURN = r"""
checks: {description: "name, ok and detail of each check.", type: list, elements: dict, returned: always}
request: {description: The first golden request that was asked., type: dict, returned: when there was one}
"""

import json
import ssl
import time
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import golden
from ansible.module_utils.groundcrew.errors import GroundcrewError


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments, **_keywords):
        return None


def read_golden(check):
    """The golden cases of a check, from this host or from the store; None when it has none."""
    if check["golden_file"]:
        return golden.load(check["golden_file"])
    if check["golden_model"]:
        from ansible.module_utils.groundcrew import model_store, objects

        wanted = check["golden_model"]
        key = model_store.prefix(wanted["model"], str(wanted["version"])) + "golden.json"
        with objects.readable_errors(wanted["bucket"]):
            found = objects.get(objects.open_client(), wanted["bucket"], key)
        if found is None:
            raise GroundcrewError(f"the store has no {key}; publish the model version again")
        return golden.parse(found.data, key)
    return None


def ask(check, url):
    """(ok, detail) of a plain request."""
    context = (
        ssl.create_default_context(cafile=check["ca_file"]) if url.startswith("https:") else None
    )
    handlers = [urllib.request.ProxyHandler({}), NoRedirect()]
    if context:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    body = check["body"].encode() if check["body"] is not None else None
    request = urllib.request.Request(
        url, data=body, method=check["method"], headers=check["headers"]
    )
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=10) as reply:
            status, text = reply.status, reply.read(4 * 2**20).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read(65536).decode("utf-8", "replace")
    except OSError as error:
        return False, f"no answer: {error}"
    if status != check["status"]:
        return False, f"status {status}, expected {check['status']}: {text[:200]}"
    if check["contains"] and check["contains"] not in text:
        return False, f"the answer lacks '{check['contains']}': {text[:200]}"
    details = [f"status {status}"]
    for key, most in check["maximum"].items():
        try:
            value = json.loads(text).get(key)
        except ValueError:
            return False, f"the answer is no JSON: {text[:200]}"
        if value is None or value > most:
            return False, f"{key} is {value}, at most {most} is right"
        details.append(f"{key} {value}")
    return True, ", ".join(details)


def run(check):
    """(ok, detail, first golden request or None) of one check."""
    first = None
    try:
        cases = read_golden(check)
        for attempt in range(max(1, check["attempts"])):
            if attempt:
                time.sleep(1)
            said = []
            for url in check["urls"]:
                if cases is None:
                    for _ in range(max(1, check["requests"])):
                        ok, detail = ask(check, url)
                else:
                    first = cases.cases[0]["request"]
                    result = golden.check(
                        url, cases, headers=check["headers"], ca_file=check["ca_file"]
                    )
                    ok, detail = result.ok, result.detail
                if ok:
                    return True, detail, first
                said.append(detail)
            detail = "; ".join(said)
    except GroundcrewError as error:
        return False, str(error), None
    return ok, detail, first


def main():
    options = {
        "name": {"type": "str", "required": True},
        "urls": {"type": "list", "elements": "str", "required": True},
        "golden_file": {"type": "path"},
        "golden_model": {"type": "dict"},
        "status": {"type": "int", "default": 200},
        "method": {"type": "str", "default": "GET"},
        "body": {"type": "str"},
        "contains": {"type": "str"},
        "maximum": {"type": "dict", "default": {}},
        "headers": {"type": "dict", "default": {}},
        "ca_file": {"type": "path"},
        "attempts": {"type": "int", "default": 1},
        "requests": {"type": "int", "default": 1},
    }
    module = AnsibleModule(
        argument_spec={
            "checks": {"type": "list", "elements": "dict", "required": True, "options": options}
        },
        supports_check_mode=True,
    )
    results, request = [], None
    for check in module.params["checks"]:
        ok, detail, first = run(check)
        request = request or first
        results.append({"name": check["name"], "ok": ok, "detail": detail})
    module.exit_json(changed=False, checks=results, **({"request": request} if request else {}))


if __name__ == "__main__":
    main()
