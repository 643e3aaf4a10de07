"""Loads the filters, tests and plugins of a run once, before Ansible forks a process a task and host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: preload
type: aggregate
short_description: Load in the parent what every worker process would load again
description:
  - Ansible forks a process for each task and host. What is loaded before the fork is there in all of them; what is not, each of them
    loads again. The filters and tests alone are a fifth of the processor time of a run that changes nothing.
requirements: [enabled in ansible.cfg]
"""

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import (
    action_loader,
    connection_loader,
    filter_loader,
    lookup_loader,
    shell_loader,
    test_loader,
)


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: object) -> None:
        filter_loader.get("ansible.builtin.default")
        test_loader.get("ansible.builtin.defined")
        for loader, names in (
            (action_loader, ("normal", "assert", "set_fact", "debug", "validate_argument_spec")),
            (connection_loader, ("ssh", "local")),
            (lookup_loader, ("env", "file", "template", "pipe", "fileglob")),
            (shell_loader, ("sh",)),
        ):
            for name in names:
                loader.get(f"ansible.builtin.{name}", class_only=True)
        import ansible.executor.module_common  # noqa: F401
