"""A rule of ansible-lint: nothing of this repository terminates an instance by the way. .ansible-lint loads it.

Two parameters of ec2_instance do that. `exact_count` ends whatever is above the count among all that the filters find, be it
another environment's host; `state: absent` or `terminated` ends whatever its filters find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ansiblelint.rules import AnsibleLintRule

if TYPE_CHECKING:
    from ansiblelint.errors import MatchError
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

MAY_TERMINATE = PurePath("playbooks/tasks/terminate.yml")
EXACT_COUNT = (
    "exact_count of ec2_instance terminates what is above the count among all instances that its filters find. Make one call "
    "for each host instead, with filters tag:Name, tag:Project, tag:Environment and instance-state-name, as "
    "roles/ec2_fleet/tasks/launch.yml does."
)
STATE = (
    f"ec2_instance terminates here, for good, and only {MAY_TERMINATE} may: it names one host, asks for its name once more and "
    "takes the break-glass role. Include that file instead."
)
_TERMINATES = re.compile(r"\b(absent|terminated)\b")


class Ec2TerminationRule(AnsibleLintRule):
    """Instances are terminated by one file alone, and never by a count."""

    id = "ec2-termination"
    description = "exact_count of ec2_instance is refused, and its states absent and terminated outside one file."
    severity = "VERY_HIGH"
    tags = ["groundcrew"]  # noqa: RUF012 - as the class that it extends
    version_changed = "26.10.0"

    def matchtask(self, task: Task, file: Lintable | None = None) -> list[MatchError]:
        action = task["action"]
        if not _is_ec2_instance(action["__ansible_module__"]):
            return []
        # A state in a variable may come from the loop.
        loops = [task[key] for key in task if key == "loop" or key.startswith("with_")]
        return [
            self.create_matcherror(message, task.line, filename=file, tag=f"{self.id}[{tag}]")
            for tag, message in _refusals(action, loops, file)
        ]

    def matchplay(self, file: Lintable, data: Any) -> list[MatchError]:
        return [
            self.create_matcherror(message, filename=file, tag=f"{self.id}[{tag}]", data=defaults)
            for defaults in _module_defaults(data)
            for module, parameters in defaults.items()
            if _is_ec2_instance(module) and isinstance(parameters, Mapping)
            for tag, message in _refusals(parameters, [], file)
        ]


def _refusals(
    parameters: Mapping[str, Any], loops: list[Any], file: Lintable | None
) -> Iterator[tuple[str, str]]:
    """What is wrong with parameters of ec2_instance: pairs of a tag and a message."""
    if "exact_count" in parameters:
        yield "exact-count", EXACT_COUNT
    state = str(parameters.get("state", ""))
    said = f"{state} {loops}" if "{{" in state else state
    there = file is not None and file.path.parts[-3:] == MAY_TERMINATE.parts
    if _TERMINATES.search(said) and not there:
        yield "state", STATE


def _is_ec2_instance(module: Any) -> bool:
    return str(module).rpartition(".")[2] == "ec2_instance"


def _module_defaults(data: Any) -> Iterator[Mapping[str, Any]]:
    """Every module_defaults of a play, a block or a task."""
    if isinstance(data, Mapping):
        if isinstance(data.get("module_defaults"), Mapping):
            yield data["module_defaults"]
        for value in data.values():
            yield from _module_defaults(value)
    elif isinstance(data, list):
        for value in data:
            yield from _module_defaults(value)
